"""Questions of one sort: what is there is there, nothing asked twice is unbalanced, kinds are what they are called."""

import re
from collections import Counter

import numpy as np
import pytest

from sf_llava.mini.questions.sets import draw_picture
from sf_llava.scienceqa.data import open_scienceqa
from sf_llava.scienceqa.problems import kind_of


def scene_of(problem):
    return draw_picture(int(problem.id.split("-")[2]), "test")


def test_half_of_what_is_asked_for_is_there():
    data = open_scienceqa("mini-exists:400")
    likely = 0
    for problem in data.problems:
        colour, shape = re.fullmatch(r"Is there a (\w+) (\w+) in the picture\?", problem.question).groups()
        things = scene_of(problem).objects
        there = any((thing.colour, thing.shape) == (colour, shape) for thing in things)
        assert problem.choices[problem.answer] == ("yes" if there else "no")
        parts = colour in {thing.colour for thing in things} and shape in {thing.shape for thing in things}
        likely += not there and parts
    assert Counter(problem.answer for problem in data.problems) == {0: 200, 1: 200}
    assert 20 < likely < 150  # a thing that is not there, of parts that are
    assert np.array_equal(np.asarray(data.load_image(data.problems[-1])), scene_of(data.problems[-1]).image)


@pytest.mark.parametrize(("name", "kind"), [("mini-relations", "relation"), ("mini-counting", "count")])
def test_a_suite_asks_one_kind_in_the_words_of_mini(name, kind):
    data = open_scienceqa(f"{name}:200")
    assert {kind_of(problem.id) for problem in data.problems} == {kind} and len(data.problems) == 200
    known = {problem.id: problem for problem in open_scienceqa("mini:1200").problems}
    shared = [problem for problem in data.problems if problem.id in known]
    assert len(shared) > 3 and all(problem == known[problem.id] for problem in shared)


def test_their_sizes_are_read_as_those_of_mini():
    with pytest.raises(ValueError, match="expected mini or mini:N"):
        open_scienceqa("mini-exists:many")
    assert len(open_scienceqa("mini-relations:3", "validation").problems) == 3
