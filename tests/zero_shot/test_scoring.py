"""Scores agree with hand-made matrices and with brute force, ties included."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from sf_llava.zero_shot.scoring import (
    commonest_disagreements,
    label_ranks,
    per_class_accuracy,
    predicted_classes,
    top_k_correct,
    zero_shot_classifier,
)


def brute_force_rank(scores: list[float], label: int) -> int:
    order = sorted(range(len(scores)), key=lambda c: (-scores[c], c))
    return order.index(label)


def test_ranks_of_a_hand_made_matrix():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4], [0.3, 0.2, 0.9]])
    assert label_ranks(scores, torch.tensor([1, 1, 0])).tolist() == [0, 2, 1]
    assert top_k_correct(scores, torch.tensor([1, 1, 0]), 1).tolist() == [True, False, False]
    assert top_k_correct(scores, torch.tensor([1, 1, 0]), 2).tolist() == [True, False, True]


def test_ranks_and_predictions_agree_with_sorting_on_scores_full_of_ties():
    generator = torch.Generator().manual_seed(0)
    for num_classes in (1, 2, 3, 7, 20):
        scores = torch.randint(0, 4, (200, num_classes), generator=generator).float()
        labels = torch.randint(0, num_classes, (200,), generator=generator)
        expected = [brute_force_rank(row.tolist(), int(label)) for row, label in zip(scores, labels, strict=True)]
        assert label_ranks(scores, labels).tolist() == expected
        assert ((predicted_classes(scores) == labels) == top_k_correct(scores, labels, 1)).all()


def test_a_model_that_says_nothing_is_not_right_everywhere():
    assert top_k_correct(torch.zeros(8, 4), torch.arange(8) % 4, 1).float().mean() == 0.25


def test_half_precision_scores_rank_like_their_values():
    scores = torch.tensor([[0.1, 0.3, 0.2]], dtype=torch.bfloat16)
    assert label_ranks(scores, torch.tensor([2])).tolist() == [1]


def test_nan_scores_and_labels_out_of_range_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        label_ranks(torch.tensor([[float("nan"), 1.0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="labels run from 0 to 2"):
        label_ranks(torch.zeros(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"expected scores \(N, C\)"):
        label_ranks(torch.zeros(2, 2), torch.tensor([0]))


def test_classifier_is_the_normalised_mean_of_normalised_embeddings():
    table = {"a red cat": [3.0, 0.0], "one cat": [0.0, 0.5], "a red {dog}": [1.0, 1.0], "one {dog}": [-1.0, 1.0]}
    asked: list[list[str]] = []

    def encode_text(texts: list[str]) -> torch.Tensor:
        asked.append(texts)
        return torch.tensor([table[text] for text in texts])

    done = []
    names, templates = ["cat", "{dog}"], ["a red {}", "one {}"]
    rows = zero_shot_classifier(encode_text, names, templates, classes_at_once=1, advance=done.append)
    root = 0.5**0.5
    torch.testing.assert_close(rows, torch.tensor([[root, root], [0.0, 1.0]]))
    assert asked == [["a red cat", "one cat"], ["a red {dog}", "one {dog}"]] and done == [1, 1]


def test_classifier_does_not_depend_on_how_many_classes_go_at_once():
    generator = torch.Generator().manual_seed(1)
    table: dict[str, torch.Tensor] = {}

    def encode_text(texts: list[str]) -> torch.Tensor:
        return torch.stack([table.setdefault(t, torch.randn(6, generator=generator)) for t in texts])

    names, templates = [f"thing {i}" for i in range(7)], ["a {}.", "the {}.", "{}"]
    reference = zero_shot_classifier(encode_text, names, templates, classes_at_once=7)
    torch.testing.assert_close(zero_shot_classifier(encode_text, names, templates, classes_at_once=3), reference)
    by_hand = F.normalize(sum(F.normalize(table[t.replace("{}", names[4])], dim=0) for t in templates), dim=0)
    torch.testing.assert_close(reference[4], by_hand)


@pytest.mark.parametrize("templates", [["no place"], ["{} and {}"]])
def test_a_template_needs_exactly_one_place_for_the_name(templates):
    with pytest.raises(ValueError, match="once"):
        zero_shot_classifier(lambda texts: torch.zeros(len(texts), 2), ["cat"], templates)


def test_per_class_accuracy_by_hand():
    labels, predictions = torch.tensor([0, 0, 2, 2, 2]), torch.tensor([0, 1, 2, 2, 0])
    accuracy, counts = per_class_accuracy(predictions == labels, labels, num_classes=3)
    assert counts.tolist() == [2, 0, 3] and accuracy[0] == 0.5 and accuracy[1].isnan()
    assert accuracy[2] == pytest.approx(2 / 3)


def test_commonest_disagreements_agree_with_counting():
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randint(0, 5, (2, 400), generator=generator)
    counted = Counter((a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True) if a != b)
    expected = [(*pair, count) for pair, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))]
    assert commonest_disagreements(first, second, 100) == expected
    assert commonest_disagreements(first, second, 3) == expected[:3]
    assert commonest_disagreements(first, first, 3) == []
