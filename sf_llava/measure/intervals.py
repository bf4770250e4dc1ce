"""Uncertainty of scores: an interval for a proportion, and intervals for two systems on the same items."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np


def wilson_interval(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Bound a proportion by Wilson's score interval (it stays in [0, 1], also at 0 and at ``total`` successes).

    Args:
        successes: number of right answers, 0 .. ``total``.
        total: number of trials, at least 1.
        confidence: coverage, between 0 and 1.

    Returns:
        (low, high) as fractions.
    """
    if total < 1 or not 0 <= successes <= total:
        raise ValueError(f"expected 0 <= successes <= total and total >= 1, got {successes} of {total}")
    z = _quantile(confidence)
    proportion = successes / total
    spread = 1 + z * z / total
    centre = (proportion + z * z / (2 * total)) / spread
    half_width = z / spread * math.sqrt(proportion * (1 - proportion) / total + z * z / (4 * total * total))
    # At the ends the bound is 0 or 1 exactly; rounding would leave it a hair off.
    low = 0.0 if successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if successes == total else min(1.0, centre + half_width)
    return low, high


def paired_difference_interval(
    first: np.ndarray, second: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Bound the mean of ``first - second`` over the same items (Agresti and Min 2005).

    The normal interval after two made-up items: half a win for each, and one tie. Without them, two systems that
    happened to agree on a few items would get an interval of no width.

    Args:
        first, second: (N,) scores of two systems on the same items, within [0, 1] (0 wrong, 1 right).
        confidence: coverage, between 0 and 1.

    Returns:
        (mean difference, low, high); the mean is that of the items themselves.
    """
    first, second = _pair(first, second)
    differences = first - second
    if np.abs(differences).max() > 1:
        raise ValueError(f"scores must lie within [0, 1], but two differ by {np.abs(differences).max()}")
    total = len(differences) + 2
    centre = differences.sum() / total
    variance = ((differences**2).sum() + 1) / total - centre**2
    half_width = _quantile(confidence) * math.sqrt(variance / total)
    return float(differences.mean()), max(-1.0, float(centre - half_width)), min(1.0, float(centre + half_width))


def paired_bootstrap_interval(
    first: np.ndarray,
    second: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bound a function of two means (their ratio, say) by resampling items, both systems together.

    Args:
        first, second: (N,) scores of two systems on the same items.
        statistic: maps (R,) means of ``first`` and (R,) means of ``second`` to (R,) values.
        confidence: coverage, between 0 and 1.
        num_resamples: R, how often the N items are drawn anew with replacement.
        seed: makes the answer reproducible.

    Returns:
        (low, high), the percentiles of the resampled statistic; resamples where it is not finite are left out
        (``nan`` if none is left).
    """
    first, second = _pair(first, second)
    # Equal pairs are interchangeable, so drawing how often each distinct pair occurs is the same as drawing items.
    pairs, counts = np.unique(np.stack([first, second], axis=1), axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(first), counts / counts.sum(), size=num_resamples)
    means = draws @ pairs / len(first)  # [R, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.asarray(statistic(means[:, 0], means[:, 1]), dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) == 0:
        raise ValueError(f"paired scores must be two non-empty lists of one length, got {first.shape}, {second.shape}")
    return first, second


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
