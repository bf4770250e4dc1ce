"""The timed benchmarks run on the CPU at a small size, and write what they print."""

import json
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from sf_llava.benchmark import bootstrap, encoder, everything, export, llava, ops, runtimes, targets
from sf_llava.benchmark.peers import SIDES, open_peers
from sf_llava.benchmark.timing import Timing, interleave, kept_for_backward, paired_ratio, peak_memory
from sf_llava.commands import benchmark as command
from sf_llava.configuration import PRESETS, preset
from sf_llava.export import formats
from sf_llava.model import SparseFormerModel
from sf_llava.report import device_kind
from sf_llava.zero_shot.task import zero_shot_task


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
    ops.run(tmp_path, [2], "cpu", "float32", repeats=2, seed=0, sizes=["small"])
    rows = json.loads((tmp_path / f"ops_{device_kind('cpu')}_float32.json").read_text())["rows"]
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
    encoder.run(tmp_path, ["mini"], [1, 2], ["eager"], "cpu", "float32", repeats=2, seed=0)
    written = json.loads((tmp_path / f"encoder_{device_kind('cpu')}_float32.json").read_text())
    assert [row["batch_size"] for row in written["rows"]] == [1, 2]
    assert written["environment"]["threads"] == torch.get_num_threads()
    assert (tmp_path / f"encoder_{device_kind('cpu')}_float32.png").stat().st_size > 1000


def test_exported_files_are_timed_and_scored_beside_the_model(tmp_path, monkeypatch):
    @contextmanager
    def opened(module, image_size, threads=1):  # what exports take minutes for: the model itself stands in for files
        yield {runtime: (module, 1000) for runtime in export.RUNTIMES}

    torch.manual_seed(0)
    SparseFormerModel(preset("sf-mini")).save_pretrained(tmp_path / "encoder")
    monkeypatch.setattr(export, "opened", opened)
    monkeypatch.setattr(formats, "require_runtime", lambda *arguments, **options: None)
    monkeypatch.setattr(encoder, "PAIRS", {"mini": encoder.Pair("sf-mini", 16, "tiny", 64)})
    monkeypatch.setattr(encoder, "build_image_tower", lambda name: Tiny())
    monkeypatch.setattr(export, "zero_shot_task", partial(zero_shot_task, limit=20))
    export.run(tmp_path, ["mini"], [1, 2], repeats=2, seed=0, encoder=str(tmp_path / "encoder"), questions=6)
    written = json.loads((tmp_path / f"export_{device_kind('cpu')}_float32.json").read_text())
    assert [row["batch_size"] for row in written["rows"]] == [1, 2]
    assert all(row["student"].keys() == row["teacher"].keys() == export.RUNTIMES.keys() for row in written["rows"])
    first, *others = ({**score, "runtime": None} for score in written["settings"]["scores"])
    assert first["questions"] == 6 and others == [first] * 4  # five times the same model


def test_a_training_step_is_measured_in_parts_with_its_memory(tmp_path, capsys):
    (row,) = bootstrap.run(tmp_path, ["sf-mini"], 2, "mini", "cpu", "float32", repeats=1, seed=0)
    assert set(bootstrap.PARTS) < set(row["parts"])
    assert row["kept_bytes"]["fused"] < row["kept_bytes"]["plain"]
    assert row["peak_bytes"]["fused"] < row["peak_bytes"]["plain"]
    assert "Memory of a bootstrap step" in capsys.readouterr().out


def test_llava_is_timed_in_parts_and_its_towers_stop_early(tmp_path, monkeypatch):
    monkeypatch.setattr(llava, "LLMS", {"mini": (32, 64, 1, 2)})
    thin = dict(hidden_size=1024, intermediate_size=32, focusing_size=64, focusing_num_attention_heads=1)
    monkeypatch.setitem(PRESETS, "thin", thin | dict(num_hidden_layers=3, image_size=64))
    monkeypatch.setattr(llava, "CLIP_BLOCKS", 3)
    monkeypatch.setattr(llava, "TOWERS", [llava.Tower(16, 56), llava.Tower(4, 56, "thin")])
    rows = llava.run(tmp_path, "mini", 1, "cpu", "float32", repeats=1, seed=0)
    assert [row["visual_tokens"] for row in rows] == [16, 4]
    assert [row["blocks"] for row in rows] == [2, 2]
    assert rows[1]["kv_cache_bytes"] == 2 * (4 + llava.TEXT_TOKENS) * 32 * 4
    assert rows[0]["weight_bytes"] > rows[0]["peak_bytes"] > 0
    assert (tmp_path / f"llava_mini_{device_kind('cpu')}_float32.png").stat().st_size > 1000


def test_what_else_could_be_taken_does_the_same_job(monkeypatch):
    @contextmanager
    def opened(module, image_size):  # runtimes have tests of their own, and take a minute here
        yield {name: (module, 0) for name in runtimes.RUNTIMES}

    monkeypatch.setattr(runtimes, "opened", opened)
    built = encoder.Built("sf-mini", "cpu", torch.float32)
    pixels = torch.randn(2, 3, 64, 64)
    with open_peers("mini", built.encoders) as peers, torch.inference_mode():
        shapes = {name: [getattr(peer, side)(pixels) for side in SIDES] for name, peer in peers.items()}
    cut = shapes.pop("CLIP up to layer -2")
    assert cut[0].hidden_states[-2].shape == (2, 17, 128) and cut[1].shape == (2, 65, 128)
    teacher, student = (built.encoders[side](pixels) for side in ("teacher", "student"))
    for name, (ours, theirs) in shapes.items():
        ours = getattr(ours, "image_embeds", ours)
        torch.testing.assert_close(ours, student.image_embeds, atol=0.1, rtol=0.1), name
        assert theirs.shape == teacher.shape
    assert {"CLIP, tokens merged to a quarter", "CLIP, ours packed", "CLIP, both in openvino int8"} <= shapes.keys()


