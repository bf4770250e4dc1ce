"""``benchmark.py encoder``: images a second of the SparseFormer beside the very CLIP it replaces.

Both are random, in the same dtype, on the same batch, asked for the embedding; on a GPU eager, compiled and as a CUDA
graph, elsewhere eager. "of it" is the speed-up as a share of the ratio of multiply-adds of the whole encoders (what
the fast paths leave out counts for us).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sf_llava.benchmark.report import plot_throughput, print_table, save
from sf_llava.benchmark.timing import interleave, paired_ratio, peak_memory
from sf_llava.configuration import preset
from sf_llava.costs import count_multiply_adds
from sf_llava.model import SparseFormerModel
from sf_llava.teachers.architectures import build_image_tower


@dataclass
class Pair:
    """A student and the tower whose place it takes."""

    student: str
    num_latents: int
    teacher: str
    image_size: int = 224


PAIRS = {
    "sf-b-49": Pair("sf-b-clip-224", 48, "open_clip:ViT-B-16-quickgelu"),
    "sf-l-64": Pair("sf-l-clip-224", 64, "open_clip:ViT-L-14-quickgelu"),
    "sf-l-128": Pair("sf-l-clip-224", 128, "open_clip:ViT-L-14-quickgelu"),
    "sf-l-144-336": Pair("sf-l-clip-336", 144, "open_clip:ViT-L-14-336-quickgelu", 336),
}
"""Named as in the paper: ``sf-b-49`` counts CLS (48 latents), the others give that many latents to a projector."""


def run(
    output: Path,
    pairs: list[str],
    batch_sizes: list[int],
    device: str,
    dtype: str,
    repeats: int,
    seed: int,
    compiled: bool = True,
) -> list[dict[str, Any]]:
    """Time every pair at every batch size, print the table, write ``encoder_DEVICE_DTYPE.json`` and a plot.

    Compiling takes minutes: on a GPU the largest batch alone is compiled, and nothing where ``compiled`` is False.
    """
    torch.manual_seed(seed)
    on_gpu = torch.device(device).type == "cuda"
    modes = {size: ["eager", "graph"] if on_gpu else ["eager"] for size in batch_sizes}
    if on_gpu and compiled:
        modes[max(batch_sizes)].insert(1, "compiled")
    rows = [row for name in pairs for row in _measure_pair(name, modes, device, getattr(torch, dtype), repeats)]
    header = ["pair", "batch", "mode", "ours img/s", "CLIP img/s", "faster", "±", "ratio", "of it", "MiB", "CLIP MiB"]
    print_table(f"Encoder beside CLIP, {dtype}", header, [_cells(row) for row in rows])
    name = f"encoder_{torch.device(device).type}_{dtype}"
    save(output, name, device, rows, dtype=dtype, repeats=repeats)
    plot_throughput(output / f"{name}.png", rows, f"{rows[-1]['mode']}, {dtype}, batch {max(batch_sizes)}")
    return rows


def _measure_pair(
    name: str, modes: dict[int, list[str]], device: str, dtype: torch.dtype, repeats: int
) -> list[dict[str, Any]]:
    pair = PAIRS[name]
    student = SparseFormerModel(preset(pair.student, num_latents=pair.num_latents)).eval().requires_grad_(False)
    encoders = {"student": student, "teacher": build_image_tower(pair.teacher)}
    multiply_adds = {
        "student": count_multiply_adds(student, pair.image_size, output_hidden_states=True),
        "teacher": count_multiply_adds(encoders["teacher"], pair.image_size),
    }
    encoders = {key: encoder.to(device, dtype) for key, encoder in encoders.items()}
    rows = []
    for batch_size, modes_here in modes.items():
        pixels = torch.randn(batch_size, 3, pair.image_size, pair.image_size, device=device, dtype=dtype)
        for mode in modes_here:
            with torch.inference_mode():
                runs = {key: _prepare(encoder, pixels, mode) for key, encoder in encoders.items()}
                memory = {key: peak_memory(function, device) for key, function in runs.items()}
                timings = interleave(runs, device, repeats)
            speed_up = paired_ratio(timings["teacher"], timings["student"])
            ratio = multiply_adds["teacher"] / multiply_adds["student"]
            rows.append(
                {
                    "pair": name,
                    "tokens": pair.num_latents + 1,
                    "batch_size": batch_size,
                    "mode": mode,
                    "student": timings["student"].to_dict() | {"peak_bytes": memory["student"]},
                    "teacher": timings["teacher"].to_dict() | {"peak_bytes": memory["teacher"]},
                    "speed_up": speed_up,
                    "multiply_add_ratio": ratio,
                    "of_ratio": speed_up / ratio,
                }
            )
    return rows


def _prepare(encoder: nn.Module, pixels: Tensor, mode: str) -> Callable[[], object]:
    """Make a function that embeds ``pixels`` in one of the modes; compiling and capturing happen here."""
    if mode == "compiled":
        encoder = torch.compile(encoder, fullgraph=isinstance(encoder, SparseFormerModel), dynamic=False)
    if mode != "graph":
        return lambda: encoder(pixels)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            encoder(pixels)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        encoder(pixels)
    return graph.replay


def _cells(row: dict[str, Any]) -> list[str]:
    student, teacher = row["student"], row["teacher"]
    memory = [f"{side['peak_bytes'] / 2**20:.0f}" if side["peak_bytes"] else "" for side in (student, teacher)]
    return [
        row["pair"],
        str(row["batch_size"]),
        row["mode"],
        f"{row['batch_size'] / student['seconds']:.1f}",
        f"{row['batch_size'] / teacher['seconds']:.1f}",
        f"{row['speed_up']:.2f}x",
        f"{max(student['spread'], teacher['spread']):.1%}",
        f"{row['multiply_add_ratio']:.2f}",
        f"{row['of_ratio']:.0%}",
        *memory,
    ]
