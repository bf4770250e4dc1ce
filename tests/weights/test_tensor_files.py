"""Weights files: what torch itself reads of them, and that nothing in them runs or takes endless memory."""

import argparse
import os
import re
import resource
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sf_llava.weights.tensor_files import read_state_dict, require_numbers


class Runs:
    """An object whose unpickling would run code."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(3, 2)
        self.blocks = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.scale = nn.Parameter(torch.randn(()).half())
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


STATE = {
    "a.weight": torch.randn(4, 5),
    "a.bias": torch.randn(4).bfloat16(),
    "b.transposed": torch.randn(3, 7).T,
    "b.slice": torch.randn(10)[3:7],
    "count": torch.tensor(3),
    "empty": torch.zeros(0, 3),
    "mask": torch.tensor([True, False]),
}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}])
def test_torch_files_give_back_what_was_saved(tmp_path, options):
    torch.save(STATE, tmp_path / "weights.pt", **options)
    assert_equal(read_state_dict(tmp_path / "weights.pt"), STATE)


def test_safetensors_are_read_whatever_the_file_is_called(tmp_path):
    state = {name: tensor.contiguous() for name, tensor in STATE.items()}
    save_file(state, tmp_path / "weights.pt")
    assert_equal(read_state_dict(tmp_path / "weights.pt"), state)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_torchscript_archive_gives_the_state_dict_that_torch_would_give(tmp_path):
    torch.jit.script(Inner()).save(tmp_path / "archive.pt")
    assert_equal(read_state_dict(tmp_path / "archive.pt"), torch.jit.load(tmp_path / "archive.pt").state_dict())


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_code_in_a_torchscript_archive_does_not_run(tmp_path):
    mark = tmp_path / "ran"
    source = f"""
import torch
from typing import Tuple
class Evil(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("b", torch.zeros(3))
    @torch.jit.export
    def __getstate__(self) -> Tuple[torch.Tensor, bool]:
        return self.b, self.training
    @torch.jit.export
    def __setstate__(self, state: Tuple[torch.Tensor, bool]):
        self.b = state[0]
        self.training = state[1]
        torch.ops.aten.save(state[0], {str(mark)!r})
    def forward(self, x):
        return x
torch.jit.save(torch.jit.script(Evil()), {str(tmp_path / "weights.pt")!r})
"""
    (tmp_path / "evil.py").write_text(source)
    subprocess.run([sys.executable, tmp_path / "evil.py"], check=True, capture_output=True)
    mark.unlink(missing_ok=True)
    torch.jit.load(tmp_path / "weights.pt")
    assert mark.exists(), "the archive is no threat, so this test shows nothing"
    mark.unlink()
    with pytest.raises(ValueError, match="holds no tensors"):
        read_state_dict(tmp_path / "weights.pt")
    assert not mark.exists()


@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}])
@pytest.mark.parametrize("beside", [{}, STATE])
def test_pickled_code_does_not_run_and_is_named(tmp_path, options, beside):
    mark, file = tmp_path / "ran", tmp_path / "weights.pt"
    torch.save({"model": dict(beside), "code": Runs(mark)}, file, **options)
    torch.load(file, weights_only=False)
    assert mark.exists(), "the pickle is no threat, so this test shows nothing"
    mark.unlink()
    with pytest.raises(ValueError, match=r"could not be read(: it names \w+\.system|)"):
        read_state_dict(file)
    assert not mark.exists()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "student.encoder."])
def test_a_prefix_before_every_key_is_taken_off(tmp_path, prefix):
    torch.save({prefix + name: tensor for name, tensor in STATE.items()}, tmp_path / "weights.pt")
    assert_equal(read_state_dict(tmp_path / "weights.pt"), STATE)


def test_one_state_dict_inside_is_found_and_several_are_refused_or_chosen(tmp_path):
    file, ema = tmp_path / "weights.pt", {name: tensor + 1 for name, tensor in STATE.items() if name != "mask"}
    training = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}, "param_groups": [1]}}
    torch.save({"net": STATE, **training}, file)
    assert_equal(read_state_dict(file), STATE)
    torch.save({"model": STATE, "model_ema": ema, **training}, file)
    assert_equal(read_state_dict(file, prefer=("model_ema", "model")), ema)
    with pytest.raises(ValueError, match=r"several state dicts \(model, model_ema\): save the one"):
        read_state_dict(file)


@pytest.mark.parametrize("content", [{}, [1, 2], torch.zeros(3), {"a": 1}, {1: torch.zeros(2)}, None])
def test_files_without_a_state_dict_say_so(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="holds no state dict of tensors"):
        read_state_dict(tmp_path / "weights.pt")


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_tensor_that_claims_more_numbers_than_the_file_holds_is_refused(tmp_path, options):
    torch.save({"x": torch.zeros(1).expand(10**12), "y": torch.zeros(2)}, tmp_path / "weights.pt", **options)
    with pytest.raises(ValueError, match="claim"):
        read_state_dict(tmp_path / "weights.pt")


def test_compressed_archives_are_refused_before_they_swell(tmp_path):
    torch.save({"x": torch.zeros(1 << 22)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as bomb:
        for member in plain.namelist():
            bomb.writestr(member, plain.read(member))
    with pytest.raises(ValueError, match="compressed tensors"):
        read_state_dict(tmp_path / "bomb.pt")


GIANTS = {
    "torch": b"PK\3\4",
    "before torch 1.6": b"\x80\x02",
    "safetensors": b"\x10\0\0\0\0\0\0\0{",
    "a pickle with an absurd memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
}


@pytest.mark.parametrize("kind", GIANTS)
def test_sparse_giants_are_a_sentence_within_bounded_memory(tmp_path, kind):
    file = tmp_path / "giant.pt"
    file.write_bytes(GIANTS[kind])
    if "memo" not in kind:
        os.truncate(file, 1 << 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="giant"):
        read_state_dict(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # KiB


@pytest.mark.parametrize("size", [0, 1, 8, 9, 100, 1000, -100])
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, None])
def test_truncated_files_are_one_sentence(tmp_path, size, options):
    file = tmp_path / "weights.pt"
    if options is None:
        save_file({"a": torch.zeros(1000)}, file)
    else:
        torch.save(STATE | {"big": torch.zeros(1000)}, file, **options)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"weights.pt (could not be read .*truncated|is truncated)"):
        read_state_dict(file)


def test_pipes_devices_and_folders_are_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", ""):
        with pytest.raises(OSError, match="not a file"):
            read_state_dict(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "nowhere")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(value):
    require_numbers({"a": torch.ones(2)}, "file")
    with pytest.raises(ValueError, match=re.escape("file holds weights that are NaN or infinite: b")):
        require_numbers({"a": torch.ones(2), "b": torch.full((2,), value)}, "file")
    with pytest.raises(ValueError, match="no floating-point numbers: b"):
        require_numbers({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.int8)}, "file")