def test_peak_memory_counts_what_lives_at_the_same_time():
    def function():
        first, second = torch.empty(2 << 20), torch.empty(1 << 20)
        del first
        return second, torch.empty(1 << 19)

    assert peak_memory(function, "cpu") == 12 << 20


def test_what_is_kept_for_the_backward_is_counted_once_and_without_inputs():
    weight = torch.randn(256, 256, requires_grad=True)

    def function():
        hidden = (weight @ weight).exp()  # kept by exp and by the product
        return hidden * hidden

    assert kept_for_backward(function, [weight]) == 4 * 256**2


def test_the_script_knows_every_pair_and_size():
    assert tuple(encoder.PAIRS) == command.PAIRS
    assert tuple(ops.SIZES) == command.SIZES


def test_a_step_that_fails_or_hangs_costs_no_other(tmp_path, capfd):
    faster, slower = {"speed_up": 2.0}, {"speed_up": 0.5}
    rows = [{"op": "sample_and_mix", "size": "a", "batch_size": 8, "forward": faster, "forward and backward": slower}]
    table = tmp_path / "ops_cpu_float16.json"
    write = f"import json, pathlib; pathlib.Path({str(table)!r}).write_text(json.dumps(dict(rows={rows})))"
    steps = [
        everything.Step("tests", ("-c", "raise SystemExit(3)"), 20),
        everything.Step("hangs", ("-c", "print('begun'); import time; time.sleep(60)"), 4),
        everything.Step("writes", ("-c", write), 20),
    ]
    written = everything.run(tmp_path, "cpu", steps, seconds=60)
    assert [step["outcome"] for step in written["steps"]] == ["failed with status 3", "stopped after 4 s", "done"]
    assert written["steps"][1]["output"] == ["begun"]
    assert json.loads((tmp_path / "all_cpu.json").read_text()) == written
    verdicts = {target["target"]: target for target in written["targets"]}
    assert verdicts["fused op beside plain PyTorch, float16"]["measured"] == "0.50x"
    assert verdicts["fused op beside plain PyTorch, float16"]["verdict"] == "FAIL"
    assert verdicts["fused op beside plain PyTorch, bfloat16"]["verdict"] == "not measured"
    assert "FAIL" in capfd.readouterr().out


def test_no_step_begins_when_the_time_is_over(tmp_path):
    written = everything.run(tmp_path, "cpu", [everything.Step("late", ("-c", ""), 20)], seconds=0)
    assert written["steps"] == [{"step": "late", "outcome": "no time left", "seconds": 0.0}]


def test_targets_are_judged_by_their_worst_case(tmp_path):
    def row(pair, batch, mode, speed_up, share, seconds):
        student = dict(seconds=seconds)
        return dict(pair=pair, batch_size=batch, mode=mode, speed_up=speed_up, of_ratio=share, student=student)

    rows = [
        row("sf-b-49", 128, "eager", 4.0, 0.80, 2.0),
        row("sf-b-49", 128, "graph", 4.0, 0.90, 1.0),  # the faster one counts
        row("sf-l-64", 128, "eager", 5.0, 0.86, 1.0),
        row("sf-l-128", 128, "eager", 1.0, 0.10, 1.0),  # nothing is wanted of it
        row("sf-b-49", 1, "graph", 3.5, 0.7, 1.0),
        row("sf-l-64", 1, "graph", 2.9, 0.7, 1.0),
        row("sf-l-64", 1, "eager", 1.0, 0.7, 1.0),
    ]
    (tmp_path / "encoder_cuda_float16.json").write_text(json.dumps({"rows": rows}))
    judged = {target.target: target for target in targets.judge(tmp_path, "cuda", [])}
    large = judged["encoder, share of the multiply-add ratio, float16"]
    assert (large.measured, large.verdict) == ("86%", "PASS")
    single = judged["encoder at batch 1 as a CUDA graph, float16"]
    assert (single.measured, single.verdict) == ("2.90x", "FAIL")


def test_the_plan_fits_the_command_line(tmp_path):
    steps = everything.plan(tmp_path, "cuda")
    for step in steps[1:]:
        arguments = command._parse(list(step.arguments[3:]))
        assert arguments.output == tmp_path


def test_gpu_tests_are_those_of_the_checkout_in_the_current_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    steps = everything.plan(tmp_path, "cuda")
    assert "tests" not in [step.name for step in steps]
    assert "no checkout in this directory: its GPU tests are left out" in capsys.readouterr().out
    (tmp_path / "tests" / "ops").mkdir(parents=True)
    (tmp_path / "tests" / "ops" / "test_kernels.py").touch()
    assert [step.name for step in everything.plan(tmp_path, "cuda")] == ["tests", *(step.name for step in steps)]
    assert all(step.arguments[:3] == ("-m", "sf_llava", "benchmark") for step in steps)
