"""Recall at k between images and their captions, as CLIP reports it; pure functions over embeddings.

Scores are cosines in float32, taken in blocks: the whole matrix (25,000 captions x 5,000 images, say) never exists.
Ties: of equal scores the smaller index stands first, so a model that gives everything the same score is at chance.
Letters: M images, N captions, E embedding.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_SCORES = 2**20  # scores that exist at a time, 4 MiB in float32


def caption_ranks(
    image_embeds: Tensor, text_embeds: Tensor, image_of: Tensor, *, block_scores: int = BLOCK_SCORES
) -> Tensor:
    """Say for each image how many captions stand before the first of its own (image-to-text; 0 is best).

    Args:
        image_embeds: (M, E), normalised or not.
        text_embeds: (N, E).
        image_of: (N,) the image each caption belongs to, 0 .. M - 1; every image has at least one.
        block_scores: how many scores may exist at a time.

    Returns:
        (M,) int64.

    Raises:
        ValueError: shapes or indices do not fit, an image without caption, or embeddings that are not finite.
    """
    images, texts, image_of = _checked(image_embeds, text_embeds, image_of)

    def rank(scores: Tensor, rows: Tensor) -> Tensor:
        own = image_of[None] == rows[:, None]  # [b, N]
        best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        return _rank(scores, best, (own & (scores == best)).int().argmax(dim=1))

    return _blockwise(images, texts, rank, block_scores)


def image_ranks(
    image_embeds: Tensor, text_embeds: Tensor, image_of: Tensor, *, block_scores: int = BLOCK_SCORES
) -> Tensor:
    """Say for each caption how many images stand before its own (text-to-image; 0 is best).

    Args as in :func:`caption_ranks`.

    Returns:
        (N,) int64.
    """
    images, texts, image_of = _checked(image_embeds, text_embeds, image_of)

    def rank(scores: Tensor, rows: Tensor) -> Tensor:
        own = image_of[rows]
        return _rank(scores, scores.gather(1, own[:, None]), own)

    return _blockwise(texts, images, rank, block_scores)


def recall_at_k(ranks: Tensor, k: int) -> Tensor:
    """Say for each query whether what it looks for is among the first ``k``: (Q,) ranks to (Q,) bool."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return ranks < k


def sum_by_image(values: Tensor, image_of: Tensor, num_images: int) -> Tensor:
    """Add up what belongs to one image: (N,) values of captions to (M,) float64.

    Captions of one image are no independent trials; intervals resample images, with these sums.
    """
    return torch.bincount(image_of, weights=values.double(), minlength=num_images)


def _rank(scores: Tensor, target: Tensor, index: Tensor) -> Tensor:
    """Count columns of (b, C) scores before column ``index`` (b,) with score ``target`` (b, 1)."""
    earlier = torch.arange(scores.shape[1], device=scores.device) < index[:, None]
    return ((scores > target) | ((scores == target) & earlier)).sum(dim=1)


def _blockwise(queries: Tensor, gallery: Tensor, rank: Callable[[Tensor, Tensor], Tensor], block_scores: int) -> Tensor:
    def blocks() -> Iterator[Tensor]:
        for rows in torch.arange(len(queries), device=queries.device).split(max(1, block_scores // len(gallery))):
            yield rank(queries[rows] @ gallery.T, rows)

    return torch.cat(list(blocks()))


def _checked(image_embeds: Tensor, text_embeds: Tensor, image_of: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shapes = tuple(image_embeds.shape), tuple(text_embeds.shape), tuple(image_of.shape)
    if image_embeds.ndim != 2 or text_embeds.ndim != 2 or shapes[0][1] != shapes[1][1] or shapes[2] != shapes[1][:1]:
        raise ValueError(f"expected image_embeds (M, E), text_embeds (N, E) and image_of (N,), got {shapes}")
    if not len(image_embeds) or not len(text_embeds):
        raise ValueError(f"recall needs images and captions, got {len(image_embeds)} and {len(text_embeds)}")
    if not 0 <= int(image_of.min()) <= int(image_of.max()) < len(image_embeds):
        raise ValueError(
            f"captions name images {int(image_of.min())} to {int(image_of.max())}, but there are {len(image_embeds)}"
        )
    without = (torch.bincount(image_of, minlength=len(image_embeds)) == 0).nonzero().flatten().tolist()
    if without:
        raise ValueError(f"{len(without)} images have no caption, image {without[0]} first: leave them out")
    embeds = [F.normalize(embeds.float(), dim=-1) for embeds in (image_embeds, text_embeds)]
    for name, values in zip(("image", "text"), embeds, strict=True):
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} embeddings hold NaN or infinity; the encoder is broken (try a wider dtype)")
    return embeds[0], embeds[1], image_of.to(image_embeds.device)
