"""Intervals agree with published values, simulation and plain resampling."""

import math

import numpy as np
import pytest

from sf_llava.measure.intervals import paired_bootstrap_interval, paired_difference_interval, wilson_interval


def test_wilson_interval_agrees_with_worked_examples():
    # Newcombe 1998, Table I, method 3: 81/263 and 15/148.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_wilson_interval_reaches_zero_and_one_only_at_the_ends():
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    low, high = wilson_interval(20, 20)
    assert high == 1.0 and low == pytest.approx(1 - 0.1611, abs=5e-5)
    assert wilson_interval(1, 20)[0] > 0 and wilson_interval(19, 20)[1] < 1


def test_wilson_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    bounds = {k: wilson_interval(k, 200) for k in range(201)}
    hits = [bounds[k][0] <= 0.9 <= bounds[k][1] for k in rng.binomial(200, 0.9, size=4000)]
    assert 0.935 < np.mean(hits) < 0.965


@pytest.mark.parametrize(("successes", "total"), [(1, 0), (-1, 4), (5, 4)])
def test_impossible_counts_are_refused(successes, total):
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, total)


def test_difference_interval_by_hand():
    first, second = np.array([1, 1, 0, 1, 1, 0, 1, 1]), np.array([1, 0, 0, 1, 0, 1, 1, 1])
    mean, low, high = paired_difference_interval(first, second)
    wins, losses, total = 2 + 0.5, 1 + 0.5, 8 + 2
    centre = (wins - losses) / total
    error = 1.959964 * math.sqrt(wins + losses - (wins - losses) ** 2 / total) / total
    assert (mean, low, high) == pytest.approx((0.125, centre - error, centre + error), abs=1e-6)


def test_systems_that_never_differed_may_still_differ():
    mean, low, high = paired_difference_interval(np.ones(1), np.ones(1))
    assert mean == 0 and low < -0.5 and high > 0.5
    _, low, high = paired_difference_interval(np.ones(1000), np.ones(1000))
    assert -0.004 < low < 0 < high < 0.004


@pytest.mark.parametrize(("total", "both"), [(30, 0.9), (2000, 0.9), (2000, 0.995)])
def test_difference_interval_covers_the_truth_about_as_often_as_it_says(total, both):
    # Pairs agree with probability `both`; of the rest the first system wins two in three.
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(1500):
        wins, losses, _ = rng.multinomial(total, [(1 - both) * 2 / 3, (1 - both) / 3, both])
        first, second = np.zeros(total), np.zeros(total)
        first[:wins], second[wins : wins + losses] = 1, 1
        _, low, high = paired_difference_interval(first, second)
        hits.append(low <= (1 - both) / 3 <= high)
    assert 0.93 < np.mean(hits) < 0.995


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(1)
    first = rng.random(2000) < 0.7
    second = first & (rng.random(2000) < 0.98)
    shuffled = rng.permutation(second)
    _, low, high = paired_difference_interval(first, second)
    _, low_unpaired, high_unpaired = paired_difference_interval(first, shuffled)
    assert high - low < 0.5 * (high_unpaired - low_unpaired)


def test_bootstrap_of_a_ratio_agrees_with_resampling_item_by_item():
    rng = np.random.default_rng(2)
    first, second = (rng.random(300) < 0.6).astype(float), (rng.random(300) < 0.8).astype(float)
    low, high = paired_bootstrap_interval(first, second, lambda a, b: a / b, num_resamples=20000)
    draws = rng.integers(0, 300, size=(20000, 300))
    expected = np.quantile(first[draws].mean(1) / second[draws].mean(1), [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), abs=0.004)


def test_bootstrap_is_reproducible_and_leaves_out_undefined_ratios():
    zeros = np.zeros(10)
    assert all(math.isnan(v) for v in paired_bootstrap_interval(np.ones(10), zeros, lambda a, b: a / b))
    scores = np.arange(10.0)
    assert paired_bootstrap_interval(scores, zeros, lambda a, b: a - b) == paired_bootstrap_interval(
        scores, zeros, lambda a, b: a - b
    )


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="one length"):
        paired_difference_interval(np.ones(3), np.ones(4))
