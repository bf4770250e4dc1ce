"""Latents of pictures that are cut into tiles, in the places that patches had in training.

Stock LLaVA-NeXT and LLaVA-OneVision lay a picture out as its M patches, then those of all tiles on one grid, row by
row, without its padding, a newline behind every row. Read by RoI centre (reading.py), a latent gets the position id of
the patch there that its last RoI's centre falls on, the nearest that was kept where that one was cut off; a newline of
a tile gets that of the newline behind the last row of it. A picture's tokens stand in the order of their positions.

Letters: R x C tiles, M patches a view in rows of m, N latents, T tokens, W width of the LLM.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from sf_llava.llava.reading import Reading, see
from sf_llava.llava.tiles import count_all_views, is_whole


class Grid(NamedTuple):
    """Position ids in a picture: of patches (R m, C m) and of newlines behind their rows (R m,), int64; and how many
    it takes, ``span``."""

    patches: Tensor
    newlines: Tensor
    span: int


class PictureInPlace(NamedTuple):
    """A picture as the LLM reads it: ``features`` (T, W), their ``places`` (T,) int64 among the ``span`` positions that
    it took in training, and which are ``latents`` (T,) bool."""

    features: Tensor
    places: Tensor
    latents: Tensor
    span: int


def lay_grid(tiles: tuple[int, int], side: int, size: tuple[int, int], most: int | None = None) -> Grid:
    """Lay the patches of a picture out as stock models do.

    Args:
        tiles: R, C.
        side: m.
        size: height and width of the picture in pixels; what does not have its proportions is padding.
        most: times M, how many patches LLaVA-OneVision keeps; what has clearly more it shrinks. None: all.
    """
    height, width = (count * side for count in tiles)
    top = left = 0
    if size[1] / size[0] > width / height:
        top = (height - int(round(size[0] * (width / size[1]), 7))) // 2
    else:
        left = (width - int(round(size[1] * (height / size[0]), 7))) // 2
    rows, columns = height - 2 * top, width - 2 * left
    ratio = math.sqrt(rows * columns / (most * side**2)) if most is not None else 1.0
    kept = (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)
    row = (torch.arange(height) - top).clamp(max=rows - 1).clamp(min=0) * kept[0] // max(rows, 1)
    column = (torch.arange(width) - left).clamp(max=columns - 1).clamp(min=0) * kept[1] // max(columns, 1)
    starts, span = side**2 + row * (kept[1] + 1), side**2 + kept[0] * (kept[1] + 1)
    last = span - 1  # before it nothing is cut, unless stock models keep no row of a picture that is all edge
    return Grid((starts[:, None] + column).clamp(max=last), (starts + kept[1]).clamp(max=last), span)


def see_in_place(model: Any, inputs: Mapping[str, Any], reading: Reading) -> tuple[list[PictureInPlace], float]:
    """Let a LLaVA with tiles look at pictures through a SparseFormer, and place what it reads of each.

    Args:
        model: a LLaVA of a family that lays tiles flat, not wrapped.
        inputs: of its processor: ``pixel_values`` (I, V, 3, S, S), ``image_sizes`` (I, 2), ``batch_num_images``.
        reading: by RoI centre.

    Returns:
        The pictures, and what is added to the attention scores from text to latents: log(M / N), or where N latents
        stand for the whole picture and its G x G tiles log((1 + G^2) M / N).

    Raises:
        ValueError: CLS is read, which stock models have no place for; the tower has no RoIs.
    """
    assert reading.num_patches is not None, "reading by RoI centre knows the patches"
    if reading.with_cls:
        raise ValueError("positions by RoI centre: a CLS has no place among tiles; set vision_feature_select_strategy")
    pinpoints, side = model.config.image_grid_pinpoints, model.config.vision_config.image_size
    sizes = [(int(height), int(width)) for height, width in inputs["image_sizes"]]
    counts = count_all_views(sizes, pinpoints, side, inputs.get("batch_num_images"))
    views = [pixels[:count] for pixels, count in zip(inputs["pixel_values"], counts, strict=True)]
    if is_whole(pinpoints, side):
        return _see_whole(model, torch.stack([own[-1] for own in views]), sizes, reading, reading.num_patches)
    return _see_views(model, torch.cat(views), counts, sizes, reading, reading.num_patches)


def _see_whole(
    model: Any, pixels: Tensor, sizes: list[tuple[int, int]], reading: Reading, num_patches: int
) -> tuple[list[PictureInPlace], float]:
    """Look at whole pictures, (I, 3, S, S)."""
    tiles, side = getattr(model.config.vision_config, "teacher_tiles", 1), math.isqrt(num_patches)
    seen = see(model, pixels, replace(reading, num_patches=tiles**2 * num_patches))
    assert seen.places is not None, "reading by RoI centre gives places"
    pictures = [
        place_whole(features, places, lay_grid((tiles, tiles), side, size, _most(model)))
        for features, places, size in zip(seen.features, seen.places.cpu(), sizes, strict=True)
    ]
    return pictures, math.log((1 + tiles**2) * num_patches / seen.features.shape[1])


def _see_views(
    model: Any, pixels: Tensor, counts: list[int], sizes: list[tuple[int, int]], reading: Reading, num_patches: int
) -> tuple[list[PictureInPlace], float]:
    """Look at all views of pictures, (sum of ``counts``, 3, S, S)."""
    config, seen = model.config, see(model, pixels, reading)
    assert seen.places is not None, "reading by RoI centre gives places"
    pictures = []
    for features, places, size in zip(seen.features.split(counts), seen.places.cpu().split(counts), sizes, strict=True):
        grid, tiles = None, (0, 0)
        if len(features) > 1:
            height, width = select_best_resolution(size, config.image_grid_pinpoints)
            tiles = height // config.vision_config.image_size, width // config.vision_config.image_size
            grid = lay_grid(tiles, math.isqrt(num_patches), size, _most(model))
        pictures.append(place_views(features, places, model.model.image_newline, num_patches, tiles, grid))
    return pictures, reading.bias(seen.features.shape[1])


def _most(model: Any) -> int | None:
    """How many views' patches LLaVA-OneVision keeps, as ``anyres_max_9`` says; None for others, which keep all."""
    rule = getattr(model.config, "vision_aspect_ratio", None)
    return None if rule is None else int(rule.rpartition("_")[2])


