"""What task files name: pictures and scores of a document, and what lmms-eval makes of all scores.

A document is a row of ``test.parquet`` (tasks.py). Choices are read as :func:`sf_llava.scienceqa.scoring.parse_answer`
reads them, yes and no as POPE does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from sf_llava.scienceqa.scoring import FAILED, LETTERS, parse_answer

YES, NO = "yes", "no"


def pictures(document: Mapping[str, Any]) -> list[Image.Image]:
    """Give the picture of a document, if it has one."""
    return [] if document["image"] is None else [document["image"]]


def score_choice(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score an answer that names the letter of an option; one that cannot be read is wrong."""
    found = parse_answer(results[0], len(document["choices"]))
    right = found != FAILED and LETTERS[found] == document["target"]
    return {"accuracy": float(right), "unparsed": float(found == FAILED)}


def score_yes_no(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Score an answer that is one word; anything but yes and no is wrong and unparsed."""
    said = results[0].strip().rstrip(".").lower()
    pair = (said, document["target"])
    scores = {"accuracy": float(said == document["target"]), "unparsed": float(said not in (YES, NO))}
    return scores | {"precision": pair, "recall": pair, "f1": pair, "yes_ratio": pair}


def precision(pairs: Sequence[tuple[str, str]]) -> float:
    """Give the share of answers yes that are right, of (said, target); 0 where nothing was answered yes."""
    return _share([target == YES for said, target in pairs if said == YES])


def recall(pairs: Sequence[tuple[str, str]]) -> float:
    """Give the share of what is there that was answered yes."""
    return _share([said == YES for said, target in pairs if target == YES])


def f1(pairs: Sequence[tuple[str, str]]) -> float:
    """Give the harmonic mean of precision and recall."""
    first, second = precision(pairs), recall(pairs)
    return 2 * first * second / (first + second) if first + second else 0.0


def yes_ratio(pairs: Sequence[tuple[str, str]]) -> float:
    """Give the share of answers yes among all."""
    return _share([said == YES for said, _ in pairs])


def _share(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes) if outcomes else 0.0
