"""What every benchmark shares: a table on screen, a JSON file with the environment it was measured in."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sf_llava.files import write_json


def environment(device: str) -> dict[str, Any]:
    """Describe what a measurement ran on: hardware, threads, versions."""
    described = {"device": device_name(device), "torch": torch.__version__, "python": platform.python_version()}
    if device == "cpu":
        described |= {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    else:
        described["cuda"] = torch.version.cuda
    return described


def device_name(device: str) -> str:
    """Name the processor: the GPU's own name, or the CPU's as its system reports it."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{model} ({capability}{', AMX' if torch.cpu._is_amx_tile_supported() else ''})"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under a header, the first column to the left, the others to the right."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        first, *others = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def save(output: Path, name: str, device: str, rows: Sequence[dict[str, Any]], **settings: Any) -> Path:
    """Write ``output/name.json``: the settings, the environment and one object for each row."""
    path = output / f"{name}.json"
    write_json(path, {"benchmark": name, "settings": settings, "environment": environment(device), "rows": list(rows)})
    print(f"written to {path}")
    return path


def plot_throughput(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Plot images a second against tokens: ours, and CLIP as a line at each pair's level."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    largest = max(row["batch_size"] for row in rows)
    shown = [row for row in rows if row["batch_size"] == largest and row["mode"] == rows[-1]["mode"]]
    tokens = [row["tokens"] for row in shown]
    ours, clip = ([largest / row[side]["seconds"] for row in shown] for side in ("student", "teacher"))
    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.vlines(tokens, clip, ours, colors="grey", linestyles="dotted", linewidth=0.8)
    axes.plot(tokens, ours, "o", label="SparseFormer")
    axes.plot(tokens, clip, "s", label="the CLIP it replaces")
    for row, x, y in zip(shown, tokens, ours, strict=True):
        axes.annotate(f"{row['pair']} {row['speed_up']:.1f}x", (x, y), (4, 4), textcoords="offset points")
    axes.set(xlabel="tokens of the SparseFormer", ylabel="images a second", yscale="log", title=title)
    axes.margins(x=0.35, y=0.15)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
    print(f"written to {path}")
