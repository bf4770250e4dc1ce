"""Runs of one kind of student and teacher count their costs once: that takes longer than a few steps of tiny ones."""

import pytest

from sf_llava.bootstrap import run

_measured: dict[str, list[dict]] = {}
_measure = run.measure_costs


@pytest.fixture(autouse=True)
def costs_counted_once(monkeypatch):
    def measure(teacher, student):
        kind = f"{teacher!r}\n{student.config.to_json_string()}"
        if kind not in _measured:
            _measured[kind] = _measure(teacher, student)
        return _measured[kind]

    monkeypatch.setattr(run, "measure_costs", measure)
