"""ScienceQA: reading an answer out of a text, accuracies with the published breakdown, comparing two systems.

Pure functions on texts and problems. The rules are LLaVA's own scorer's, with two differences: whether a question has
an image is read from the data set, never from the prediction, and answers that are missing are counted.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sf_llava.measure.intervals import paired_difference_interval, wilson_interval

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of the options; no question has more."""
NUM_PUBLISHED = 5  # the letters that LLaVA's scorer knows; the questions of ScienceQA have no more options
FAILED = -1
_STATEMENT = re.compile(r"The answer is ([A-Z]).")


class Question(Protocol):
    """What scoring needs to know of a problem."""

    @property
    def id(self) -> str: ...
    @property
    def choices(self) -> Sequence[str]: ...
    @property
    def answer(self) -> int: ...
    @property
    def subject(self) -> str: ...
    @property
    def grade(self) -> int: ...
    @property
    def hint(self) -> str: ...
    @property
    def has_image(self) -> bool: ...


GROUPS: dict[str, Callable[[Question], bool]] = {
    "NAT": lambda question: question.subject == "natural science",
    "SOC": lambda question: question.subject == "social science",
    "LAN": lambda question: question.subject == "language science",
    "TXT": lambda question: bool(question.hint),
    "IMG": lambda question: question.has_image,
    "NO": lambda question: not question.hint and not question.has_image,
    "G1-6": lambda question: 1 <= question.grade <= 6,
    "G7-12": lambda question: 7 <= question.grade <= 12,
}
"""The published breakdown: subject, context modality, grade."""


def parse_answer(text: str, num_choices: int) -> int:
    """Read the index of the chosen option from an answer, or ``FAILED``.

    The whole answer is a letter A-E (further where there are more options); or it starts with one as "X. "; or it says
    "The answer is X." exactly once (with any character for the full stop, as in LLaVA's scorer). A letter beyond the
    choices has failed; nothing is guessed.
    """
    letters = LETTERS[: max(num_choices, NUM_PUBLISHED)]
    if text in tuple(letters):
        letter = text
    elif len(text) >= 3 and text[0] in letters and text[1:3] == ". ":
        letter = text[0]
    else:
        stated = _STATEMENT.findall(text)
        letter = stated[0] if len(stated) == 1 else ""
    index = LETTERS.find(letter) if letter else FAILED
    return index if index < num_choices else FAILED


def score(questions: Sequence[Question], texts: Mapping[str, str]) -> dict[str, Any]:
    """Score answers; a question without one is wrong.

    Args:
        questions: all questions of the split.
        texts: answer of each question by its id.

    Returns:
        Fractions ``accuracy`` and ``image_accuracy`` with their 95 % intervals (None over no question); counts
        ``total``, ``correct``, ``image_total``, ``image_correct``, ``unparsed``, ``missing``, ``unknown`` (predictions
        for other questions); ``breakdown`` by group; ``answers`` by question id.
    """
    if not questions:
        raise ValueError("there is no question to score")
    if request := next((question for question in questions if not question.choices), None):
        raise ValueError(f"question {request.id} has no choices: these data are for training, not for scores")
    if not any(question.id in texts for question in questions):
        raise ValueError(
            f"none of the {len(texts)} predictions answers one of the {len(questions)} questions (ids like "
            f"{', '.join(list(texts)[:3]) or 'none'} and {questions[0].id}): check split and file"
        )
    answers = {}
    for question in questions:
        found = parse_answer(texts[question.id], len(question.choices)) if question.id in texts else None
        answers[question.id] = {
            "predicted": found,
            "correct": found == question.answer,
            "image": question.has_image,
        }
    right = np.array([answers[question.id]["correct"] for question in questions])
    with_image = np.array([question.has_image for question in questions])
    return {
        "accuracy": _share(right),
        "image_accuracy": _share(right[with_image]),
        "total": len(questions),
        "correct": int(right.sum()),
        "image_total": int(with_image.sum()),
        "image_correct": int(right[with_image].sum()),
        "unparsed": sum(answer["predicted"] == FAILED for answer in answers.values()),
        "missing": sum(answer["predicted"] is None for answer in answers.values()),
        "unknown": len(texts.keys() - answers.keys()),
        "interval": _interval(right),
        "image_interval": _interval(right[with_image]),
        "breakdown": {name: _group(questions, right, belongs) for name, belongs in GROUPS.items()},
        "answers": answers,
    }


def is_score(value: Mapping[str, Any]) -> bool:
    """Whether a mapping read from a file is what :func:`score` returns."""
    answers = value.get("answers")
    counts = ("total", "correct", "image_total", "image_correct", "unparsed", "missing")
    return (
        all(isinstance(value.get(name), int) for name in counts)
        and {"accuracy", "image_accuracy", "interval", "image_interval", "breakdown"} <= value.keys()
        and isinstance(answers, Mapping)
        and all(
            isinstance(answer, Mapping) and {"predicted", "correct", "image"} <= answer.keys()
            for answer in answers.values()
        )
    )


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two scores over the questions that either answered, as both may have been asked a part: first - second.

    Args:
        first, second: results of :func:`score`.

    Returns:
        For ``all`` and ``image`` questions (None without any): both accuracies, their paired difference with its 95 %
        interval, the counts of questions that only one of them answers correctly, and McNemar's exact p-value.
    """
    if first["answers"].keys() != second["answers"].keys():
        raise ValueError(
            f"the two scores are of different questions ({len(first['answers'])} and {len(second['answers'])}, "
            f"{len(first['answers'].keys() & second['answers'].keys())} in common): score both on the same split"
        )
    scores = (first["answers"], second["answers"])
    ids = [id for id in first["answers"] if any(answers[id]["predicted"] is not None for answers in scores)]
    image_ids = [id for id in ids if first["answers"][id]["image"]]
    return {"all": _compare(ids, first, second), "image": _compare(image_ids, first, second) if image_ids else None}


def image_share(normal: float, blind: float) -> float | None:
    """Say which share of the accuracy on image questions the image earns: what is lost without it."""
    return (normal - blind) / normal if normal else None


def mcnemar(only_first: int, only_second: int) -> float:
    """Test whether two systems are equally often right alone, exactly (two-sided binomial); return the p-value."""
    total = only_first + only_second
    tail = sum(math.comb(total, wins) for wins in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**total)


def _compare(ids: Sequence[str], first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    a = np.array([first["answers"][id]["correct"] for id in ids], dtype=float)
    b = np.array([second["answers"][id]["correct"] for id in ids], dtype=float)
    difference, low, high = paired_difference_interval(a, b)
    only_first, only_second = int((a > b).sum()), int((a < b).sum())
    return {
        "total": len(ids),
        "first_accuracy": _share(a),
        "second_accuracy": _share(b),
        "difference": difference,
        "interval": [low, high],
        "only_first_correct": only_first,
        "only_second_correct": only_second,
        "mcnemar_p": mcnemar(only_first, only_second),
    }


def _group(questions: Sequence[Question], right: np.ndarray, belongs: Callable[[Question], bool]) -> dict[str, Any]:
    members = right[[belongs(question) for question in questions]]
    return {"accuracy": _share(members), "correct": int(members.sum()), "total": len(members)}


def _share(right: np.ndarray) -> float | None:
    return float(right.mean()) if len(right) else None


def _interval(right: np.ndarray) -> list[float] | None:
    return list(wilson_interval(int(right.sum()), len(right))) if len(right) else None
