"""What evaluators start with: the teacher that a run names."""

import json

import pytest

from sf_llava.measure.setup import teacher_of


@pytest.mark.parametrize("config", [[], 5, None, {"teacher": 5}, {}])
def test_a_run_that_names_no_teacher_has_none(config, tmp_path):
    (tmp_path / "encoder").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "encoder" / name).write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert teacher_of(str(tmp_path / "encoder")) is None
