"""Runs of one kind of student and teacher count their costs once: that takes longer than a few steps of tiny ones."""

import pytest

from sf_llava.bootstrap import run


@pytest.fixture(scope="package", autouse=True)
def costs_counted_once():
    measured: dict[str, list[dict]] = {}
    measure_costs = run.measure_costs

    def measure(teacher, student):
        config = student.config
        kind = f"{teacher!r}\n{config.to_json_string() if hasattr(config, 'to_json_string') else config}"
        if kind not in measured:
            measured[kind] = measure_costs(teacher, student)
        return measured[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "measure_costs", measure)
        yield
