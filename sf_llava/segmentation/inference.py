"""From pictures of any size to masks of their size: whole, or by windows of the training size, logits averaged.

As mmsegmentation does it: a picture is scaled so that its shorter side is S, windows overlap by a third, logits are
scaled to the size that is asked for before the best class is taken.
Letters: K windows, S side of a window, H x W pixels of the scaled picture, L classes.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sf_llava.data.mask_transforms import pixels_to_predict, scale_to
from sf_llava.segmentation.segmenter import Segmenter

Mode = Literal["slide", "whole"]
MODES = ("slide", "whole")
STRIDE = 2 / 3
"""Of windows, in their sides: 341 of 512 pixels."""


def window_starts(length: int, side: int) -> list[int]:
    """Give where windows of ``side`` start that cover ``length``, the last one at its end; one for a shorter length."""
    stride = max(1, int(side * STRIDE))
    count = -(-max(0, length - side) // stride) + 1
    return [max(0, min(index * stride, length - side)) for index in range(count)]


@torch.no_grad()
def predict(
    segmenter: Segmenter,
    images: Sequence[Image.Image],
    sizes: Sequence[tuple[int, int]] | None = None,
    mode: Mode = "slide",
    batch_size: int = 8,
) -> list[np.ndarray]:
    """Predict a class for every pixel.

    Args:
        segmenter: in evaluation mode.
        images: pictures of any size.
        sizes: (height, width) of each mask; default: the pictures'.
        mode: ``slide``, or ``whole`` for nets that read any size.
        batch_size: windows at once.

    Returns:
        Classes (height, width) uint8 of every picture.
    """
    sizes = sizes or [(image.height, image.width) for image in images]
    scaled = [_normalised(segmenter, image, mode) for image in images]
    windows, places = [], []
    for number, pixels in enumerate(scaled):
        height, width = pixels.shape[-2:]
        side = segmenter.preprocessing.image_size if mode == "slide" else max(height, width)
        for top in window_starts(height, side):
            for left in window_starts(width, side):
                windows.append(pixels[:, top : top + side, left : left + side])
                places.append((number, top, left))
    logits = _run(segmenter, windows, batch_size)
    sums: dict[int, Tensor] = {}
    for (number, top, left), part in zip(places, logits, strict=True):
        height, width = scaled[number].shape[-2:]
        total = sums.setdefault(number, part.new_zeros(part.shape[0] + 1, height, width))
        window = total[:, top : top + part.shape[1], left : left + part.shape[2]]
        window[:-1] += part
        window[-1] += 1
    # What fills strips up is cut away again.
    kept = [scale_to(image.size, segmenter.preprocessing.image_size) for image in images]
    return [
        _best(sums[number][:, :height, :width], size)
        for number, ((width, height), size) in enumerate(zip(kept, sizes, strict=True))
    ]


def _normalised(segmenter: Segmenter, image: Image.Image, mode: Mode) -> Tensor:
    """Scale and normalise a picture: (3, H, W), at least S x S where windows are cut."""
    preprocessing = segmenter.preprocessing
    pixels = preprocessing.normalise_pixels(pixels_to_predict(image, preprocessing))
    if mode == "slide":  # of strips, which are narrower than a window, the rest is the mean colour
        side = preprocessing.image_size
        right, below = (max(0, side - length) for length in (pixels.shape[-1], pixels.shape[-2]))
        pixels = F.pad(pixels, (0, right, 0, below))
    return pixels


def _run(segmenter: Segmenter, windows: list[Tensor], batch_size: int) -> list[Tensor]:
    """Run windows (3, h, w) of equal size together; give logits (L, h, w) of each, in order."""
    device = next(segmenter.net.parameters()).device
    of_size: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, window in enumerate(windows):
        of_size[tuple(window.shape)].append(index)
    found: dict[int, Tensor] = {}
    for indices in of_size.values():
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            pixels = torch.stack([windows[index] for index in part]).to(device)
            logits = upsample(segmenter.net(pixels), pixels.shape[-2:])
            found |= dict(zip(part, logits.float().unbind(), strict=True))
    return [found[index] for index in range(len(windows))]


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Scale logits (K, h, w, L) to (K, L, H, W), bilinearly."""
    return F.interpolate(logits.permute(0, 3, 1, 2), tuple(size), mode="bilinear", align_corners=False)


def _best(sums: Tensor, size: tuple[int, int]) -> np.ndarray:
    logits = (sums[:-1] / sums[-1:]).unsqueeze(0)
    logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]
    return logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