def place_whole(features: Tensor, places: Tensor, grid: Grid) -> PictureInPlace:
    """Place the latents (N, W) of a whole picture by their ``places`` (N,) among the grid's patches."""
    return _in_order(features, grid.patches.flatten()[places], torch.ones(len(places), dtype=torch.bool), grid.span)


def place_views(
    features: Tensor, places: Tensor, newline: Tensor, num_patches: int, tiles: tuple[int, int], grid: Grid | None
) -> PictureInPlace:
    """Place the latents of the views of a picture, the whole of it first, and a newline behind every tile.

    Args:
        features: (V, N, W).
        places: (V, N) among the M patches of each view.
        newline: (W,).
        num_patches: M.
        tiles: R, C.
        grid: of the tiles; None where the picture is one view, with a newline behind it.
    """
    side = math.isqrt(num_patches)
    if grid is None:
        behind, span, found = [num_patches], num_patches + 1, [places[0]]
    else:
        behind, span, found = [], grid.span, [places[0]]
        for tile, own in enumerate(places[1:]):
            row, column = (index * side for index in divmod(tile, tiles[1]))
            found.append(grid.patches[row + own // side, column + own % side])
            behind.append(int(grid.newlines[row + side - 1]))
    positions = torch.cat([*found, torch.tensor(behind)])
    tokens = torch.cat([features.flatten(0, 1), newline.to(features).expand(len(behind), -1)])
    return _in_order(tokens, positions, torch.arange(len(positions)) < places.numel(), span)


def _in_order(features: Tensor, positions: Tensor, latents: Tensor, span: int) -> PictureInPlace:
    ordered, order = positions.sort(stable=True)
    return PictureInPlace(features[order.to(features.device)], ordered, latents[order], span)
