"""Scores are what counting by hand gives."""

import numpy as np
import pytest

from sf_llava.segmentation.scoring import Scores, confusion_matrix

NAMES = ("a", "b", "c", "never")


def drawn(seed, shape=(7, 9)):
    """Labels, some not counted, and predictions that are often right; the last class never occurs."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 3, shape).astype(np.uint8)
    predicted = np.where(draws.random(shape) < 0.6, labels, draws.integers(0, 3, shape)).astype(np.uint8)
    labels[draws.random(shape) < 0.2] = 255
    return labels, predicted


def by_hand(pairs):
    """IoU, accuracy by class and accuracy of all pixels, by sets of pixels."""
    iou, accuracy, right, total = [], [], 0, 0
    for number in range(len(NAMES)):
        hit = union = labelled = 0
        for labels, predicted in pairs:
            for y in range(labels.shape[0]):
                for x in range(labels.shape[1]):
                    if labels[y, x] != 255:
                        is_label, is_predicted = labels[y, x] == number, predicted[y, x] == number
                        hit += is_label and is_predicted
                        union += is_label or is_predicted
                        labelled += is_label
        iou.append(hit / union if union else None)
        accuracy.append(hit / labelled if labelled else None)
        right, total = right + hit, total + labelled
    return iou, accuracy, right / total


def scores_of(pairs):
    return Scores.of(NAMES, [confusion_matrix(*pair, len(NAMES)) for pair in pairs])


def test_scores_of_a_set_are_those_of_brute_force():
    pairs = [drawn(seed) for seed in range(4)]
    iou, accuracy, overall = by_hand(pairs)
    values = scores_of(pairs).to_dict()
    known = [value for value in iou if value is not None]
    assert iou[3] is None and len(known) == 3
    assert values["mIoU"] == pytest.approx(np.mean(known))
    assert values["mAcc"] == pytest.approx(np.mean(accuracy[:3]))
    assert values["aAcc"] == pytest.approx(overall)
    assert [row["IoU"] for row in values["classes"]] == pytest.approx(iou)
    assert np.array(values["confusion"]).sum() == sum((labels != 255).sum() for labels, _ in pairs)


def test_rows_of_the_matrix_are_labels():
    matrix = confusion_matrix(np.array([0, 0, 1, 255]), np.array([0, 1, 1, 0]), 2)
    assert matrix.tolist() == [[1, 1], [0, 1]]


def test_other_shapes_and_numbers_are_refused():
    with pytest.raises(ValueError, match="labels are"):
        confusion_matrix(np.zeros((2, 2)), np.zeros((2, 3)), 2)
    with pytest.raises(ValueError, match="0 to 1"):
        confusion_matrix(np.array([0, 2]), np.array([0, 1]), 2)


def test_intervals_hold_the_score_and_pairs_are_resampled_together():
    pairs = [drawn(seed) for seed in range(30)]
    scores = scores_of(pairs)
    low, high = scores.interval()
    assert low < scores.miou < high and scores.interval() == (low, high)
    assert scores.difference(scores) == (0, 0, 0)
    better = scores_of([(labels, np.where(labels == 255, 0, labels)) for labels, _ in pairs])
    gap, gap_low, gap_high = better.difference(scores)
    assert gap == pytest.approx(1 - scores.miou) and 0 < gap_low <= gap <= gap_high
    with pytest.raises(ValueError, match="same pictures"):
        scores.difference(scores_of([drawn(seed) for seed in range(30, 60)]))
