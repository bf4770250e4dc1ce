"""Devices and precisions by name: those that are there, and one sentence for the others."""

import pytest
import torch

from sf_llava.devices import as_dtype, as_dtype_to_load, choose_device, choose_precision


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


@pytest.mark.parametrize(("capabilities", "fast"), [({"amx_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")])
def test_auto_is_bf16_on_a_cpu_with_amx_alone(monkeypatch, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_precision("auto", "cpu") == fast
    assert [choose_precision(name, "cpu") for name in ("fp32", "fp16", "bf16")] == ["fp32", "fp16", "bf16"]


@pytest.mark.parametrize(("supported", "fast"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_cuda_is_bf16_unless_it_is_emulated(monkeypatch, supported, fast):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert choose_precision("auto", torch.device("cuda", 1)) == fast


def test_a_precision_that_is_none_is_named():
    with pytest.raises(ValueError, match="unknown dtype 'fp64': expected fp32, fp16, bf16, auto or"):
        choose_precision("fp64", "cpu")
