"""From an RGB picture to the tensor an encoder reads: the teacher's own preprocessing, or the bootstrap's augmentation.

Pillow does the resizing, so ``Preprocessing`` is bit-equal to open_clip's and timm's inference transforms. Processes
that load data stop at ``pixels``, bytes in the order of the picture, a quarter of the memory to collate and to move;
``normalise_pixels`` does the rest where the encoder is.
Letters: B images, S image_size.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sf_llava.data.rgb import INTERPOLATIONS, to_rgb

RESIZE_MODES = ("shortest", "squash")
MAX_RESIZED_PIXELS = 2**26
"""Of a strip that would become larger, only what the crop keeps is resized: 1 x 200,000 would fill 40 GB."""
FILTER_RADIUS = 2  # of the widest of these, in pixels of whichever side is coarser


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side or both, crop the centre, normalise.

    Args:
        image_size: side of the square result, in pixels.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
        interpolation: ``bicubic`` or ``bilinear``.
        crop_fraction: part of the resized shorter side that the crop keeps (timm's ``crop_pct``; CLIP: 1).
        resize_mode: ``shortest``, which keeps the picture's proportions (CLIP), or ``squash``, which makes it a square
            (SigLIP); open_clip's words.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_fraction: float = 1.0
    resize_mode: str = "shortest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # lists come out of JSON
        object.__setattr__(self, "std", tuple(self.std))
        if self.image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {self.image_size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std must be three numbers each, std positive; got {self.mean} and {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"unknown interpolation {self.interpolation!r}: expected {', '.join(INTERPOLATIONS)}")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction must be in (0, 1], got {self.crop_fraction}")
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f"unknown resize_mode {self.resize_mode!r}: expected {', '.join(RESIZE_MODES)}")

    def __call__(self, image: Image.Image) -> Tensor:
        """Turn a picture into (3, S, S) float32.

        Raises:
            TypeError, ValueError: no Pillow picture, or one that has no RGB (see ``to_rgb``).
        """
        return self.normalise_pixels(self.pixels(image))

    def pixels(self, image: Image.Image) -> Tensor:
        """Turn a picture into (S, S, 3) uint8, which :meth:`normalise_pixels` takes; errors as in a call."""
        return pixels_of(self.fit(image))

    def fit(self, image: Image.Image) -> Image.Image:
        """Resize and crop the centre: an S x S RGB picture."""
        image = to_rgb(image)
        shorter = math.floor(self.image_size / self.crop_fraction)
        width, height = image.size if self.resize_mode == "shortest" else (1, 1)
        size = (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
        left, top = (round((side - self.image_size) / 2) for side in size)
        box = (left, top, left + self.image_size, top + self.image_size)
        if size[0] * size[1] <= MAX_RESIZED_PIXELS:
            return _crop(self.resize(image, size), box)
        return self._resize_part(image, size, box)

    def _resize_part(self, image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
        """Give what ``box`` would cut out of the picture resized to ``size``, from the pixels that it depends on."""
        kept, parts = [], []
        for axis, side in enumerate(image.size):
            scale = side / size[axis]
            first, last = box[axis] * scale, min(box[axis + 2] * scale, side)
            margin = FILTER_RADIUS * math.ceil(scale) + 1
            start, stop = max(0, math.floor(first) - margin), min(side, math.ceil(last) + margin)
            kept.append((start, stop))
            parts.append((first - start, last - start))
        (left, right), (top, bottom) = kept
        image = image.crop((left, top, right, bottom))
        (from_x, to_x), (from_y, to_y) = parts
        square = self.image_size, self.image_size
        return image.resize(square, INTERPOLATIONS[self.interpolation], box=(from_x, from_y, to_x, to_y))

    def resize(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Resize to ``size`` (width, height) with this preprocessing's interpolation."""
        return image if image.size == size else image.resize(size, INTERPOLATIONS[self.interpolation])

    def normalise(self, image: Image.Image) -> Tensor:
        """Turn an S x S picture into (3, S, S) float32, (value / 255 - mean) / std."""
        return self.normalise_pixels(pixels_of(image))

    def normalise_pixels(self, pixels: Tensor) -> Tensor:
        """Turn (S, S, 3) or (B, S, S, 3) uint8 into (3, S, S) or (B, 3, S, S) float32, (value / 255 - mean) / std.

        Every device gives the same bits: all three steps are single operations that IEEE 754 rounds.
        """
        values = pixels.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
        # 255 as a tensor: by a number, a GPU would multiply with its reciprocal.
        white, mean, std = (_per_channel(numbers, values.device) for numbers in ((255.0,), self.mean, self.std))
        return values.div_(white).sub_(mean).div_(std)


