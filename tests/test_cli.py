"""Flags: which numbers they take."""

import argparse
import math

import pytest

from sf_llava import cli


@pytest.mark.parametrize(
    ("number", "good", "bad"),
    [
        (cli.POSITIVE_INT, {"1": 1, "007": 7}, ["0", "-1", "1.5", "1e3", "nan", "inf", "", "x", "9" * 30, "9" * 5000]),
        (cli.COUNT, {"0": 0}, ["-1", "nan"]),
        (cli.SEED, {"0": 0, "4294967295": 2**32 - 1}, ["-1", "4294967296"]),
        (cli.POSITIVE, {"1e-300": 1e-300, "2": 2.0}, ["0", "-0.0", "-1", "nan", "inf", "-inf", "1e999", "one"]),
        (cli.NON_NEGATIVE, {"0": 0.0}, ["-1e-9", "nan", "inf"]),
        (cli.FRACTION, {"0": 0.0, "1": 1.0, "0.5": 0.5}, ["1.1", "-0.1", "nan"]),
    ],
    ids=str,
)
def test_a_flag_takes_the_numbers_of_its_kind_alone(number, good, bad):
    assert {text: number(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected a"):
            number(text)


def test_values_from_elsewhere_are_held_to_the_same_bounds():
    assert cli.POSITIVE.admits(3) and cli.POSITIVE_INT.admits(3)
    for value in (True, "3", None, math.nan, 3.0):
        assert not cli.POSITIVE_INT.admits(value)
