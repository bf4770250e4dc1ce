"""Questions with four choices about photographs, from captions, classes and free questions (``train_mini.py``).

What is written has the published layout of ScienceQA (``problems.json``, ``pid_splits.json``, ``images/``), so that
everything that reads that reads these. An id ends in the question's kind: ``train-caption-12-0-caption``.
"""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sf_llava.data import ImageSource, LabelledImages, parquet
from sf_llava.data.arrow import ArrowImages, find_image_column
from sf_llava.data.encoded import read_encoded
from sf_llava.files import write_directory, write_json
from sf_llava.mini.training.photographs import spoken
from sf_llava.retrieval.captions import CaptionedImages

CHOICES = 4
CAPTIONS_A_PHOTOGRAPH = 2
ASKED_COLUMNS = ("questions", "answers")


@dataclass(frozen=True)
class AskedImages:
    """Photographs with free questions and their answers, as many as there are of each."""

    source: ImageSource
    questions: Sequence[Sequence[str]]
    answers: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Draft:
    """A question on picture ``picture``: the right answer, and the wrong ones."""

    picture: int
    question: str
    answer: str
    wrong: tuple[str, ...]
    solution: str


def open_asked(where: str) -> AskedImages:
    """Open a parquet file with a picture, ``questions`` and ``answers`` (lists of texts) a row.

    Raises:
        ValueError: it cannot be read, lacks a column, or a row has more of the one than of the other.
    """
    files, features = parquet._inspect(where)
    if lacking := [column for column in ASKED_COLUMNS if column not in features]:
        raise ValueError(f"{where} lacks the column(s) {', '.join(lacking)}; it has {', '.join(features)}")
    column = find_image_column(features, where)
    rows = parquet._read(files, [column, *ASKED_COLUMNS], where)
    questions, answers = (list(rows[name]) for name in ASKED_COLUMNS)
    for row, (asked, told) in enumerate(zip(questions, answers, strict=True)):
        if len(asked) != len(told):
            raise ValueError(f"row {row} of {where} has {len(asked)} questions and {len(told)} answers")
    return AskedImages(ArrowImages(rows, column, where), questions, answers)


def ask_for_captions(images: CaptionedImages, draws: np.random.Generator) -> Iterator[Draft]:
    """Ask which sentence describes a photograph; the wrong ones describe others."""
    captions = [sentence(caption) for caption in images.captions]
    own: list[list[int]] = [[] for _ in range(len(images))]
    for place, picture in enumerate(images.image_of):
        own[picture].append(place)
    for picture, places in enumerate(own):
        for place in draws.permutation(places)[:CAPTIONS_A_PHOTOGRAPH]:
            wrong = _others(
                captions, draws, lambda other, mine=picture: images.image_of[other] != mine, captions[place]
            )
            yield Draft(picture, "Which sentence describes the picture?", captions[place], wrong, captions[place])


def ask_for_classes(images: LabelledImages, draws: np.random.Generator) -> Iterator[Draft]:
    """Ask what a photograph shows, among the names of classes."""
    names = [spoken(name) for name in images.class_names]
    for picture, label in enumerate(images.labels):
        wrong = _others(names, draws, lambda other, mine=label: other != mine, names[label])
        yield Draft(picture, "What does the picture show?", names[label], wrong, sentence(names[label]))


def ask_freely(images: AskedImages, draws: np.random.Generator) -> Iterator[Draft]:
    """Ask what was asked; the wrong answers are of other questions, numbers beside a number."""
    everything = [spoken_list(answer) for answers in images.answers for answer in answers]
    numbers = [answer for answer in everything if answer.isdecimal()]
    words = [answer for answer in everything if not answer.isdecimal()]
    for picture, (questions, answers) in enumerate(zip(images.questions, images.answers, strict=True)):
        for question, answer in zip(questions, map(spoken_list, answers), strict=True):
            pool = numbers if answer.isdecimal() else words
            if len(set(pool)) >= CHOICES:
                wrong = _others(pool, draws, lambda other: True, answer)
                yield Draft(picture, f"{question.strip().capitalize()}?", answer, wrong, sentence(answer))


