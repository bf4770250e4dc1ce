"""Views of pictures with masks: scaled, cropped, flipped and recoloured for training, scaled alone for prediction.

As mmsegmentation does it for ADE20K. Letters: S side of a view in pixels, H x W of what is predicted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import Dataset

from sf_llava.data.images import CorruptImageError
from sf_llava.data.masks import IGNORED, MaskedSource
from sf_llava.data.rgb import to_rgb
from sf_llava.data.sampler import generator_of
from sf_llava.data.transforms import Preprocessing, pixels_of

MAX_ASPECT = 4
"""The longer side of a scaled picture is at most so many times S (2048 for 512): strips become narrower than S."""
CROP_TRIES = 10
MAX_SKIPPED = 100


def scale_to(size: tuple[int, int], side: float) -> tuple[int, int]:
    """Give the size (width, height) with the shorter side ``side``, the longer one at most MAX_ASPECT times that."""
    factor = min(side / min(size), MAX_ASPECT * side / max(size))
    width, height = (max(1, round(factor * length)) for length in size)
    return width, height


@dataclass(frozen=True)
class MaskedTransform:
    """Random views for training.

    Args:
        preprocessing: S, and the interpolation of pictures; masks take the nearest pixel.
        scale: range of the shorter side, in S.
        flip: probability of a horizontal flip.
        max_share: a crop of which one class covers more than this share is drawn again.
        recolour: whether brightness, contrast, saturation and hue are changed at random.
    """

    preprocessing: Preprocessing
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    max_share: float = 0.75
    recolour: bool = True

    def __call__(self, image: Image.Image, labels: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Turn a picture and labels (H, W) into a view: pixels (S, S, 3) uint8 and labels (S, S) uint8."""
        image, side = to_rgb(image), self.preprocessing.image_size
        ratio, flip = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        low, high = self.scale
        size = scale_to(image.size, side * (low + (high - low) * ratio))
        image = self.preprocessing.resize(image, size)
        labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
        left, top = self._draw_corner(labels, generator)
        image = image.crop((left, top, min(left + side, size[0]), min(top + side, size[1])))
        labels = labels[top : top + side, left : left + side]
        if self.recolour:
            image = recolour(image, generator)
        pixels = np.array(image)
        if flip < self.flip:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        return self._pad(pixels, labels)

    def _draw_corner(self, labels: np.ndarray, generator: torch.Generator) -> tuple[int, int]:
        side = self.preprocessing.image_size
        left = top = 0
        for _ in range(CROP_TRIES):
            x, y = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            free_x, free_y = (max(0, length - side) for length in (labels.shape[1], labels.shape[0]))
            left, top = int(x * (free_x + 1)), int(y * (free_y + 1))
            crop = labels[top : top + side, left : left + side]
            counts = np.bincount(crop[crop != IGNORED], minlength=1)
            if len(counts.nonzero()[0]) > 1 and counts.max() <= self.max_share * counts.sum():
                break
        return left, top

    def _pad(self, pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        """Fill up to S x S on the right and below: with the mean colour, which is 0 when normalised, and IGNORED."""
        side = self.preprocessing.image_size
        height, width = labels.shape
        view = np.empty((side, side, 3), dtype=np.uint8)
        view[:] = np.round(255 * np.asarray(self.preprocessing.mean))
        view[:height, :width] = pixels
        padded = np.full((side, side), IGNORED, dtype=np.uint8)
        padded[:height, :width] = labels
        return torch.from_numpy(view), torch.from_numpy(padded)


def recolour(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """Change brightness, contrast, saturation and hue, each with probability 1/2 (mmsegmentation's distortion)."""
    chances = (torch.rand(4, generator=generator) < 0.5).tolist()
    amounts = (2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1).tolist()
    if chances[0]:
        shift = 32 * amounts[0]
        image = image.point(lambda value: min(255, max(0, round(value + shift))))
    for chance, amount, kind in zip(
        chances[1:3], amounts[1:3], (ImageEnhance.Contrast, ImageEnhance.Color), strict=True
    ):
        if chance:
            image = kind(image).enhance(1 + 0.5 * amount)
    if chances[3]:
        hue, saturation, value = image.convert("HSV").split()
        turn = round(255 * amounts[3] / 10)
        hue = hue.point(lambda number: (number + turn) % 256)
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    return image


class MaskedViews(Dataset):
    """Training views, indexed by (epoch, index) pairs; nothing about them depends on workers or on history.

    A pair that cannot be used is replaced by the next one, and named.
    """

    def __init__(self, source: MaskedSource, transform: MaskedTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Give ``pixels`` (S, S, 3) uint8, ``labels`` (S, S) uint8, and ``skipped``, one line a pair passed by.

        Raises:
            ValueError: very many pairs in a row cannot be used.
        """
        epoch, index = key
        skipped: list[str] = []
        for found in range(index, index + min(MAX_SKIPPED, len(self))):
            try:
                image, labels = self.source.load(found % len(self))
            except CorruptImageError as error:
                skipped.append(str(error))
                continue
            pixels, view = self.transform(image, labels, generator_of(self.seed, epoch, index))
            return {"pixels": pixels, "labels": view, "skipped": skipped}
        raise ValueError(
            f"{len(skipped)} pairs in a row cannot be used (of {len(self)}): {'; '.join(skipped[:3])}"
            f"{' ...' if len(skipped) > 3 else ''}. Check pictures and masks"
        )


def collate_masked(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack items to ``pixels`` (B, S, S, 3) and ``labels`` (B, S, S) uint8; join their ``skipped``."""
    return {
        "pixels": torch.stack([item["pixels"] for item in items]),
        "labels": torch.stack([item["labels"] for item in items]),
        "skipped": [line for item in items for line in item["skipped"]],
    }


def pixels_to_predict(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Scale a picture so that its shorter side is S: (H, W, 3) uint8."""
    image = to_rgb(image)
    return pixels_of(preprocessing.resize(image, scale_to(image.size, preprocessing.image_size)))
