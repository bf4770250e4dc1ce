"""Merging similar tokens by bipartite soft matching, as in ToMe.

Token Merging: Your ViT But Faster (ICLR 2023), Sec. 3. Letters: B pictures, T tokens, R merged tokens, M patches in
raster order, N tokens that stay, D width, K width of the keys.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.reduction.reduced import Reduced, check_count, take

SHARE = 8  # merged behind a tower: an eighth of what is left each time, so that dissimilar tokens find better partners


class Matching(NamedTuple):
    """Which of every second token (set A, from the first on) is merged into which of the others (set B).

    Attributes:
        merged: (B, R) int64, places in A, the most similar first.
        partners: (B, R) int64, places in B.
        kept: (B, |A| - R) int64, places in A, ascending.
    """

    merged: Tensor
    partners: Tensor
    kept: Tensor

    def sum(self, values: Tensor) -> Tensor:
        """Add (B, T, any) values of merged tokens to their partners': (B, T - R, any), kept tokens of A, then B."""
        source, target = values[:, ::2], values[:, 1::2]
        index = self.partners[..., None].expand(-1, -1, values.shape[-1])
        target = target.scatter_add(1, index, take(source, self.merged))
        return torch.cat([take(source, self.kept), target], dim=1)

    def partners_of(self, values: Tensor) -> Tensor:
        """Order (B, T) values as :meth:`sum` does, where a merged token takes its partner's."""
        return torch.cat([values[:, ::2].gather(1, self.kept), values[:, 1::2]], dim=1)


@torch.no_grad()
def match(keys: Tensor, num_merged: int, keep_first: bool) -> Matching:
    """Match the R most similar pairs of a bipartite graph (ToMe, Sec. 3, steps 1 to 3).

    Tokens alternate between A and B; every token of A proposes the most similar one of B, and the R best of these
    edges are taken. Cosines of keys say what is similar. A choice has no gradient; what is merged by it has one.

    Args:
        keys: (B, T, K).
        num_merged: R, at most half of T, rounded up; one less where the first is kept.
        keep_first: whether the first token (CLS) is never merged.
    """
    keys = F.normalize(keys, dim=-1)
    scores = keys[:, ::2] @ keys[:, 1::2].transpose(-1, -2)  # [B, |A|, |B|]
    if keep_first:
        scores[:, 0] = -torch.inf
    best, partner = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    merged, kept = order[:, :num_merged], order[:, num_merged:].sort(dim=-1).values
    return Matching(merged, partner.gather(1, merged), kept)


def merge(matching: Matching, tokens: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Average matched tokens, weighted by how many patches each stands for (ToMe, Sec. 3, steps 4 and 5).

    Args:
        matching: of T tokens.
        tokens: (B, T, D).
        sizes: (B, T), patches that each token stands for.

    Returns:
        (B, T - R, D) tokens, those kept of A first, then B; and their (B, T - R) sizes.
    """
    both = matching.sum(torch.cat([tokens * sizes[..., None], sizes[..., None]], dim=-1))
    return both[..., :-1] / both[..., -1:], both[..., -1]


def merge_behind(patches: Tensor, keys: Tensor, num_tokens: int) -> Reduced:
    """Merge patch tokens behind a tower, step by step, until N are left; each stands where its last partner stood.

    Unlike the paper, which merges a little in every block, so that later blocks cost less, all happens at the end:
    every token has seen all others before it is merged, and the tower costs what it did. The matching and the weighted
    average are the paper's; keys are merged as tokens are.

    Args:
        patches: (B, M, D).
        keys: (B, M, K), averaged over heads, of the block that gave the tokens.
        num_tokens: N.
    """
    count = patches.shape[1]
    check_count(count, num_tokens)
    sizes = patches.new_ones(patches.shape[:2], dtype=torch.float32)
    places = torch.arange(count, device=patches.device).expand(len(patches), -1)
    both, width = torch.cat([patches, keys], dim=-1).float(), patches.shape[-1]
    while (left := both.shape[1]) > num_tokens:
        matching = match(both[..., width:], min(left - num_tokens, max(left // SHARE, 1)), keep_first=False)
        both, sizes = merge(matching, both, sizes)
        places = matching.partners_of(places)
    places, order = places.sort(dim=1)
    return Reduced(take(both[..., :width], order).to(patches.dtype), places)
