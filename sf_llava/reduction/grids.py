"""Reductions that do not look at the picture: a token for every cell of a grid, or a draw.

Letters: B pictures, M patches on a square grid in raster order, N tokens that stay, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.reduction.reduced import Reduced, check_count, take

SEED = 0


def average_cells(patches: Tensor, num_tokens: int) -> Reduced:
    """Average patch tokens (B, M, D) over the cells of the most square grid of N; each stands under its cell's centre.

    Where the patches do not divide into such cells, neighbouring cells share some of them.
    """
    check_count(patches.shape[1], num_tokens)
    side, rows, columns = _lay(patches, num_tokens)
    grid = patches.transpose(1, 2).unflatten(-1, (side, side))  # [B, D, side, side]
    tokens = F.adaptive_avg_pool2d(grid, (rows, columns)).flatten(2).transpose(1, 2)
    return Reduced(tokens, _places(patches, num_tokens, shift=0.5))


def pick_evenly(patches: Tensor, num_tokens: int) -> Reduced:
    """Take of patch tokens (B, M, D) the first of every cell of the most square grid of N.

    Raises:
        ValueError: the grid is wider than that of the patches, as for a large prime N.
    """
    check_count(patches.shape[1], num_tokens)
    side, rows, columns = _lay(patches, num_tokens)
    if columns > side:
        raise ValueError(
            f"{num_tokens} tokens lie on a grid of {rows} x {columns}, which {side} x {side} patches do not have: "
            f"expected at most {side} columns"
        )
    places = _places(patches, num_tokens, shift=0)
    return Reduced(take(patches, places), places)


def pick_at_random(patches: Tensor, num_tokens: int) -> Reduced:
    """Take N of the patch tokens (B, M, D): one draw for all pictures."""
    count = patches.shape[1]
    check_count(count, num_tokens)
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))[:num_tokens].sort().values
    places = drawn.to(patches.device).expand(len(patches), -1)
    return Reduced(take(patches, places), places)


def _lay(patches: Tensor, num_tokens: int) -> tuple[int, int, int]:
    """Lay N tokens on their most square grid: rows and columns of patches, rows and (no fewer) columns of tokens."""
    rows = max(rows for rows in range(1, math.isqrt(num_tokens) + 1) if num_tokens % rows == 0)
    return math.isqrt(patches.shape[1]), rows, num_tokens // rows


def _places(patches: Tensor, num_tokens: int, shift: float) -> Tensor:
    """Give the patches that the points ``shift`` into the cells of the grid fall on, (B, N)."""
    side, rows, columns = _lay(patches, num_tokens)
    y, x = ([int((index + shift) * side / count) for index in range(count)] for count in (rows, columns))
    places = torch.tensor([row * side + column for row in y for column in x], device=patches.device)
    return places.expand(len(patches), -1)
