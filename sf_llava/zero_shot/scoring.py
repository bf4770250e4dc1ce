"""Classification scores as pure functions, and the zero-shot classifier that CLIP builds from class names.

Letters: N images, C classes, E embedding width, T templates.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def zero_shot_classifier(
    encode_text: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    classes_at_once: int = 16,
    advance: Callable[[int], None] = lambda classes: None,
) -> Tensor:
    """Build one unit vector a class: the mean of the normalised embeddings of its prompts, normalised again.

    Args:
        encode_text: maps a list of texts to (len, E) embeddings, normalised or not.
        class_names: C names, put where a template says ``{}``.
        templates: T texts, each with one ``{}``.
        classes_at_once: how many classes go to ``encode_text`` in one call (times T texts).
        advance: called with the number of classes done after each call, for a progress bar.

    Returns:
        (C, E) float32.
    """
    if not class_names or not templates:
        raise ValueError(f"expected class names and templates, got {len(class_names)} and {len(templates)}")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"a template must hold {{}} once, for the class name; got {template!r}")
    rows = []
    for start in range(0, len(class_names), classes_at_once):
        names = class_names[start : start + classes_at_once]
        # str.replace, since a name may hold braces of its own.
        texts = [template.replace("{}", name) for name in names for template in templates]
        embeds = F.normalize(encode_text(texts).float(), dim=-1)  # [classes * T, E]
        rows.append(F.normalize(embeds.unflatten(0, (len(names), len(templates))).mean(dim=1), dim=-1))
        advance(len(names))
    return torch.cat(rows)


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Say how many classes stand before the right one, 0 being first.

    Ties are broken by class number: of classes with equal scores the smaller number stands first. A model that
    gives every class the same score is thus right on class 0 alone, not everywhere.

    Args:
        scores: (N, C), larger is likelier; any floating dtype.
        labels: (N,) right classes, 0 .. C-1.

    Returns:
        (N,) int64.

    Raises:
        ValueError: shapes or labels do not fit, or scores hold NaN (no order would be right).
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"expected scores (N, C) and labels (N,), got {tuple(scores.shape)}, {tuple(labels.shape)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, but there are {scores.shape[1]} classes")
    if torch.isnan(scores).any():
        raise ValueError("scores hold NaN; the model's embeddings are broken (try a wider dtype)")
    right = scores.gather(1, labels[:, None])  # [N, 1]
    earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]  # [N, C]
    return ((scores > right) | ((scores == right) & earlier)).sum(dim=1)


def top_k_correct(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Say for each image whether the right class is among the first ``k`` (ties as in ``label_ranks``).

    Returns:
        (N,) bool.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return label_ranks(scores, labels) < k


def predicted_classes(scores: Tensor) -> Tensor:
    """Name the likeliest class of each row of (N, C) scores, the smallest number among equals; (N,) int64."""
    best = scores == scores.max(dim=1, keepdim=True).values  # [N, C]
    return best.int().argmax(dim=1)


def per_class_accuracy(correct: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Average ``correct`` (N,) within each class.

    Returns:
        (C,) float64 accuracies, NaN where a class has no image, and (C,) int64 image counts.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels, weights=correct.double(), minlength=num_classes)
    return right / counts, counts


def commonest_disagreements(first: Tensor, second: Tensor, num_pairs: int) -> list[tuple[int, int, int]]:
    """List where two models differ most: (class by the first, class by the second, number of images).

    Args:
        first, second: (N,) predicted classes of the same images.
        num_pairs: how many pairs to list, most images first; pairs with equally many in the order of their classes.
    """
    if first.shape != second.shape:
        raise ValueError(f"expected two lists of one length, got {tuple(first.shape)} and {tuple(second.shape)}")
    differ = torch.stack([first, second], dim=1)[first != second]  # [M, 2]
    pairs, counts = torch.unique(differ, dim=0, return_counts=True)  # sorted by class
    order = torch.argsort(counts, descending=True, stable=True)[:num_pairs]
    return [(*pairs[i].tolist(), int(counts[i])) for i in order]
