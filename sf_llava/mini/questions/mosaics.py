"""Questions on pictures too fine for one view: four diagrams in a picture of 128 pixels, asked about by their corners.

A tower of 64 pixels that sees the whole picture sees each diagram at half its size; of 2 x 2 tiles each is one.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from PIL import Image

from sf_llava.mini.questions.pictures import CORNERS
from sf_llava.mini.questions.sets import draw_picture, picture_problems, read_size
from sf_llava.mini.world.canvas import IMAGE_SIZE, Draws, Scene
from sf_llava.mini.world.scenes import SPLITS, WORLD_SEED
from sf_llava.scienceqa.problems import Problem, ScienceQA

SIDE = 2 * IMAGE_SIZE
"""Of a picture, in pixels."""
_MOSAIC = 5  # beside the numbers of the world's other questions in the keys of random numbers


def draw_mosaic(index: int, split: str, seed: int = WORLD_SEED) -> list[Scene]:
    """The four diagrams of picture ``index``, row by row."""
    return [draw_picture(len(CORNERS) * index + place, split, seed) for place in range(len(CORNERS))]


def join(scenes: list[Scene]) -> Image.Image:
    """Put four diagrams together, row by row."""
    tiles = np.stack([scene.image for scene in scenes]).reshape(2, 2, IMAGE_SIZE, IMAGE_SIZE, 3)
    return Image.fromarray(np.ascontiguousarray(tiles.swapaxes(1, 2).reshape(SIDE, SIDE, 3)))


class MosaicImages:
    """Pictures of four diagrams as an image source.

    Args:
        split: ``train``, ``validation`` or ``test``.
        size: how many pictures; the world itself has no end.
        seed: the world.
    """

    def __init__(self, split: str = "train", size: int = 50_000, seed: int = WORLD_SEED) -> None:
        if split not in SPLITS:
            raise ValueError(f"no split {split!r} of mini-mosaics; splits: {', '.join(SPLITS)}")
        self.size, self.split, self.seed = size, split, seed

    def __len__(self) -> int:
        return self.size

    def load(self, index: int) -> Image.Image:
        """RGB picture of 128 x 128 pixels."""
        if not 0 <= index < self.size:
            raise IndexError(f"picture {index} of {self.size}")
        return join(draw_mosaic(index, self.split, self.seed))

    def describe(self, index: int) -> str:
        """Name of a picture."""
        return f"mini-mosaics/{self.split}/{index}"


def mosaic_problems(
    scenes: list[Scene], index: int, split: str, visit: int = 0, seed: int = WORLD_SEED
) -> Iterator[Problem]:
    """Questions on a picture, a corner after the other in random order; another ``visit`` words them anew."""
    draws = Draws(seed, SPLITS.index(split), _MOSAIC, index, visit)
    for place in draws.sample(range(len(CORNERS)), len(CORNERS)):
        asked = len(CORNERS) * index + place
        problem = next(picture_problems(scenes[place], asked, split, visit, seed))
        kind = problem.id.rpartition("-")[2]
        yield replace(
            problem,
            id=f"mini-{split}-{index}-{CORNERS[place]}-{kind}",
            question=f"In the {CORNERS[place]} part of the picture. {problem.question}",
        )


def open_mosaics(split: str, size: str | int, seed: int = WORLD_SEED) -> ScienceQA:
    """The first ``size`` pictures of a split (as text: empty for the default), with a question each.

    Raises:
        ValueError: unknown split, or no number of questions.
    """
    problems = [
        next(mosaic_problems(draw_mosaic(index, split, seed), index, split, seed=seed))
        for index in range(read_size(split, size))
    ]

    def read_image(problem: Problem) -> Image.Image:
        return join(draw_mosaic(int(problem.id.split("-")[2]), split, seed))

    return ScienceQA("mini-mosaics", split, problems, read_image)
