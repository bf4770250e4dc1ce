"""``sf-llava benchmark all``: the tests that need a GPU and every timed table in half precision, within ten minutes.

Each step is a process of its own with a time limit, so that one that fails or hangs costs no other; tables are written
row by row, so that one cut short keeps what it has. In the end the targets are held against the tables, and everything
stands in ``all_DEVICE.json``.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from sf_llava.benchmark.targets import judge
from sf_llava.files import make_directory, write_json
from sf_llava.report import environment, print_table

NAMES = {"float16": "fp16", "bfloat16": "bf16"}
SECONDS = 580
MINIMUM = 15  # with less time left than this, a step is not begun


@dataclass(frozen=True)
class Step:
    """A process: its name in the report, its arguments to Python, its share of the time at most."""

    name: str
    arguments: tuple[str, ...]
    seconds: int


def tests() -> list[Step]:
    """Make the step that runs the tests of the checkout in the current directory, if there is one."""
    if not Path("tests", "ops", "test_kernels.py").is_file():
        print("no checkout in this directory: its GPU tests are left out")
        return []
    return [Step("tests", ("-m", "pytest", "-m", "gpu", "-ra", "tests"), 180)]


def table(command: str, output: Path, device: str, dtype: str, seconds: int, *more: str) -> Step:
    """Make the step that measures one table."""
    program = ("-m", "sf_llava", "benchmark", command)
    arguments = (*program, "--output", str(output), "--device", device, "--dtype", NAMES[dtype], *more)
    return Step(f"{command} {dtype}", arguments, seconds)


def plan(output: Path, device: str) -> list[Step]:
    """List the steps, the most wanted first; compiling takes what is left at the end."""
    steps = tests()
    for dtype in ("float16", "bfloat16"):
        pairs = ("--pairs", "sf-b-49", "sf-l-64", *(("sf-l-128",) if dtype == "float16" else ()))
        steps += [
            table("ops", output, device, dtype, 90, "--batch-size", "8", "128", "--repeats", "20"),
            table("encoder", output, device, dtype, 120, *pairs, "--modes", "eager", "graph"),
            table("bootstrap", output, device, dtype, 90, "--batch-size", "128", "--repeats", "5"),
            table("llava", output, device, dtype, 60, "--llm", "7b"),
        ]
    compiled = table("encoder", output, device, "float16", 240, "--modes", "compiled", "--batch-size", "128")
    return [*steps, compiled]


def run(output: Path, device: str, steps: list[Step], seconds: float = SECONDS) -> dict[str, Any]:
    """Run the steps in turn until the time is over; print and write what came of them and of the targets.

    Returns:
        What ``all_DEVICE.json`` holds: ``steps`` and ``targets``.
    """
    make_directory(output)
    end = time.monotonic() + seconds
    path = output / f"all_{device.split(':')[0]}.json"
    written: dict[str, Any] = {"environment": environment(device), "steps": []}
    for step in steps:
        print(f"\n== {step.name}", flush=True)
        left = end - time.monotonic()
        if left < MINIMUM:
            outcome: dict[str, Any] = {"outcome": "no time left", "seconds": 0.0}
        else:
            outcome = _run(step, min(left, step.seconds))
        print(f"== {step.name}: {outcome['outcome']} ({outcome['seconds']:.0f} s)", flush=True)
        written["steps"].append({"step": step.name, **outcome})
        written["targets"] = [asdict(target) for target in judge(output, device.split(":")[0], written["steps"])]
        write_json(path, written)
    rows = [[step["step"], step["outcome"], f"{step['seconds']:.0f}"] for step in written["steps"]]
    print_table("Steps", ["step", "outcome", "s"], rows)
    rows = [[t["target"], t["wanted"], t["measured"], t["verdict"]] for t in written["targets"]]
    print_table("Targets", ["target", "wanted", "measured", "verdict"], rows)
    print(f"written to {path}")
    return written


def _run(step: Step, limit: float) -> dict[str, Any]:
    """Run one process with all that it starts; its output is shown as it comes, and its end kept where it fails."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-u", *step.arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=_show, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        code = process.wait(limit)
        outcome = "done" if code == 0 else f"failed with status {code}"
    except subprocess.TimeoutExpired:
        outcome = f"stopped after {limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    reader.join()
    result: dict[str, Any] = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1)}
    return result if outcome == "done" else result | {"output": lines[-40:]}


def _show(output: IO[str], lines: list[str]) -> None:
    for line in output:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
