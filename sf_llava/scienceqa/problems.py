"""One multiple-choice question of ScienceQA: read from a record in any of the usual forms, worded as LLaVA does."""

import ast
import io
import json
import math
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, SupportsInt

from PIL import Image

from sf_llava.scienceqa.scoring import LETTERS

_MAX_LIST = 100_000  # characters of a list written as text


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


def read_problem(id: str, raw: object, has_image: bool, name: str) -> Problem:
    """Read a problem from a record: a row of a table, an entry of ``problems.json``.

    Args:
        id: of the problem.
        raw: mapping with ``question``, ``choices`` (a list, or the text of one in JSON or Python) and ``answer`` (an
            index from 0, a letter, or the text of a choice); ``hint``, ``lecture``, ``solution``, ``subject`` and
            ``grade`` may be missing or null.
        has_image: whether a picture comes with it.
        name: of the data, for errors.

    Raises:
        ValueError: it is not such a record; the message names the problem.
    """
    where = f"problem {id} of {name}"
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} is {_kind(raw)}: expected an object with question, choices and answer")
    if lacking := [key for key in ("question", "choices", "answer") if is_missing(raw.get(key))]:
        raise ValueError(f"{where} has no {' and no '.join(lacking)}")
    question = _text(raw["question"], f"the question of {where}")
    if not question.strip():
        raise ValueError(f"{where} has no question: its text is blank")
    choices = _read_choices(raw["choices"], where)
    return Problem(
        id=id,
        question=question,
        choices=choices,
        answer=_read_answer(raw["answer"], choices, where),
        **{
            key: "" if is_missing(raw.get(key)) else _text(raw[key], f"the {key} of {where}")
            for key in ("hint", "lecture", "solution", "subject")
        },
        grade=_read_grade(raw.get("grade")),
        has_image=has_image,
    )


def is_missing(value: object) -> bool:
    """Whether a cell is null: None, or the NaN that tables of numbers have for it."""
    return value is None or (isinstance(value, Real) and not isinstance(value, Integral) and math.isnan(value))


def read_id(value: object, where: str) -> str:
    """Read an id, which files give as text or as a number.

    Raises:
        ValueError: it is null or neither.
    """
    if isinstance(value, str) and value:
        return _text(value, f"the id of {where}")
    if (number := _whole(value)) is not None:
        return str(number)
    raise ValueError(f"{where} has no id: expected a text or a whole number, not {_kind(value)}")


def _read_choices(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = _parse_list(value, where)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"the choices of {where} are {_kind(value)}: expected a list of texts")
    choices = tuple(_read_choice(choice, number, where) for number, choice in enumerate(value, 1))
    if len(choices) > len(LETTERS):
        raise ValueError(f"{where} has {len(choices)} choices: at most {len(LETTERS)} are read, A to {LETTERS[-1]}")
    return choices


def _read_choice(value: object, number: int, where: str) -> str:
    if isinstance(value, Real) and not is_missing(value):
        value = str(value)
    choice = _text(value, f"choice {number} of {where}")
    if not choice.strip():
        raise ValueError(f"choice {number} of {where} is blank")
    return choice


def _parse_list(text: str, where: str) -> object:
    """Read a list that is written as text, in JSON or Python, as data."""
    form = f"the choices of {where} are the text {text[:60]!r}: expected a list, or one written in JSON or Python"
    if len(text) > _MAX_LIST or text.strip()[:1] not in ("[", "("):
        raise ValueError(form)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(form) from error
    except ValueError:
        pass
    try:
        parsed = ast.literal_eval(text.strip())
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline)]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(form) from error
    kinds = [kind for kind in kinds if kind != tokenize.NL]
    if (tokenize.STRING, tokenize.STRING) in pairwise(kinds):
        raise ValueError(f"{form}, with a comma between any two")  # Python would join them, as in numpy's ['a' 'b']
    return parsed


def _read_answer(value: object, choices: tuple[str, ...], where: str) -> int:
    """Read which choice is right: an index, a letter, or a choice's own text, where these do not contradict."""
    meant = {index for index in _meanings(value, choices) if 0 <= index < len(choices)}
    if not meant:
        raise ValueError(
            f"{where} has {len(choices)} choices and the answer {str(value)[:60]}: expected an index from 0 to "
            f"{len(choices) - 1}, a letter or the text of a choice"
        )
    if len(meant) > 1:
        letters = " or ".join(LETTERS[index] for index in sorted(meant))
        raise ValueError(f"the answer {value!r} of {where} can mean {letters}: write the index of the choice, from 0")
    return meant.pop()


def _meanings(value: object, choices: tuple[str, ...]) -> set[int]:
    """Say which indices a written answer can stand for."""
    if isinstance(value, str):
        text = value.strip()
        letter = text.strip("().").upper()
        meanings = {index for index, choice in enumerate(choices) if choice.strip() == text}
        meanings |= {LETTERS.index(letter)} if len(letter) == 1 and letter in LETTERS else set()
        return meanings | ({int(text)} if text.isascii() and text.isdigit() and len(text) < 10 else set())
    number = _whole(value)
    return set() if number is None else {number}


def _whole(value: object) -> int | None:
    """The whole number that a cell holds, however it is stored; None where it is something else."""
    if not (isinstance(value, Real) and isinstance(value, SupportsInt)) or isinstance(value, bool):
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def _read_grade(value: object) -> int:
    """Read ``grade7`` or 7; 0 for anything else, which stands for a grade that is not known."""
    number = _whole(value)
    grade = value if number is None else str(number)
    grade = grade.removeprefix("grade") if isinstance(grade, str) else ""
    return int(grade) if grade.isascii() and grade.isdigit() and len(grade) < 4 else 0


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is {_kind(value)}: expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} holds half of a character (a lone surrogate)") from error
    return value


def _kind(value: object) -> str:
    """Name a value's kind in a sentence."""
    if is_missing(value):
        return "null"
    kinds: tuple[tuple[Any, str], ...] = (
        (bool, "true or false"),
        (Real, "a number"),
        (str, "a text"),
        (bytes, "bytes"),
        (Mapping, "an object"),
        ((list, tuple), "a list"),
    )
    return next((word for kind, word in kinds if isinstance(value, kind)), f"a {type(value).__name__}")


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


@dataclass(frozen=True)
class ScienceQA:
    """The problems of one split, in the published order, and a way to their pictures.

    Attributes:
        name: of the data.
        split: of the problems.
        problems: in order.
        read_image: reads the picture of a problem that has one.
    """

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


def kind_of(id: str) -> str:
    """Read the kind of a question off its id, which ends in it in the drawn world (``mini-test-12-colour``)."""
    return id.rsplit("-", 1)[-1]
