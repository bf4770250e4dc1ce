"""What every benchmark shares: a table on screen, a JSON file with the environment it was measured in."""

import io
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sf_llava.devices import has_amx
from sf_llava.files import write_bytes, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def environment(device: str) -> dict[str, Any]:
    """Describe what a measurement ran on: hardware, threads, versions."""
    described: dict[str, Any] = {"device": device_name(device)}
    described |= {"torch": torch.__version__, "python": platform.python_version()}
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
    return f"{model} ({capability}{', AMX' if has_amx() else ''})"


def device_kind(device: str) -> str:
    """Name what speeds are comparable on, for a file: ``cuda``, or ``cpu_`` with its widest instructions.

    ``cpu_avx2``, ``cpu_avx512``, ``cpu_amx``; ``cpu_default`` on processors of another kind.
    """
    kind = torch.device(device).type
    if kind != "cpu":
        return kind
    return f"cpu_{'amx' if has_amx() else torch.backends.cpu.get_cpu_capability().lower()}"


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


def report(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], path: Path) -> None:
    """Print a table and say where its numbers are."""
    print_table(title, header, rows)
    print(f"written to {path}")


def save(output: Path, name: str, device: str, rows: Sequence[dict[str, Any]], **settings: Any) -> Path:
    """Write ``output/name.json``: the settings, the environment and one object for each row."""
    path = output / f"{name}.json"
    write_json(path, {"benchmark": name, "settings": settings, "environment": environment(device), "rows": list(rows)})
    return path


def save_figure(figure: "Figure", path: Path, dpi: int = 100) -> None:
    """Write a figure of matplotlib as a PNG file, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    write_bytes(path, buffer.getvalue())


def plot_throughput(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Plot images a second against tokens at the largest batch: each pair in the mode in which ours is fastest."""
    from matplotlib import ticker
    from matplotlib.figure import Figure

    largest = max(row["batch_size"] for row in rows)
    fastest: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -row["student"]["seconds"]):
        if row["batch_size"] == largest:
            fastest[row["pair"]] = row
    tokens = [row["tokens"] for row in fastest.values()]
    ours, clip = ([largest / row[side]["seconds"] for row in fastest.values()] for side in ("student", "teacher"))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.vlines(tokens, clip, ours, colors="grey", linestyles="dotted", linewidth=0.8)
    axes.plot(tokens, ours, "o", label="SparseFormer")
    axes.plot(tokens, clip, "s", label="the CLIP it replaces")
    for row, x, y in zip(fastest.values(), tokens, map(max, ours, clip), strict=True):
        label = f"{row['pair']}, {row['mode']}\n{row['speed_up']:.1f}x"
        axes.annotate(label, (x, y), (0, 6), textcoords="offset points", ha="center", size=8)
    axes.set(xlabel="tokens of the SparseFormer", ylabel="images a second", yscale="log")
    axes.set_title(f"{title}, batch {largest}", size=10)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.margins(x=0.1, y=0.2)
    figure.legend(loc="outside lower center", ncols=2)
    save_figure(figure, path)


def plot_parts(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Plot the time up to the first token as bars of tower, projector and prefill, one for each tower."""
    from matplotlib.figure import Figure

    names = [f"{row['tower']}\n{row['visual_tokens']} tokens" for row in rows]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    bottoms = [0.0] * len(rows)
    for part in ("tower", "projector", "prefill"):
        heights = [row["parts"][part]["seconds"] * 1e3 for row in rows]
        axes.bar(names, heights, 0.6, bottoms, label=part)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    for place, total in enumerate(bottoms):
        axes.annotate(f"{total:.0f}", (place, total), (0, 3), textcoords="offset points", ha="center", size=8)
    axes.set_ylabel("ms to the first token, batch " + str(rows[0]["batch_size"]))
    axes.set_title(title, size=10)
    axes.tick_params(axis="x", labelsize=8)
    figure.legend(loc="outside lower center", ncols=3)
    save_figure(figure, path)
