"""Image and video processors of a LLaVA, fitted to the square views that an encoder reads."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import BaseImageProcessor

from sf_llava.configuration import SparseFormerConfig
from sf_llava.llava.tiles import count_views


def fit_image_processor(processor: Any, config: SparseFormerConfig, grid: list[list[int]] | None) -> BaseImageProcessor:
    """Give a copy of ``processor``'s image processor that prepares images for an encoder: size and normalisation.

    Interpolation, padding and everything else stay as they are.

    Args:
        processor: of a LLaVA.
        config: of the encoder.
        grid: sizes (height, width) in pixels, multiples of the encoder's side, to which pictures are brought that are
            cut into tiles; None where they are not.

    Raises:
        ValueError: its image processor does not make squares of the encoder's side.
    """
    images, side = copy.deepcopy(processor.image_processor), config.image_size
    _fit(images, config)
    expected: dict[str, tuple[int, ...]] = {"pixel_values": (1, 3, side, side)}
    if grid is not None:
        images.image_grid_pinpoints = grid
        views = count_views(side + 2, side + 3, grid, side)
        expected = {"pixel_values": (1, views, 3, side, side), "image_sizes": (1, 2)}
    made = images(Image.new("RGB", (side + 3, side + 2)), return_tensors="pt")
    _check_made(images, made, expected)
    return images


def fit_video_processor(processor: Any, config: SparseFormerConfig) -> Any:
    """Give a copy of ``processor``'s video processor that prepares frames for an encoder; None where it has none.

    Raises:
        ValueError: it does not make squares of the encoder's side.
    """
    if getattr(processor, "video_processor", None) is None:
        return None
    videos, side = copy.deepcopy(processor.video_processor), config.image_size
    _fit(videos, config)
    made = videos(np.zeros((2, side + 2, side + 3, 3), np.uint8), return_tensors="pt")
    _check_made(videos, made, {"pixel_values_videos": (1, 2, 3, side, side)})
    return videos


def fit_grid(grid: Sequence[Sequence[int]], side: int, own_side: int) -> list[list[int]]:
    """Give the sizes to which pictures are brought to be cut into tiles of ``side``, in place of ``own_side``.

    The tiles are as many, row by row. Raises ValueError for a size that is not whole tiles.
    """
    if rest := [list(size) for size in grid if any(length % own_side for length in size)]:
        raise ValueError(
            f"the LLaVA's image_grid_pinpoints hold {rest[0]}, which is no whole number of its tower's squares of "
            f"{own_side} pixels: correct its config"
        )
    return [[length // own_side * side for length in size] for size in grid]


def fit_whole_grid(grid: Sequence[Sequence[int]], side: int, own_side: int, tiles: int) -> list[list[int]]:
    """Give the one size, ``side``, to which pictures are brought to be read whole in place of ``tiles`` x ``tiles``.

    Raises ValueError where the LLaVA cuts no picture so.
    """
    if [tiles * own_side] * 2 not in [list(size) for size in grid]:
        raise ValueError(
            f"the encoder reads pictures in place of {tiles} x {tiles} tiles of {own_side} pixels, but the LLaVA's "
            f"image_grid_pinpoints hold no {[tiles * own_side] * 2}: bootstrap one with other `tiles`"
        )
    return [[side, side]]


def _fit(images: Any, config: SparseFormerConfig) -> None:
    size, side = getattr(images, "size", None), config.image_size
    images.size = _like(size, {"shortest_edge": side} if "shortest_edge" in dict(size or {}) else _square(side))
    if getattr(images, "crop_size", None) is not None:
        images.crop_size = _like(images.crop_size, _square(side))
    images.image_mean, images.image_std = list(config.image_mean), list(config.image_std)


def _check_made(images: Any, made: Any, expected: dict[str, tuple[int, ...]]) -> None:
    """Check what was made of one picture or video; how many of a prompt's pictures it was may be told too."""
    found = {name: tuple(value.shape) for name, value in made.items() if name != "batch_num_images"}
    if found != expected:
        side = next(iter(expected.values()))[-1]
        raise ValueError(
            f"the encoder reads squares of {side} pixels, but the processor's {type(images).__name__} makes {found} in "
            f"place of {expected}: use the one that the LLaVA came with"
        )


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _like(size: Any, values: dict[str, int]) -> Any:
    """Write a size in the form that an image processor holds it in: transformers' class, or a dictionary."""
    return type(size)(**values) if isinstance(size, Mapping) or hasattr(size, "height") else values
