"""Segmenters on a set of pictures with masks: every pair read once, scores of each, pictures of the first ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sf_llava.data.images import CorruptImageError
from sf_llava.data.masks import MaskedSource
from sf_llava.segmentation.inference import Mode, predict
from sf_llava.segmentation.pictures import prediction_sheet
from sf_llava.segmentation.scoring import Scores, confusion_matrix
from sf_llava.segmentation.segmenter import Segmenter
from sf_llava.weights.fit import some

SHOWN = 6


@dataclass(frozen=True)
class Evaluation:
    """Scores of every segmenter, pictures of its predictions, and what was left out: pairs that cannot be used."""

    scores: list[Scores]
    sheets: list[Image.Image]
    left_out: list[str]


def evaluate(
    segmenters: Sequence[Segmenter],
    source: MaskedSource,
    mode: Mode = "slide",
    batch_size: int = 8,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Predict all masks of a set and score them in the masks' own size.

    Args:
        segmenters: of the same classes as the set.
        source: pictures with masks.
        mode: see :func:`~sf_llava.segmentation.inference.predict`.
        batch_size: pictures, and windows, at once.
        limit: so many of the first pairs alone.
        advance: called with the number of pairs just done.

    Raises:
        ValueError: other classes, or no pair can be used.
    """
    for segmenter in segmenters:
        check_classes(segmenter, source)
    matrices: list[list[np.ndarray]] = [[] for _ in segmenters]
    shown: list[list[tuple[Image.Image, np.ndarray, np.ndarray]]] = [[] for _ in segmenters]
    left_out = list(source.left_out)
    total = len(source) if limit is None else min(limit, len(source))
    picked = set(np.linspace(0, total - 1, SHOWN).astype(int).tolist())
    for start in range(0, total, batch_size):
        pairs = []
        for index in range(start, min(start + batch_size, total)):
            try:
                pairs.append((index, *source.load(index)))
            except CorruptImageError as error:
                left_out.append(str(error))
        for number, segmenter in enumerate(segmenters if pairs else ()):
            sizes = [labels.shape for _, _, labels in pairs]
            predictions = predict(segmenter, [image for _, image, _ in pairs], sizes, mode, batch_size)
            for (index, image, labels), predicted in zip(pairs, predictions, strict=True):
                matrices[number].append(confusion_matrix(labels, predicted, len(segmenter.class_names)))
                if index in picked:
                    shown[number].append((image, labels, predicted))
        advance(min(batch_size, total - start))
    if not any(matrix.any() for matrix in matrices[0]):
        raise ValueError(f"no pixel can be scored; left out: {some(left_out) or 'nothing, all pixels are ignored'}")
    scores = [Scores.of(one.class_names, found) for one, found in zip(segmenters, matrices, strict=True)]
    sheets = [
        prediction_sheet(rows or [(Image.new("RGB", (8, 8)), np.zeros((8, 8)), np.zeros((8, 8)))], one.class_names)
        for one, rows in zip(segmenters, shown, strict=True)
    ]
    return Evaluation(scores, sheets, left_out)


def check_classes(segmenter: Segmenter, source: MaskedSource) -> None:
    """Refuse a set of other classes than a segmenter was trained on.

    Raises:
        ValueError: their names differ.
    """
    ours, theirs = segmenter.class_names, tuple(source.class_names)
    if ours != theirs:
        raise ValueError(
            f"the segmenter was trained on {len(ours)} classes ({', '.join(ours[:4])}, ...), the data have "
            f"{len(theirs)} ({', '.join(theirs[:4])}, ...): name the same with `classes`"
        )
