"""What is asked, whoever answers: which problems, in which words, with which pictures under a control."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from sf_llava.measure.store import digest_texts
from sf_llava.scienceqa import CONTROLS
from sf_llava.scienceqa.data import ScienceQA, shuffle_images
from sf_llava.scienceqa.problems import Problem, ask

GREY = (128, 128, 128)


@dataclass(frozen=True)
class Generation:
    """How answers are generated; greedily at temperature 0. ``conversation`` None is the model's own template."""

    max_new_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0
    conversation: str | None = None


class Asked(Protocol):
    """Whoever answers: a model in this process, or one that is served."""

    @property
    def image_token(self) -> str:
        """What stands for a picture in a prompt."""

    def prompt(self, problem: Problem, has_image: bool) -> str:
        """Word a problem; ``image_token`` stands where a picture goes."""


def word_all(asked: Asked, data: ScienceQA, control: str | None) -> tuple[list[Problem], dict[str, str]]:
    """Choose and word the problems; under a control only questions with an image are asked.

    Warns of questions that say ``<image>`` themselves.

    Returns:
        The problems, and their prompts by id.
    """
    problems = [problem for problem in data.problems if problem.has_image or control is None]
    prompts = {problem.id: asked.prompt(problem, problem.has_image and control != "blind") for problem in problems}
    if said := [problem.id for problem in problems if asked.image_token in ask(problem)]:
        warnings.warn(
            f"{len(said):,} question(s) say {asked.image_token} in their own text (the first: {said[0]}): "
            "it is left out, as LLaVA's own evaluation does",
            stacklevel=3,
        )
    return problems, prompts


def digest_prompts(prompts: Mapping[str, str]) -> str:
    """Digest prompts by id."""
    return digest_texts(*(part for pair in prompts.items() for part in pair))


def leave_out(token: str, text: str) -> str:
    """Leave what stands for a picture out of a question's own words, as LLaVA's evaluation does."""
    while token in text:  # again: what is left may join to another
        text = text.replace(token, "").strip()
    return text


def pictures_under(data: ScienceQA, control: str | None, seed: int) -> Callable[[Problem], list[Image.Image]]:
    """Say which pictures a problem is shown under a control: none, its own, another question's, a grey one.

    Raises:
        ValueError: an unknown control.
    """
    if control not in (None, *CONTROLS):
        raise ValueError(f"unknown control {control!r}; known: {', '.join(CONTROLS)}")
    shown = shuffle_images(data.problems, seed) if control == "shuffled" else {}

    def pictures(problem: Problem) -> list[Image.Image]:
        if not problem.has_image or control == "blind":
            return []
        image = data.load_image(shown.get(problem.id, problem))
        return [Image.new("RGB", image.size, GREY)] if control == "grey" else [image]

    return pictures
