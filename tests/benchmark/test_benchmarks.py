"""The timed benchmarks run on the CPU at a small size, and write what they print."""

import json

import pytest
import torch

from sf_llava.benchmark import encoder, llava, ops
from sf_llava.benchmark.timing import Timing, interleave, paired_ratio


def test_functions_run_in_turn_after_the_warm_up():
    calls = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, "cpu", repeats=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]


def test_ratios_are_paired_and_spread_is_relative():
    slow, fast = Timing([2.0, 40.0, 6.0]), Timing([1.0, 10.0, 3.0])
    assert paired_ratio(slow, fast) == 2.0
    assert Timing([1.0, 2.0, 3.0]).spread == pytest.approx(0.25)


def test_ops_are_timed_beside_a_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(ops, "SIZES", {"small": (4, 8)})
    ops.run(tmp_path, [2], "cpu", "float32", repeats=2, seed=0)
    rows = json.loads((tmp_path / "ops_cpu_float32.json").read_text())["rows"]
    assert [row["op"] for row in rows] == ["sample_points", "sample_and_mix"]
    for row in rows:
        assert row["forward"]["bytes_moved"] < row["forward and backward"]["bytes_moved"]
        assert row["kept_bytes"]["fused"] == 0 < row["kept_bytes"]["plain"]


class Tiny(torch.nn.Module):
    """Stands in for a CLIP tower."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 64, 16, stride=16)

    def forward(self, pixels):
        return self.conv(pixels).mean(dim=(2, 3))


def test_encoders_are_timed_in_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "PAIRS", {"mini": encoder.Pair("sf-mini", 16, "tiny", 64)})
    monkeypatch.setattr(encoder, "build_image_tower", lambda name: Tiny())
    encoder.run(tmp_path, ["mini"], [1, 2], "cpu", "float32", repeats=2, seed=0)
    written = json.loads((tmp_path / "encoder_cpu_float32.json").read_text())
    assert [row["batch_size"] for row in written["rows"]] == [1, 2]
    assert written["environment"]["threads"] == torch.get_num_threads()
    assert (tmp_path / "encoder_cpu_float32.png").stat().st_size > 1000


def test_llava_is_timed_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(llava, "LLMS", {"mini": (32, 64, 1, 2)})
    monkeypatch.setattr(llava, "_clip", lambda: _small_tower(256))
    monkeypatch.setattr(llava, "_sparseformer", _small_tower)
    rows = llava.run(tmp_path, "mini", 1, "cpu", "float32", repeats=1, seed=0)
    assert [row["visual_tokens"] for row in rows] == [256, 128, 64]
    assert rows[0]["kv_cache_bytes"] == 2 * (256 + llava.TEXT_TOKENS) * 32 * 4


def _small_tower(num_tokens):
    from transformers.modeling_outputs import BaseModelOutput

    class Tower(torch.nn.Module):
        def forward(self, pixels):
            return BaseModelOutput(last_hidden_state=pixels.new_zeros(len(pixels), num_tokens + 1, 1024))

    return Tower()
