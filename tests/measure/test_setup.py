"""What evaluators start with: devices that are there, teachers that a run names."""

import json

import pytest
import torch

from sf_llava.devices import choose_device
from sf_llava.measure.setup import teacher_of


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "unknown device 'gpu'"),
        ("", "unknown device ''"),
        ("meta", "device 'meta' cannot be used here"),
        ("cuda:99", r"device 'cuda:99' cannot be used here \(.+\): use `device` auto or cpu"),
    ],
)
def test_a_device_that_is_not_there_is_one_sentence(name, message):
    with pytest.raises(ValueError, match=message):
        choose_device(name)


def test_a_device_that_is_there_is_taken():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("config", [[], 5, None, {"teacher": 5}, {}])
def test_a_run_that_names_no_teacher_has_none(config, tmp_path):
    (tmp_path / "encoder").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "encoder" / name).write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert teacher_of(str(tmp_path / "encoder")) is None
