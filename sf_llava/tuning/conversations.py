"""What is tuned on: conversations about one picture each, from LLaVA's JSON or from questions of the catalogue.

LLaVA's form is a list of ``{"id": ..., "image": "file.jpg", "conversations": [...]}`` with turns ``{"from": "human",
"value": "<image>\\n..."}`` and ``{"from": "gpt", "value": "..."}``. An entry that cannot be used is left out, counted
and named, never repaired.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sf_llava.data.images import CorruptImageError, decode
from sf_llava.files import read_bytes, read_json
from sf_llava.scienceqa.data import ScienceQA, ask, explain, open_scienceqa

IMAGE = "<image>"
ROLES = ("human", "gpt")
WITHOUT = "without a picture"
LARGEST_SHARE, MOST = 10, 500  # held out where no number is named: a tenth of the entries, at most 500


@dataclass(frozen=True)
class Conversation:
    """One picture and what is said about it.

    Attributes:
        id: for messages.
        turns: texts, a question and its answer in turn; the picture comes before the first.
        load: decodes the picture to RGB, or raises ``CorruptImageError`` naming it.
    """

    id: str
    turns: tuple[str, ...]
    load: Callable[[], Image.Image] = field(compare=False)


@dataclass(frozen=True)
class TuningData:
    """What is tuned on, and what is held out.

    Attributes:
        name: of the data.
        train, held_out: conversations; none is in both.
        questions: the held-out ones as questions with choices, for an accuracy; None where the data have none.
        left_out: reason -> the entries that were not used.
    """

    name: str
    train: list[Conversation]
    held_out: list[Conversation]
    questions: ScienceQA | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def describe(self) -> str:
        """Say in a few lines what is used, and what is left out and why."""
        lines = [f"{self.name}: {len(self.train):,} conversations to tune on, {len(self.held_out):,} held out"]
        for reason, entries in self.left_out.items():
            lines.append(f"  left out, {reason}: {len(entries):,} (the first: {', '.join(entries[:3])})")
        return "\n".join(lines)


def open_data(
    name: str, images: str | None = None, split: str = "test", held_out: int | None = None, seed: int = 0
) -> TuningData:
    """Open LLaVA's JSON, or questions by name (``mini:N``, ScienceQA's folder ...), those with a picture.

    Args:
        name: a file that ends in ``.json``, or what ``open_scienceqa`` opens: its train split is tuned on.
        images: folder that the pictures of a JSON file are named from.
        split: of questions, from which is held out.
        held_out: how many; None for a tenth, at most 500.
        seed: by which they are drawn.

    Raises:
        ValueError: nothing there, nothing usable in it, or more held out than there is.
    """
    if name.endswith(".json"):
        if images is None:
            raise ValueError(f"{name} names its pictures by file: say in `images` which folder they lie in")
        return _open_file(Path(name), Path(images), held_out, seed)
    if images is not None:
        raise ValueError(f"`images` is for LLaVA's JSON files: the questions of {name} bring their own pictures")
    everything = open_scienceqa(name, "train")
    train, test = _pictured(everything), _pictured(open_scienceqa(name, split))
    for data in (train, test):
        if not data.problems:
            raise ValueError(f"no question of {name}, split {data.split}, has a picture: there is nothing to tune on")
    count = min(len(test.problems), MOST) if held_out is None else held_out
    chosen = _draw(len(test.problems), count, seed, f"split {split} of {name}")
    asked = dataclasses.replace(test, problems=[test.problems[index] for index in chosen])
    text_alone = [problem.id for problem in everything.problems if not problem.has_image]
    left_out = {WITHOUT: text_alone} if text_alone else {}
    return TuningData(name, _converse(train), _converse(asked), asked, left_out)


def _pictured(data: ScienceQA) -> ScienceQA:
    return dataclasses.replace(data, problems=[problem for problem in data.problems if problem.has_image])


def _converse(data: ScienceQA) -> list[Conversation]:
    return [
        Conversation(problem.id, (ask(problem), explain(problem)), lambda one=problem: data.load_image(one))  # type: ignore[misc]
        for problem in data.problems
    ]


def _draw(total: int, count: int, seed: int, where: str) -> list[int]:
    if not 1 <= count <= total:
        raise ValueError(f"`held_out` {count} of {where}: expected from 1 to {total}")
    return sorted(random.Random(seed).sample(range(total), count))


def _open_file(path: Path, images: Path, held_out: int | None, seed: int) -> TuningData:
    """Read LLaVA's JSON."""
    if not path.is_file():
        raise ValueError(f"no file {path}: expected conversations in LLaVA's JSON")
    if not images.is_dir():
        raise ValueError(f"no folder {images}: expected the pictures that {path} names")
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds no list: expected LLaVA's JSON, a list of entries with image and conversations")
    found: list[Conversation] = []
    left_out: dict[str, list[str]] = {}
    for number, entry in enumerate(entries, 1):
        try:
            found.append(_read_entry(entry, number, path, images))
        except _Unusable as reason:
            left_out.setdefault(str(reason), []).append(_name(entry, number))
    if len(found) < 2:
        reasons = "; ".join(f"{reason}: {len(names)}" for reason, names in left_out.items())
        raise ValueError(f"{len(found)} of {len(entries)} entries of {path} can be used ({reasons or 'it is empty'})")
    count = max(1, min(len(found) // LARGEST_SHARE, MOST)) if held_out is None else held_out
    if count >= len(found):
        raise ValueError(f"`held_out` {count} leaves nothing of the {len(found)} usable entries of {path} to tune on")
    chosen = set(_draw(len(found), count, seed, str(path)))
    return TuningData(
        str(path),
        [one for index, one in enumerate(found) if index not in chosen],
        [found[index] for index in sorted(chosen)],
        left_out=left_out,
    )


class _Unusable(Exception):
    """Why an entry is left out."""


def _name(entry: Any, number: int) -> str:
    known = isinstance(entry, dict) and isinstance(entry.get("id"), (str, int))
    return f"entry {number}" + (f" ({entry['id']})" if known else "")


def _read_entry(entry: Any, number: int, path: Path, images: Path) -> Conversation:
    """Read one entry, or say why it cannot be used."""
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise _Unusable("no object with conversations")
    turns = _read_turns(entry["conversations"])
    named, image = "".join(turns).count(IMAGE), entry.get("image")
    if image is None:
        raise _Unusable(WITHOUT if not named else f"{IMAGE} but no picture named")
    if not isinstance(image, str) or named > 1:
        raise _Unusable("more than one picture, or none by its file name")
    if not named:
        raise _Unusable(f"a picture but no {IMAGE}")
    file = images / image
    if not file.is_file():
        raise _Unusable("the picture is missing")
    turns = tuple(turn.replace(IMAGE, "").strip() for turn in turns)
    if not all(turns):
        raise _Unusable("an empty text")
    name = _name(entry, number)

    def load() -> Image.Image:
        try:
            return decode(read_bytes(file), f"the picture of {name} of {path}, {file}")
        except OSError as error:
            raise CorruptImageError(f"the picture of {name} of {path}: {file}: {error.strerror}") from error

    return Conversation(name, turns, load)


def _read_turns(raw: Sequence[Any]) -> tuple[str, ...]:
    """Read the texts of a conversation: human and gpt in turn, a gpt at the end."""
    if not raw or len(raw) % 2:
        raise _Unusable("no turns of human and gpt")
    for place, turn in enumerate(raw):
        if not isinstance(turn, dict) or turn.get("from") != ROLES[place % 2] or not isinstance(turn.get("value"), str):
            raise _Unusable("no turns of human and gpt")
    return tuple(turn["value"] for turn in raw)
