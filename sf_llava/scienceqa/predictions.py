"""Files of answers to questions: JSON lines as this project and LLaVA write them, and one JSON value for all."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

from sf_llava.files import read_bytes, read_text
from sf_llava.scienceqa.problems import read_id

FORMS = (
    'JSON lines {"question_id": ..., "text": ...}, one JSON list of these, one JSON object {id: text}, or LLaVA\'s '
    "result file with outputs"
)


def read_predictions(path: str | Path) -> dict[str, str]:
    """Read the text of each answer from any of ``FORMS``.

    Of several answers to one question the last counts, as in LLaVA's scorer; a warning tells how many there are.

    Raises:
        ValueError: no such form, or a broken entry; the message names it.
    """
    if not Path(path).is_file():
        raise ValueError(f"no predictions at {path}: expected a file, {FORMS}")
    text = read_text(path)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):  # several lines, or broken ones
        return _unite([_read_entry(line, f"{path}, line {number}") for number, line in _lines(text)], path)
    if isinstance(whole, list):
        return _unite([_check_entry(entry, f"{path}, entry {number}") for number, entry in enumerate(whole, 1)], path)
    if isinstance(whole, dict) and isinstance(whole.get("outputs"), dict):
        return _check_mapping(whole["outputs"], path)
    if isinstance(whole, dict) and not {"question_id", "text"} & whole.keys():
        return _check_mapping(whole, path)
    return dict([_check_entry(whole, f"{path}, line 1")])


def read_log(path: Path) -> tuple[dict[str, dict[str, str]], list[int]]:
    """Read a log of answers that a kill or a full disk may have damaged; a last line without an end is left out.

    Returns:
        The entries by question id, the last of several, and the numbers (from 1) of the lines that are none.
    """
    good: dict[str, dict[str, str]] = {}
    bad = []
    for number, line in enumerate(read_bytes(path).split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line.decode())
            id, _ = _check_entry(entry, str(path))
        except (ValueError, RecursionError):
            bad.append(number)
        else:
            good[id] = entry
    return good, bad


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number the lines that hold something; ``splitlines`` would also cut at U+2028 inside an answer."""
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _read_entry(line: str, where: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        text = f"{where} is no prediction with question_id and text: {line[:40]!r}"
        raise ValueError(f"{text}; expected {FORMS}") from error
    return _check_entry(entry, where)


def _check_entry(entry: object, where: str) -> tuple[str, str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise ValueError(f"{where} is no prediction with question_id and text: expected {FORMS}")
    return read_id(entry.get("question_id"), where), entry["text"]


def _unite(entries: list[tuple[str, str]], path: str | Path) -> dict[str, str]:
    answers: dict[str, str] = {}
    repeated: dict[str, None] = {}
    for id, text in entries:
        if answers.get(id, text) != text:
            repeated[id] = None
        answers[id] = text
    if repeated:
        first = next(iter(repeated))
        warnings.warn(
            f"{path} answers {len(repeated)} question(s) more than once and differently (the first: {first}): the last "
            "answer counts",
            stacklevel=3,
        )
    return answers


def _check_mapping(answers: dict[str, object], path: str | Path) -> dict[str, str]:
    if strange := [id for id, answer in answers.items() if not isinstance(answer, str)]:
        raise ValueError(f"{path}: the output of {strange[0]} is no text: expected {FORMS}")
    return {id: answer for id, answer in answers.items() if isinstance(answer, str)}
