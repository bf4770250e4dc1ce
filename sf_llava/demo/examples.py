"""Example pictures and questions: diagrams of the drawn world, worded as the embedded LLaVA knows them."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sf_llava.mini.questions.sets import draw_picture, kind_of, picture_problems
from sf_llava.scienceqa.data import ask

CHOSEN = ((12, "relation"), (4, "extreme"), (18, "marker"), (38, "arrow"))  # pictures for testing, kinds


@dataclass(frozen=True)
class Example:
    """A question about a picture file; ``title`` is its first line."""

    picture: Path
    title: str
    question: str


def write_examples(folder: Path) -> list[Example]:
    """Draw the example pictures into ``folder``."""
    examples = []
    for index, kind in CHOSEN:
        scene = draw_picture(index, "test")
        problem = next(found for found in picture_problems(scene, index, "test") if kind_of(found.id) == kind)
        path = folder / f"{scene.kind} {index}.png"
        Image.fromarray(scene.image).save(path)
        examples.append(Example(path, problem.question, ask(problem)))
    return examples
