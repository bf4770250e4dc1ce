"""Reductions that choose patch tokens by attention or by diversity, as LLaVAs are given fewer tokens without training.

Letters: B pictures, M patches in raster order, N tokens that stay, D width, K width of the keys, E width of features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.reduction.reduced import Reduced, check_count, others, take

CONTEXTUAL = 10 / 64  # VisionZip's share of merged tokens: 10 of 64, 20 of 128, 30 of 192
NEIGHBOURS = 32 / 576  # PruMerge's share of the patches that are added to a token


def zip_tokens(patches: Tensor, keys: Tensor, attention: Tensor, num_tokens: int) -> Reduced:
    """Keep the tokens that get most attention, merge the others into a few (VisionZip, CVPR 2025, arXiv 2412.04467).

    Dominant tokens are those with the most attention. Of the others every so-many-th is a target; the rest go to the
    target of the most similar key. As in the official code, the mean of what goes to a target is added to it.

    Unlike it, all tokens are in raster order.

    Args:
        patches: (B, M, D).
        keys: (B, M, K), averaged over heads, of the block that gave the tokens.
        attention: (B, M) that each patch gets from CLS there, or from all patches where there is no CLS.
        num_tokens: N.
    """
    count = patches.shape[1]
    check_count(count, num_tokens)
    num_targets = min(round(CONTEXTUAL * num_tokens), count - num_tokens)
    dominant = attention.topk(num_tokens - num_targets, dim=1).indices
    if not num_targets:
        places = dominant.sort(dim=1).values
        return Reduced(take(patches, places), places)
    left = others(dominant, count)  # [B, L]
    step = left.shape[1] // num_targets
    chosen = torch.arange(num_targets, device=patches.device) * step
    rest = others(chosen[None], left.shape[1])[0]
    targets, rest = left[:, chosen], left[:, rest]
    directions = F.normalize(keys.float(), dim=-1)
    nearest = (take(directions, rest) @ take(directions, targets).transpose(-1, -2)).argmax(dim=-1)
    goes = F.one_hot(nearest, num_targets).to(patches.dtype)  # [B, rest, targets]
    means = goes.transpose(-1, -2) @ take(patches, rest) / goes.sum(dim=1).clamp(min=1)[..., None]
    tokens = torch.cat([take(patches, dominant), take(patches, targets) + means], dim=1)
    places, order = torch.cat([dominant, targets], dim=1).sort(dim=1)
    return Reduced(take(tokens, order), places)


def pick_diverse(patches: Tensor, features: Tensor, num_tokens: int) -> Reduced:
    """Pick tokens that are far from each other (DivPrune, CVPR 2025, arXiv 2503.02175: max-min diversity, greedily).

    The first is the one whose nearest neighbour is farthest, each next one the farthest from all picked before; one
    less the cosine of features is the distance.

    Args:
        patches: (B, M, D).
        features: (B, M, E), the tokens behind the LLaVA's projector, as in the paper.
        num_tokens: N.
    """
    check_count(patches.shape[1], num_tokens)
    directions = F.normalize(features.float(), dim=-1)
    distances = 1 - directions @ directions.transpose(-1, -2)  # [B, M, M]
    apart = distances + torch.diag_embed(torch.full_like(distances[..., 0], torch.inf))
    picked = [apart.amin(dim=-1).argmax(dim=1, keepdim=True)]
    nearest = torch.full_like(distances[..., 0], torch.inf)
    for _ in range(num_tokens - 1):
        nearest = torch.minimum(nearest, take(distances, picked[-1])[:, 0]).scatter(1, picked[-1], -torch.inf)
        picked.append(nearest.argmax(dim=1, keepdim=True))
    places = torch.cat(picked, dim=1).sort(dim=1).values
    return Reduced(take(patches, places), places)


def prune_and_merge(patches: Tensor, keys: Tensor, attention: Tensor, num_tokens: int) -> Reduced:
    """Keep the tokens that CLS looks at, add its like to each, and one token for the rest (PruMerge, ICCV 2025).

    arXiv 2403.15388, as in its official code of March 2024.

    To each of the N - 1 tokens with the most attention those of the most similar keys are added, weighted by their
    attention; one more token is the sum of all that are not kept, weighted likewise.

    Unlike it, N is given instead of found by the quartiles of the attention, and the tokens are in raster order, the
    one for the rest where most of its attention is.

    Args:
        patches: (B, M, D).
        keys: (B, M, K), all heads beside each other, of the block behind the tokens.
        attention: (B, M) from CLS to the patches there, all heads as one.
        num_tokens: N.
    """
    count = patches.shape[1]
    check_count(count, num_tokens)
    kept = attention.topk(num_tokens - 1, dim=1).indices
    dropped = attention.scatter(1, kept, 0.0)
    directions = F.normalize(keys.float(), dim=-1)
    likeness = take(directions, kept) @ directions.transpose(-1, -2)  # [B, N - 1, M]
    likeness = likeness.scatter(2, kept[..., None], -torch.inf)
    near = likeness.topk(min(max(round(NEIGHBOURS * count), 1), count - 1), dim=-1).indices
    weights = torch.zeros_like(likeness).scatter(
        2, near, attention.float()[:, None].expand_as(likeness).gather(2, near)
    )
    weights = torch.cat([weights, dropped.float()[:, None]], dim=1).to(patches.dtype)  # [B, N, M]
    merged = weights @ patches
    tokens = torch.cat([take(patches, kept) + merged[:, :-1], merged[:, -1:]], dim=1)
    places, order = torch.cat([kept, dropped.argmax(dim=1, keepdim=True)], dim=1).sort(dim=1)
    return Reduced(take(tokens, order), places)
