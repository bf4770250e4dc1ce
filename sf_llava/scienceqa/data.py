"""ScienceQA: its problems by name, and its pictures.

A name is the folder of the published layout (``problems.json``, ``pid_splits.json``, ``images/SPLIT/ID/image.png``),
``parquet:PATH_OR_GLOB`` or ``hub:NAME`` (columns ``question``, ``choices``, ``answer``, ``image`` ...), or ``mini`` or
``mini:N``: questions on the drawn world. ``mini-described:N`` is for training alone: there every second picture is to
be described.
"""

import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sf_llava.catalogue import QUESTIONS
from sf_llava.data.images import CorruptImageError, decode
from sf_llava.files import read_bytes, read_json
from sf_llava.scienceqa.picture_columns import NAMES as PICTURE_NAMES
from sf_llava.scienceqa.predictions import read_predictions
from sf_llava.scienceqa.problems import LETTERS, Problem, ScienceQA, ask, explain, is_missing, read_id, read_problem

__all__ = [
    "LETTERS",
    "Problem",
    "ScienceQA",
    "ask",
    "explain",
    "open_published",
    "open_scienceqa",
    "read_predictions",
    "shuffle_images",
]

VALID = "the folder that holds problems.json, pid_splits.json and images/, parquet:PATH_OR_GLOB, hub:NAME"


def open_scienceqa(name: str, split: str = "test") -> ScienceQA:
    """Open one split by name.

    Raises:
        ValueError: unknown name or split, or files that do not hold what they should; the message says what.
    """
    kind, _, where = name.partition(":")
    if (registered := QUESTIONS.find(kind)) is not None:
        return registered(where, split)
    if kind in ("parquet", "hub") and where:
        from sf_llava.scienceqa.problem_tables import open_table

        return open_table(name, kind, where, split)
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ValueError(f"no ScienceQA data at {name!r}: expected {VALID}, {QUESTIONS.usage}")
    return open_published(path / "problems.json", path / "pid_splits.json", path / "images", split)


def open_published(problems: str | Path, splits: str | Path, images: str | Path, split: str) -> ScienceQA:
    """Open one split of the published files; ``images`` need not exist for scoring alone.

    Raises:
        ValueError: a file is missing or holds something else; the message names it.
    """
    for path in map(Path, (problems, splits)):
        if not path.is_file():
            raise ValueError(f"no file {path}: expected {VALID}")
    ids, raw = _read_ids(splits, split), _read_object(problems, "problems by their ids")
    if absent := [id for id in ids if id not in raw]:
        raise ValueError(
            f"{len(absent)} of {len(ids)} problems of split {split} are not in {problems} (the first: {absent[0]}); "
            "the file may be truncated"
        )
    chosen = [read_problem(id, raw[id], bool(_image_name(id, raw[id], problems)), str(problems)) for id in ids]
    if not any(problem.has_image for problem in chosen):
        warnings.warn(f"no problem in {problems} names an image: every question is asked as text", stacklevel=2)
    folder = Path(images)

    def read_image(problem: Problem) -> Image.Image:
        entry = raw[problem.id]
        path = folder / str(entry.get("split", split)) / problem.id / entry["image"]
        try:
            return decode(read_bytes(path), f"image of problem {problem.id}, {path}")
        except OSError as error:
            raise CorruptImageError(f"image of problem {problem.id}: {path}: {error.strerror}") from error

    return ScienceQA(str(problems), split, chosen, read_image)


def _read_ids(path: str | Path, split: str) -> list[str]:
    splits = _read_object(path, "lists of ids by the names of splits")
    if split not in splits:
        raise ValueError(f"unknown split {split!r}; {path} has {', '.join(splits)}")
    if not isinstance(splits[split], list) or not splits[split]:
        raise ValueError(f"split {split} of {path} is no list of ids")
    return [read_id(id, f"entry {number} of split {split} of {path}") for number, id in enumerate(splits[split], 1)]


def _read_object(path: str | Path, what: str) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: expected {what}")
    return value


def _image_name(id: str, raw: object, problems: str | Path) -> str:
    """Return the file name of a problem's picture, empty where there is none."""
    entry = raw if isinstance(raw, Mapping) else {}
    name = entry.get("image")
    if is_missing(name):
        if other := [key for key in entry if key in PICTURE_NAMES and not is_missing(entry[key])]:
            raise ValueError(f"problem {id} of {problems} has no 'image' but {other[0]!r}: name the file as 'image'")
        return ""
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"problem {id} of {problems} has the image {name!r}: expected the name of a file, or null")
    return name


def shuffle_images(problems: Sequence[Problem], seed: int) -> dict[str, Problem]:
    """Give every problem with an image the image of another one: id -> the problem whose picture it gets."""
    pictured = [problem for problem in problems if problem.has_image]
    if len(pictured) < 2:
        raise ValueError(f"shuffling images needs at least two problems with an image, there are {len(pictured)}")
    order = list(pictured)
    random.Random(seed).shuffle(order)  # one cycle through all: nobody keeps its own
    return {problem.id: other for problem, other in zip(order, order[1:] + order[:1], strict=True)}
