"""Multiple-choice questions of the drawn world in ScienceQA's form, half of them on a diagram, half on text alone.

Question ``index`` of a split is always the same. Splits share no picture, and no text of a question without one. An
id ends in the question's kind: ``mini-test-12-colour``.
"""

import functools
import zlib
from collections.abc import Callable, Iterator

from PIL import Image

from sf_llava.mini.questions.pictures import DESCRIBE, Draft, describe, picture_drafts
from sf_llava.mini.questions.texts import text_draft
from sf_llava.mini.world.canvas import Draws, Scene
from sf_llava.mini.world.scenes import SPLITS, WORLD_SEED, draw_scene
from sf_llava.scienceqa.problems import Problem, ScienceQA, ask

DEFAULT_SIZE = 600
MAX_SIZE = 1_000_000
_PICTURE, _TEXT = 2, 3  # beside the numbers of the world's domains in the keys of random numbers
_FIRST_PICTURE = 1_000_000  # apart from the diagrams that encoders train and are validated on


@functools.lru_cache(maxsize=1024)  # 16 MB; each is asked for with its question, and for every tower and control
def draw_picture(index: int, split: str, seed: int = WORLD_SEED) -> Scene:
    """The diagram that question ``index`` is about."""
    return draw_scene(seed, _FIRST_PICTURE + index, "diagram", split)


def picture_problems(scene: Scene, index: int, split: str, visit: int = 0, seed: int = WORLD_SEED) -> Iterator[Problem]:
    """All kinds of questions a picture offers, in random order; another ``visit`` words them anew."""
    draws = Draws(seed, SPLITS.index(split), _PICTURE, index, visit)
    for draft in picture_drafts(scene, draws):
        yield _finish(draft, draws, f"mini-{split}-{index}", has_image=True)


def text_problem(index: int, split: str, seed: int = WORLD_SEED) -> Problem:
    """A question without a picture, drawn until its text belongs to the split."""
    draws = Draws(seed, SPLITS.index(split), _TEXT, index)
    while True:
        problem = _finish(text_draft(draws), draws, f"mini-{split}-{index}", has_image=False)
        if _split_of(ask(problem)) == split:
            return problem


def draw_problem(index: int, split: str, seed: int = WORLD_SEED) -> Problem:
    """Question ``index``: on a picture where the index is even, on text alone where it is odd."""
    if index % 2:
        return text_problem(index, split, seed)
    return next(picture_problems(draw_picture(index, split, seed), index, split, seed=seed))


def describe_picture(index: int, split: str, seed: int = WORLD_SEED) -> Problem:
    """The request to describe a picture, and a description, in place of question ``index``."""
    solution = describe(draw_picture(index, split, seed))
    id = f"mini-{split}-{index}-described"
    return Problem(id=id, question=DESCRIBE, choices=(), answer=-1, solution=solution, has_image=True)


def open_questions(
    split: str = "test", size: str | int = DEFAULT_SIZE, seed: int = WORLD_SEED, described: bool = False
) -> ScienceQA:
    """The first ``size`` questions of a split (as text: empty for the default) and their pictures.

    With ``described`` every second picture comes with the request to describe it; a description names everything that
    a picture shows, a question one thing.

    Raises:
        ValueError: unknown split, or no number of questions.
    """
    problems = [
        describe_picture(index, split, seed) if described and index % 4 == 0 else draw_problem(index, split, seed)
        for index in range(read_size(split, size))
    ]
    return ScienceQA("mini", split, problems, read_pictures(split, seed))


def read_size(split: str, size: str | int) -> int:
    """Read a number of questions, empty for the default, of a split.

    Raises:
        ValueError: unknown split, or no number of questions.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the drawn world has {', '.join(SPLITS)}")
    size = DEFAULT_SIZE if size == "" else size
    if not str(size).isdecimal() or len(str(size)) > len(str(MAX_SIZE)) or not 1 <= int(size) <= MAX_SIZE:
        raise ValueError(
            f"no data set 'mini:{size}': expected mini or mini:N with a number of questions, 1 to {MAX_SIZE:,}"
        )
    return int(size)


def read_pictures(split: str, seed: int) -> Callable[[Problem], Image.Image]:
    """Give what draws the picture of a problem, whose number stands in its id."""

    def read_image(problem: Problem) -> Image.Image:
        return Image.fromarray(draw_picture(int(problem.id.split("-")[2]), split, seed).image)

    return read_image


def _finish(draft: Draft, draws: Draws, id: str, has_image: bool) -> Problem:
    """Shuffle the choices."""
    choices = draws.sample((draft.answer, *draft.distractors), 1 + len(draft.distractors))
    fields = {name: getattr(draft, name) for name in ("question", "hint", "lecture", "solution", "subject", "grade")}
    return Problem(
        id=f"{id}-{draft.kind}",
        choices=tuple(choices),
        answer=choices.index(draft.answer),
        has_image=has_image,
        **fields,
    )


def _split_of(text: str) -> str:
    """A tenth of all texts is for testing, a tenth for validation."""
    return {0: "test", 1: "validation"}.get(zlib.crc32(text.encode()) % 10, "train")
