"""Devices and precisions by name: those that are there, and one sentence for the others."""

import pytest
import torch

from sf_llava.devices import as_dtype, as_dtype_to_load, choose_device


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


def test_auto_is_for_what_is_loaded():
    assert as_dtype_to_load("auto") == "auto" and as_dtype_to_load("fp16") == as_dtype("fp16") == torch.float16
    with pytest.raises(ValueError, match=r"unknown dtype 'auto': expected fp32, fp16, bf16 or a torch\.dtype"):
        as_dtype("auto")
