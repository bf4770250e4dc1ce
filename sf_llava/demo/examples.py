"""Example pictures and questions, of the drawn world, worded as the embedded LLaVA knows them."""

from dataclasses import dataclass
from pathlib import Path

from sf_llava.catalogue import EXAMPLES
from sf_llava.scienceqa.problems import ask


@dataclass(frozen=True)
class Example:
    """A question about a picture file; ``title`` is its first line."""

    picture: Path
    title: str
    question: str


def write_examples(folder: Path) -> list[Example]:
    """Draw the example pictures into ``folder``."""
    opener = EXAMPLES.find("mini")
    assert opener is not None, "the drawn world registers itself"
    examples = []
    for name, image, problem in opener():
        path = folder / f"{name}.png"
        image.save(path)
        examples.append(Example(path, problem.question, ask(problem)))
    return examples
