"""Pruning and merging by class attention, as in DiffRate.

DiffRate: Differentiable Compression Rate for Efficient Vision Transformers (ICCV 2023). Its rates are searched by
gradients; here they are given. Letters: B pictures, T tokens (CLS first), D width.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.reduction.reduced import take


class Schedule(NamedTuple):
    """Tokens that are kept in each block, CLS counted: ``pruned`` after pruning, then ``merged`` after merging."""

    pruned: tuple[int, ...]
    merged: tuple[int, ...]


VIT_B_11_5 = Schedule(
    (197, 196, 182, 172, 162, 147, 131, 109, 101, 94, 70, 49),
    (197, 192, 178, 164, 150, 133, 115, 101, 96, 82, 49, 49),
)
"""Published for ViT-B/16 of MAE at 11.5 G multiply-adds."""
VIT_L_42_3 = Schedule(
    (197, 197, 197, 195, 194, 193, 191, 187, 182, 180, 173, 149, 142, 134, 125, 121, 111, 106, 91, 87, 77, 39, 38, 32),
    (197, 197, 196, 194, 193, 192, 187, 183, 181, 173, 154, 146, 137, 127, 123, 114, 105, 98, 87, 75, 43, 45, 32, 32),
)
"""Published for ViT-L/16 of MAE at 42.3 G multiply-adds."""


def constant_rates(num_tokens: int, depth: int, removed: int) -> Schedule:
    """Take as many of T tokens away in every block as ToMe does with r = ``removed``: half pruned, half merged."""
    kept = [num_tokens]
    for _ in range(depth):
        kept.append(kept[-1] - min(removed, (kept[-1] - 1) // 2))
    pruned = tuple(before - (before - after) // 2 for before, after in pairwise(kept))
    return Schedule(pruned, tuple(kept[1:]))


def prune_and_merge(
    tokens: Tensor, sizes: Tensor, attention: Tensor, pruned: int, merged: int
) -> tuple[Tensor, Tensor]:
    """Drop the tokens that CLS looks at least, then merge the next ones into the most similar of the others.

    Tokens are averaged without weights, and a merged one adds to its partner's size its own times their cosine, as in
    the official code; unlike there, a negative cosine adds nothing.

    Args:
        tokens: (B, T, D), CLS first; it is never dropped, nor merged into.
        sizes: (B, T), by which attention is weighed.
        attention: (B, T - 1) from CLS to the others, averaged over heads.
        pruned: tokens that are not dropped, CLS counted; all where it is more than T.
        merged: tokens that are left in the end, CLS counted, at least 2; all where it is more.

    Returns:
        (B, left, D) tokens, CLS first, then by falling attention; and their (B, left) sizes.
    """
    order = F.pad(attention.argsort(dim=1, descending=True) + 1, (1, 0))[:, :pruned]
    tokens, sizes = take(tokens, order), sizes.gather(1, order)
    if merged >= tokens.shape[1]:
        return tokens, sizes
    directions = F.normalize(tokens, dim=-1)
    likeness = directions[:, merged:] @ directions[:, :merged].transpose(-1, -2)
    likeness[..., 0] = -torch.inf  # CLS
    best, partner = likeness.max(dim=-1)
    index = partner[..., None].expand(-1, -1, tokens.shape[-1])
    tokens, sources = tokens.split([merged, tokens.shape[1] - merged], dim=1)
    tokens = tokens.scatter_reduce(1, index, sources, reduce="mean")
    return tokens, sizes[:, :merged].scatter_add(1, partner, sizes[:, merged:] * best.clamp(min=0))