def sentence(text: str) -> str:
    """A caption as a sentence: with a capital letter and one full stop, without a space before it."""
    text = " ".join(text.split()).rstrip(" .")
    return f"{text[:1].upper()}{text[1:]}."


def spoken_list(answer: str) -> str:
    """An answer as it is said, ``cell_phone, book`` without underscores."""
    return ", ".join(part.replace("_", " ").strip() for part in answer.split(","))


def _others(texts: Sequence[str], draws: np.random.Generator, allowed: Any, right: str) -> tuple[str, ...]:
    """Draw wrong answers, all different."""
    found: list[str] = []
    for _ in range(1000):
        other = int(draws.integers(len(texts)))
        if allowed(other) and texts[other] != right and texts[other] not in found:
            found.append(texts[other])
        if len(found) == CHOICES - 1:
            return tuple(found)
    raise ValueError(f"{len(set(texts))} different answers are too few for {CHOICES} choices")


Sets = dict[str, dict[str, tuple[ImageSource, Iterator[Draft]]]]
"""By split, by kind: the photographs, and what is asked about them."""


def gather(
    captioned: dict[str, CaptionedImages], labelled: dict[str, LabelledImages], asked: dict[str, AskedImages], seed: int
) -> Sets:
    """Draw the questions of every set, each given by its split; a function of the seed."""
    sets: Sets = {}
    kinds: tuple[tuple[str, dict[str, Any], Any], ...] = (
        ("caption", captioned, ask_for_captions),
        ("class", labelled, ask_for_classes),
        ("asked", asked, ask_freely),
    )
    for number, (kind, by_split, draft) in enumerate(kinds):
        for split, images in by_split.items():
            draws = np.random.default_rng((seed, number, *split.encode()))
            sets.setdefault(split, {})[kind] = (images.source, draft(images, draws))
    return sets


def write_questions(sets: Sets, output: Path, seed: int) -> dict[str, int]:
    """Write all questions into the directory ``output``, which must not be there; return how many each split has."""
    problems: dict[str, dict[str, Any]] = {}
    ids: dict[str, list[str]] = {split: [] for split in sets}

    def fill(directory: Path) -> None:
        for split, kinds in sets.items():
            draws = np.random.default_rng((seed, *split.encode()))
            for kind, (source, drafts) in kinds.items():
                before: dict[int, Path] = {}
                for number, draft in enumerate(drafts):
                    id = f"{split}-{kind}-{draft.picture}-{number}-{kind}"
                    file = directory / "images" / split / id / "image.jpg"
                    file.parent.mkdir(parents=True)
                    if draft.picture in before:
                        os.link(before[draft.picture], file)
                    else:
                        file.write_bytes(_encoded(source, draft.picture))
                        before[draft.picture] = file
                    problems[id] = _word(draft, draws) | {"image": file.name, "split": split}
                    ids[split].append(id)
        write_json(directory / "problems.json", problems)
        write_json(directory / "pid_splits.json", ids)

    if output.exists():
        raise ValueError(f"{output} is there already: remove it, or give another `output`")
    write_directory(output, fill)
    return {split: len(found) for split, found in ids.items()}


def _encoded(source: ImageSource, index: int) -> bytes:
    if (data := read_encoded(source, index)) is not None:
        return data
    file = io.BytesIO()
    source.load(index).save(file, "PNG")
    return file.getvalue()


def _word(draft: Draft, draws: np.random.Generator) -> dict[str, Any]:
    choices = [draft.answer, *draft.wrong]
    order = [int(place) for place in draws.permutation(len(choices))]
    return {
        "question": draft.question,
        "choices": [choices[place] for place in order],
        "answer": order.index(0),
        "hint": "",
        "lecture": "",
        "solution": draft.solution,
    }
