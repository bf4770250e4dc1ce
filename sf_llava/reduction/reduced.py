"""What every reduction of patch tokens gives, and what several of them need.

Letters: B pictures, M patches in raster order, N tokens that stay, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Reduced(NamedTuple):
    """Fewer tokens, in raster order of their places.

    Attributes:
        tokens: (B, N, D), the patch tokens' dtype.
        places: (B, N) int64 in 0 .. M - 1, the patch that each token stands on.
    """

    tokens: Tensor
    places: Tensor


def check_count(num_patches: int, num_tokens: int) -> None:
    """Check that M patches can become N tokens.

    Raises:
        ValueError: N is not in 1 .. M.
    """
    if not 1 <= num_tokens <= num_patches:
        raise ValueError(f"{num_patches} patches cannot become {num_tokens} tokens: expected 1 to {num_patches}")


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """Take (B, N, D) of (B, M, D) tokens at ``places`` (B, N)."""
    return tokens.take_along_dim(places[..., None], dim=1)


def others(places: Tensor, count: int) -> Tensor:
    """List, ascending, which of ``count`` places are not among (B, N) distinct ones: (B, count - N) int64."""
    taken = torch.zeros(len(places), count, dtype=torch.int64, device=places.device).scatter(1, places, 1)
    return taken.argsort(dim=1, stable=True)[:, : count - places.shape[1]]
