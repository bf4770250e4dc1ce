"""ScienceQA: its problems by name, its pictures, LLaVA's wording of a question, and files of predictions.

A name is the folder of the published layout (``problems.json``, ``pid_splits.json``, ``images/SPLIT/ID/image.png``),
``parquet:PATH_OR_GLOB`` or ``hub:NAME`` (columns ``question``, ``choices``, ``answer``, ``image`` ...), or ``mini`` or
``mini:N``: questions on the drawn world. ``mini-described:N`` is for training alone: there every second picture is to
be described.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sf_llava.data.images import CorruptImageError, decode
from sf_llava.files import read_json

if TYPE_CHECKING:
    from datasets import Dataset

LETTERS = "ABCDE"
VALID = "the folder that holds problems.json, pid_splits.json and images/, parquet:PATH_OR_GLOB, hub:NAME, or mini[:N]"


@dataclass(frozen=True)
class Problem:
    """One multiple-choice question; ``answer`` is an index into ``choices``, ``grade`` 0 where it is not known.

    Without choices it is a request, and ``solution`` what there is to say; that cannot be scored.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str = ""
    lecture: str = ""
    solution: str = ""
    subject: str = ""
    grade: int = 0
    has_image: bool = False


@dataclass(frozen=True)
class ScienceQA:
    """The problems of one split, in the published order, and a way to their pictures."""

    name: str
    split: str
    problems: list[Problem]
    read_image: Callable[[Problem], Image.Image]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for problem in self.problems:
            if problem.id in seen:
                raise ValueError(f"{self.name}: problem {problem.id} is in split {self.split} twice")
            seen.add(problem.id)

    def load_image(self, problem: Problem) -> Image.Image:
        """Load the RGB picture of a problem that has one.

        Raises:
            CorruptImageError: the file is missing or unreadable; the message names problem and file.
        """
        return self.read_image(problem)


def open_scienceqa(name: str, split: str = "test") -> ScienceQA:
    """Open one split by name.

    Raises:
        ValueError: unknown name or split, or files that do not hold what they should; the message says what.
    """
    kind, _, where = name.partition(":")
    if kind in ("mini", "mini-described"):
        from sf_llava.mini.questions import open_questions

        return open_questions(split, where, described=kind == "mini-described")
    if kind in ("parquet", "hub") and where:
        return _open_table(name, kind, where, split)
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ValueError(f"no ScienceQA data at {name!r}: expected {VALID}")
    return open_published(path / "problems.json", path / "pid_splits.json", path / "images", split)


def open_published(problems: str | Path, splits: str | Path, images: str | Path, split: str) -> ScienceQA:
    """Open one split of the published files; ``images`` need not exist for scoring alone."""
    for path in map(Path, (problems, splits)):
        if not path.is_file():
            raise ValueError(f"no file {path}: expected {VALID}")
    ids, raw = read_json(splits), read_json(problems)
    if split not in ids:
        raise ValueError(f"unknown split {split!r}; {splits} has {', '.join(ids)}")
    if absent := [id for id in ids[split] if id not in raw]:
        raise ValueError(
            f"{len(absent)} of {len(ids[split])} problems of split {split} are not in {problems} (the first: "
            f"{absent[0]}); the file may be truncated"
        )
    chosen = [_read_problem(id, raw[id], bool(raw[id].get("image")), str(problems)) for id in ids[split]]
    folder = Path(images)

    def read_image(problem: Problem) -> Image.Image:
        entry = raw[problem.id]
        path = folder / entry.get("split", split) / problem.id / entry["image"]
        try:
            return decode(path.read_bytes(), f"image of problem {problem.id}, {path}")
        except OSError as error:
            raise CorruptImageError(f"image of problem {problem.id}: {path}: {error.strerror}") from error

    return ScienceQA(str(problems), split, chosen, read_image)


