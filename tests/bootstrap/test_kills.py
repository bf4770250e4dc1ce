"""Runs killed at random moments; ``python tests/helpers/kill_runs.py --kills 40`` is the same with more of them."""

import random

import pytest
from kill_runs import compare, make_runs


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_as_if_nothing_had_happened(tmp_path):
    runs = make_runs(tmp_path)
    for name in ("bootstrap", "aligned continuation"):
        compare(runs[name], kills=2, draws=random.Random(0))