@dataclass(frozen=True)
class View:
    """What a random view shows of a picture.

    Attributes:
        flip: whether it is mirrored.
        box: (left, top, right, bottom) in the picture's pixels; None for the centre crop.
    """

    flip: bool
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class BootstrapTransform:
    """The paper's augmentation: random resized crop and horizontal flip, every random number from a given generator.

    Args:
        preprocessing: size, normalisation and interpolation, the teacher's.
        flip: probability of a horizontal flip; 0 for maps and text (the ScienceQA stage).
        scale: range of the crop's share of the picture's area; None for no random crop but the centre crop.
        ratio: range of the crop's width / height.
    """

    preprocessing: Preprocessing
    flip: float = 0.5
    scale: tuple[float, float] | None = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a probability, got {self.flip}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be a range of area shares within (0, 1], or None; got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be a range of width / height, got {self.ratio}")

    @property
    def is_random(self) -> bool:
        """Whether two views of a picture may differ."""
        return self.flip > 0 or self.scale is not None

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Tensor:
        """Turn a picture into one random view of it: (S, S, 3) uint8, which ``normalise_pixels`` takes."""
        image = to_rgb(image)
        return self.render(image, self.draw(*image.size, generator))

    def draw(self, width: int, height: int, generator: torch.Generator) -> View:
        """Draw what a view shows of a picture of this size in pixels."""
        flip = torch.rand((), generator=generator).item() < self.flip
        return View(flip, None if self.scale is None else self.draw_box(width, height, generator))

    def render(self, image: Image.Image, view: View) -> Tensor:
        """Turn an RGB picture into a view of it: (S, S, 3) uint8."""
        if view.box is None:
            image = self.preprocessing.fit(image)
        else:
            size = self.preprocessing.image_size
            image = self.preprocessing.resize(_crop(image, view.box), (size, size))
        if view.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return pixels_of(image)

    def draw_box(self, width: int, height: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Draw a crop (left, top, right, bottom) in pixels: ten tries as in torchvision, then the largest that fits."""
        assert self.scale is not None
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(10):
            area, aspect, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
            area = width * height * (self.scale[0] + (self.scale[1] - self.scale[0]) * area)
            aspect = math.exp(low + (high - low) * aspect)
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
                return left, top, left + w, top + h
        w = max(1, min(width, round(height * self.ratio[1])))
        h = max(1, min(height, round(width / self.ratio[0])))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


def _crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    return image if box == (0, 0, *image.size) else image.crop(box)


@functools.cache  # or every batch would wait for the device, which has to take them over
@torch.inference_mode(False)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def pixels_of(image: Image.Image) -> Tensor:
    """Copy an RGB picture's bytes: (height, width, 3) uint8."""
    return torch.from_numpy(np.array(image))


def resize_pixels(pixel_values: Tensor, size: int) -> Tensor:
    """Resize normalised pixels (B, 3, S, S) to ``size``, for teachers whose input is smaller or larger."""
    if pixel_values.shape[-1] == size:
        return pixel_values
    return F.interpolate(pixel_values, (size, size), mode="bicubic", antialias=True, align_corners=False)