def _open_table(name: str, kind: str, where: str, split: str) -> ScienceQA:
    """Open a table: one row a problem of the split; its id is the column ``id`` or ``pid``, or the row's number."""
    import datasets

    from sf_llava.data.paths import find_files

    if kind == "parquet":
        table = datasets.load_dataset("parquet", data_files=find_files(where, ".parquet"), split="train")
    else:
        try:
            table = datasets.load_dataset(where, split=split)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{name} (split {split}) cannot be opened: {reason}; or give local files") from error
    if lacking := {"question", "choices", "answer"} - set(table.column_names):
        raise ValueError(f"{name} is no ScienceQA table: it lacks the column(s) {', '.join(sorted(lacking))}")
    if "image" in table.column_names and isinstance(table.features["image"], datasets.Image):
        table = table.cast_column("image", datasets.Image(decode=False))
    texts = table.remove_columns("image") if "image" in table.column_names else table
    pictured = _rows_with_image(table)
    id_column = next((column for column in ("id", "pid", "question_id") if column in table.column_names), None)
    rows, problems = {}, []
    for number, row in enumerate(texts):
        id = str(row[id_column]) if id_column else str(number)
        rows[id] = number
        problems.append(_read_problem(id, row, number in pictured, name))

    def read_image(problem: Problem) -> Image.Image:
        cell = table[rows[problem.id]]["image"]
        data = cell["bytes"] if isinstance(cell, Mapping) else cell
        if data is None and cell.get("path"):
            data = Path(cell["path"]).read_bytes()
        return decode(data, f"image of problem {problem.id} of {name}")

    return ScienceQA(name, split, problems, read_image)


def _rows_with_image(table: "Dataset") -> set[int]:
    """Find the rows whose picture is not null, without reading pictures."""
    if "image" not in table.column_names:
        return set()
    return {row for row, value in enumerate(table.data.column("image").is_valid().to_pylist()) if value}


def _read_problem(id: str, raw: Mapping[str, Any], has_image: bool, name: str) -> Problem:
    try:
        choices, answer = tuple(raw["choices"]), int(raw["answer"])
        grade = str(raw.get("grade") or "").removeprefix("grade")
        problem = Problem(
            id=id,
            question=raw["question"],
            choices=choices,
            answer=answer,
            hint=raw.get("hint") or "",
            lecture=raw.get("lecture") or "",
            solution=raw.get("solution") or "",
            subject=raw.get("subject") or "",
            grade=int(grade) if grade.isdigit() else 0,
            has_image=has_image,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"problem {id} of {name} is not in ScienceQA's form: {error!r}") from error
    if not 0 <= answer < len(choices) <= len(LETTERS):
        raise ValueError(f"problem {id} of {name} has {len(choices)} choices and the answer {answer}")
    return problem


def ask(problem: Problem) -> str:
    """Word a problem as LLaVA does (``QCM``): question, context, options; a request as it is."""
    if not problem.choices:
        return problem.question
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False))
    text = f"Question: {problem.question}\nContext: {problem.hint.strip() or 'N/A'}\nOptions: {options}\n"
    return text.replace("  ", " ").strip().replace("Question: ", "")


def explain(problem: Problem) -> str:
    """Word the answer as LLaVA was trained to (``LEA``): lecture, solution, then the answer."""
    answer = f"The answer is {LETTERS[problem.answer]}." if problem.choices else ""
    text = f"{problem.lecture} {problem.solution} {answer}"
    return text.replace("  ", " ").strip()


def read_predictions(path: str | Path) -> dict[str, str]:
    """Read the text of each answer from ours or LLaVA's JSON lines, or from LLaVA's result file with ``outputs``.

    Of several answers to one question the last counts, as in LLaVA's scorer.

    Raises:
        ValueError: neither form, or a broken line; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no predictions at {path}: expected JSON lines or LLaVA's result file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file: expected JSON lines or LLaVA's result file") from error
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        whole = None
    if isinstance(whole, dict) and isinstance(whole.get("outputs"), dict):
        if strange := [id for id, answer in whole["outputs"].items() if not isinstance(answer, str)]:
            raise ValueError(f"{path}: the output of {strange[0]} is no text")
        return {str(id): answer for id, answer in whole["outputs"].items()}
    lines = enumerate(text.split("\n"), 1)  # splitlines() would also cut at U+2028 inside an answer
    return dict(_read_line(line, f"{path}, line {number}") for number, line in lines if line.strip())


def _read_line(line: str, where: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
        if not isinstance(entry["text"], str):
            raise TypeError("text is not a string")
        return str(entry["question_id"]), entry["text"]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{where} is no prediction with question_id and text: {error!r}") from error


def shuffle_images(problems: Sequence[Problem], seed: int) -> dict[str, Problem]:
    """Give every problem with an image the image of another one: id -> the problem whose picture it gets."""
    pictured = [problem for problem in problems if problem.has_image]
    if len(pictured) < 2:
        raise ValueError(f"shuffling images needs at least two problems with an image, there are {len(pictured)}")
    order = list(pictured)
    random.Random(seed).shuffle(order)  # one cycle through all: nobody keeps its own
    return {problem.id: other for problem, other in zip(order, order[1:] + order[:1], strict=True)}
