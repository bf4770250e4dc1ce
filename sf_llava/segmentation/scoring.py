"""Scores of masks by mmsegmentation's protocol: one confusion matrix over the whole set, ignored pixels left out.

Letters: K pictures, L classes, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sf_llava.data.masks import IGNORED

RESAMPLES = 2000
CONFIDENCE = 0.95


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels by label (rows) and prediction (columns).

    Args:
        labels: whole numbers of any shape, 0 .. L - 1 or 255, which is not counted.
        predicted: 0 .. L - 1, of the same shape.
        num_classes: L.

    Returns:
        (L, L) int64.

    Raises:
        ValueError: other shapes or numbers.
    """
    if labels.shape != predicted.shape:
        raise ValueError(f"labels are {labels.shape}, predictions {predicted.shape}")
    counted = labels != IGNORED
    rows, columns = labels[counted].astype(np.int64), predicted[counted].astype(np.int64)
    if rows.size and (max(rows.max(), columns.max()) >= num_classes or min(rows.min(), columns.min()) < 0):
        raise ValueError(f"labels and predictions must be 0 to {num_classes - 1}, or {IGNORED} for labels")
    return np.bincount(rows * num_classes + columns, minlength=num_classes**2).reshape(num_classes, num_classes)


def mean_iou(hits: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Mean over classes of intersection over union, from sums of pixels (..., L), without those that never occur."""
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = hits / (predicted + labelled - hits)  # 0 / 0 where a class is neither labelled nor predicted
    return _mean_of_known(iou)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return total / known.sum(axis=-1)


@dataclass(frozen=True)
class Scores:
    """What was counted over a set.

    Attributes:
        class_names: L names.
        counts: (K, 3, L) pixels of each picture and class: rightly predicted, predicted, labelled.
        confusion: (L, L) of the set, labels by predictions.
    """

    class_names: tuple[str, ...]
    counts: np.ndarray
    confusion: np.ndarray

    @classmethod
    def of(cls, class_names: tuple[str, ...], matrices: Sequence[np.ndarray]) -> "Scores":
        """Sum up the confusion matrices of all pictures."""
        counts = np.stack([[matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)] for matrix in matrices])
        return cls(class_names, counts, np.sum(matrices, axis=0))

    @property
    def miou(self) -> float:
        """Mean intersection over union of the set."""
        return float(mean_iou(*self.counts.sum(axis=0)))

    def resampled(self, seed: int = 0) -> np.ndarray:
        """Give the mean IoU of R sets drawn from the pictures with replacement, the same draws for every model (R,)."""
        number = len(self.counts)
        draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
        sums = np.tensordot(draws, self.counts, axes=1)  # [R, 3, L]
        return mean_iou(sums[:, 0], sums[:, 1], sums[:, 2])

    def interval(self) -> tuple[float, float]:
        """Bound the mean IoU with 95 % confidence; too narrow where pictures are alike, as frames of one drive are."""
        return _percentiles(self.resampled())

    def difference(self, other: "Scores") -> tuple[float, float, float]:
        """Give this mean IoU minus another's on the same pictures, and its 95 % interval, paired.

        Raises:
            ValueError: the other has other pictures.
        """
        if not np.array_equal(self.counts[:, 2], other.counts[:, 2]):
            raise ValueError("two models are compared on the same pictures with the same masks alone")
        return self.miou - other.miou, *_percentiles(self.resampled() - other.resampled())

    def to_dict(self) -> dict[str, Any]:
        """All scores by mmsegmentation's names, as fractions; None for classes that do not occur."""
        hits, predicted, labelled = self.counts.sum(axis=0).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            iou, accuracy = hits / (predicted + labelled - hits), hits / labelled
            overall = hits.sum() / labelled.sum()
        return {
            "mIoU": _known(self.miou),
            "mIoU_interval": [_known(bound) for bound in self.interval()],
            "aAcc": _known(overall),
            "mAcc": _known(_mean_of_known(accuracy)),
            "pictures": len(self.counts),
            "classes": [
                {"name": name, "IoU": _known(iou[i]), "Acc": _known(accuracy[i]), "pixels": int(labelled[i])}
                for i, name in enumerate(self.class_names)
            ],
            "confusion": self.confusion.tolist(),
        }


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[~np.isnan(values)], [tail, 1 - tail])
    return float(low), float(high)


def _known(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
