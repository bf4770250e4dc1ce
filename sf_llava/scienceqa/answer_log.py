"""Answers on disk: claimed by the settings they depend on, appended one by one, joined when all are there.

A killed run leaves ``answers.RANK.part.jsonl``, one for each process; the next one reads what they hold and asks the
rest.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sf_llava.files import locked, read_json, write_bytes, write_json, writing
from sf_llava.scienceqa.predictions import read_log
from sf_llava.scienceqa.problems import Problem

ANSWERS = "answers.jsonl"


class AnswerLog:
    """The answers in a directory, that of :func:`open_log`.

    Attributes:
        texts: what earlier runs answered, by question id.
    """

    def __init__(self, output: Path, rank: int, wait: Callable[[], None]) -> None:
        self.texts = _read_texts(output)
        self._output, self._rank, self._wait = output, rank, wait

    def append(self, prompts: Mapping[str, str], texts: Mapping[str, str]) -> None:
        """Add answers, by id; opened anew each time, so that they are written when this returns."""
        part = self._output / f"answers.{self._rank}.part.jsonl"
        lines = [_line(dict(question_id=id, prompt=prompts[id], text=text)) for id, text in texts.items()]
        with writing(part), open(part, "a", encoding="utf-8") as file:
            file.write("".join(lines))

    def finish(self, problems: Sequence[Problem]) -> dict[str, str]:
        """Join the parts of all processes into ``answers.jsonl``, in the order of the problems; return all by id."""
        self._wait()
        if self._rank == 0:
            _merge(self._output, problems)
        self._wait()
        return _read_texts(self._output)


@contextmanager
def open_log(
    output: Path, settings: dict[str, Any], rank: int = 0, wait: Callable[[], None] = lambda: None
) -> Iterator[AnswerLog]:
    """Hold the answers in ``output`` while the context is open, and refuse those of other settings.

    Args:
        output: directory with ``answers.jsonl`` when done, one part for each process until then, and ``run.json``.
        settings: what the answers depend on.
        rank: of this process.
        wait: waits for all processes.

    Raises:
        ValueError: ``output`` holds answers of other settings.
        RuntimeError: another run writes into it.
    """
    with locked(output) if rank == 0 else nullcontext():
        if rank == 0:
            _claim(output, settings)
            _repair(output)
        wait()
        log = AnswerLog(output, rank, wait)
        wait()
        yield log


def _line(entry: Mapping[str, str]) -> str:
    """Write one answer as a line of the log."""
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _logs(output: Path) -> list[Path]:
    """List what earlier runs left in ``output``."""
    return [file for file in (output / ANSWERS, *sorted(output.glob("answers.*.part.jsonl"))) if file.is_file()]


def _read_entries(output: Path) -> dict[str, dict[str, str]]:
    """Read all answers in ``output`` by question id."""
    return {id: entry for file in _logs(output) for id, entry in read_log(file)[0].items()}


def _read_texts(output: Path) -> dict[str, str]:
    return {id: entry["text"] for id, entry in _read_entries(output).items()}


def _repair(output: Path) -> None:
    """Cut off the torn last line of a killed run, and take out lines that are no answers: these are asked again."""
    for file in _logs(output):
        entries, bad = read_log(file)
        if bad:
            warnings.warn(
                f"{len(bad)} line(s) of {file} are damaged (the first: line {bad[0]}); their questions are asked again",
                stacklevel=5,
            )
        whole = "".join(map(_line, entries.values())).encode()
        if whole != file.read_bytes():
            write_bytes(file, whole)


def _claim(output: Path, settings: dict[str, Any]) -> None:
    """Write down what the answers in ``output`` depend on, or check it against what is written there."""
    file = output / "run.json"
    settings = json.loads(json.dumps(settings))
    way_out = "name another `output`, or remove it"
    if not file.is_file():
        if kept := _logs(output):
            raise ValueError(f"{kept[0]} holds answers, but no {file.name} beside it says of which run: {way_out}")
        write_json(file, settings)
        return
    before = read_json(file)
    if not isinstance(before, dict):
        raise ValueError(f"{file} is no record of a run, which answers need beside them: {way_out}")
    if changed := [name for name in settings.keys() | before.keys() if settings.get(name) != before.get(name)]:
        name = min(changed)
        raise ValueError(
            f"{output} holds answers of other settings ({name} was {before.get(name, 'not noted')!r}, now "
            f"{settings.get(name)!r}): {way_out}"
        )


def _merge(output: Path, problems: Sequence[Problem]) -> None:
    """Join the parts into one file in the order of the problems."""
    entries = _read_entries(output)
    assert all(problem.id in entries for problem in problems), "every question must have been answered"
    write_bytes(output / ANSWERS, "".join(_line(entries[problem.id]) for problem in problems).encode())
    for part in output.glob("answers.*.part.jsonl"):
        part.unlink()
