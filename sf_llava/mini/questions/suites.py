"""Questions of the drawn world of one sort each: what is there (as POPE asks), relations (as GQA asks), counting."""

import itertools
from collections.abc import Iterator

from sf_llava.mini.questions.sets import draw_picture, picture_problems, read_pictures, read_size
from sf_llava.mini.world.canvas import Draws
from sf_llava.mini.world.scenes import SPLITS, WORLD_SEED
from sf_llava.mini.world.shapes import COLOUR_NAMES, SHAPES
from sf_llava.scienceqa.problems import Problem, ScienceQA, kind_of

_EXISTS = 4  # beside the other sorts of questions in the keys of random numbers


def open_kind(kind: str, split: str, size: str, seed: int = WORLD_SEED) -> ScienceQA:
    """Ask the first ``size`` questions of one kind, a picture each, in the words of ``mini``."""
    problems = (
        problem
        for index in itertools.count()
        for problem in picture_problems(draw_picture(index, split, seed), index, split, seed=seed)
        if kind_of(problem.id) == kind
    )
    return _take(problems, split, size, seed)


def open_exists(split: str, size: str, seed: int = WORLD_SEED) -> ScienceQA:
    """Ask whether things are there: every picture with shapes twice, once of one that is, once of one that is not.

    Half of those that are not there have a colour and a shape that are, of two things.
    """
    return _take(_exists(split, seed), split, size, seed)


def _exists(split: str, seed: int) -> Iterator[Problem]:
    number = 0
    for index in itertools.count():
        things = [(thing.colour, thing.shape) for thing in draw_picture(index, split, seed).objects]
        things = [thing for thing in things if thing[1] in SHAPES]
        if not things:
            continue
        draws = Draws(seed, SPLITS.index(split), _EXISTS, index)
        colours, shapes = ({thing[place] for thing in things} for place in (0, 1))
        absent = [pair for pair in itertools.product(COLOUR_NAMES, SHAPES) if pair not in things]
        likely = [pair for pair in absent if pair[0] in colours and pair[1] in shapes]
        missing = draws.choice(likely if likely and draws.chance(0.5) else absent)
        for answer, (colour, shape) in enumerate((draws.choice(things), missing)):
            yield Problem(
                id=f"mini-{split}-{index}-{number}-exists",
                question=f"Is there a {colour} {shape} in the picture?",
                choices=("yes", "no"),
                answer=answer,
                subject="natural science",
                grade=1,
                has_image=True,
            )
            number += 1


def _take(problems: Iterator[Problem], split: str, size: str, seed: int) -> ScienceQA:
    count = read_size(split, size)
    return ScienceQA("mini", split, list(itertools.islice(problems, count)), read_pictures(split, seed))
