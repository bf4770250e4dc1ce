"""The speed targets on a GPU, held against the tables that are there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf_llava.files import read_json

Row = dict[str, Any]
WANTED_PAIRS = ("sf-b-49", "sf-l-64")
LARGE_BATCH = 128


@dataclass(frozen=True)
class Target:
    """What was wanted, what was measured (the worst case), and PASS, FAIL or "not measured"."""

    target: str
    wanted: str
    measured: str
    verdict: str


def judge(output: Path, device: str, steps: list[dict[str, Any]]) -> list[Target]:
    """Judge every target of both half precisions by the files in ``output``, and what came of the step ``tests``."""
    tests = next((step["outcome"] for step in steps if step["step"] == "tests"), "")
    verdict = {"done": "PASS", "": "not measured"}.get(tests, "FAIL")
    targets = [Target("tests on the GPU: kernels, graphs, deterministic training", "all pass", tests, verdict)]
    for dtype in ("float16", "bfloat16"):
        ops, encoder, bootstrap = (
            _rows(output / f"{name}_{device}_{dtype}.json") for name in ("ops", "encoder", "bootstrap")
        )
        encoder += _rows(output / f"encoder_{device}_{dtype}_compiled.json")
        targets += [
            _at_least(f"sampling beside a copy, {dtype}", 0.7, _sampling(ops), "{:.0%}".format),
            _at_least(f"fused op beside plain PyTorch, {dtype}", 1.0, _fused(ops), "{:.2f}x".format),
            _at_least(f"encoder, share of the multiply-add ratio, {dtype}", 0.85, _large(encoder), "{:.0%}".format),
            _at_least(f"encoder at batch 1 as a CUDA graph, {dtype}", 3.0, _single(encoder), "{:.2f}x".format),
            _at_least(f"memory saved by the fused step, {dtype}", 0.0, _saved(bootstrap), "{:.1%}".format),
        ]
    return targets


def _rows(path: Path) -> list[Row]:
    return read_json(path)["rows"] if path.exists() else []


def _at_least(name: str, wanted: float, measured: Iterable[float], show: Callable[[float], str]) -> Target:
    worst = min(measured, default=None)
    if worst is None:
        return Target(name, f">= {show(wanted)}", "", "not measured")
    return Target(name, f">= {show(wanted)}", show(worst), "PASS" if worst >= wanted else "FAIL")


def _sampling(rows: list[Row]) -> list[float]:
    """Share of a copy's speed at full-size maps and the largest batch, where the launch does not count."""
    largest = max((row["batch_size"] for row in rows), default=0)
    full = (row for row in rows if row["op"] == "sample_points" and row["size"] != "sf-mini")
    return [row["forward"]["share_of_copy"] for row in full if row["batch_size"] == largest]


def _fused(rows: list[Row]) -> list[float]:
    """Speed-up of the fused op at every size, of the forward pass alone and with the backward."""
    passes = ("forward", "forward and backward")
    return [row[part]["speed_up"] for row in rows if row["op"] == "sample_and_mix" for part in passes]


def _large(rows: list[Row]) -> list[float]:
    """Share of the multiply-add ratio that each pair reaches at batch 128, in the mode in which ours is fastest."""
    shares = []
    for pair in WANTED_PAIRS:
        there = [row for row in rows if row["pair"] == pair and row["batch_size"] == LARGE_BATCH]
        if there:
            shares.append(min(there, key=lambda row: row["student"]["seconds"])["of_ratio"])
    return shares


def _single(rows: list[Row]) -> list[float]:
    wanted = (row for row in rows if row["pair"] in WANTED_PAIRS and row["batch_size"] == 1)
    return [row["speed_up"] for row in wanted if row["mode"] == "graph"]


def _saved(rows: list[Row]) -> list[float]:
    return [1 - row["peak_bytes"]["fused"] / row["peak_bytes"]["plain"] for row in rows]
