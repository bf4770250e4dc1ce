"""``sf-llava benchmark encoder``: images a second of the SparseFormer beside the very CLIP it replaces.

Both have random weights (but for ``sf-mini``'s CLIP), one dtype and one batch, and are asked for the embedding: eager,
and on a GPU as a CUDA graph and compiled. "of it" is the speed-up as a share of the ratio of multiply-adds
of the whole encoders (what the fast paths leave out counts for us). MiB are those of the weights and of what a call
allocates beside them at its peak; what a CUDA graph holds is not counted.
"""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sf_llava.benchmark.peers import SIDES, Peer, open_peers, peer_cells
from sf_llava.benchmark.timing import Timing, capture, interleave, paired_ratio, peak_memory
from sf_llava.configuration import preset
from sf_llava.extras import require
from sf_llava.model import SparseFormerModel
from sf_llava.model.costs import count_multiply_adds
from sf_llava.report import device_kind, device_name, plot_throughput, report, save
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
    "sf-mini": Pair("sf-mini", 16, "mini", 64),
}
"""Named as in the paper: ``sf-b-49`` counts CLS (48 latents), the others give that many latents to a projector."""


def run(
    output: Path,
    pairs: list[str],
    batch_sizes: list[int],
    modes: list[str],
    device: str,
    dtype: str,
    repeats: int,
    seed: int,
    peers: bool = False,
) -> list[dict[str, Any]]:
    """Time every pair at every batch size in every mode, print the table, write ``encoder_KIND_DTYPE.json``, a plot.

    The file is written again after every row. With ``compiled`` alone its name ends so: compiling takes minutes. With
    ``peers`` the eager rows also hold what else could be taken, see :mod:`sf_llava.benchmark.peers`.
    """
    require("the plot of this table", "matplotlib")
    torch.manual_seed(seed)
    largest = max(batch_sizes)
    rows: list[dict[str, Any]] = []
    none: dict[str, Peer] = {}
    file = f"encoder_{device_kind(device)}_{dtype}" + ("_compiled" if modes == ["compiled"] else "")
    for name in pairs:
        built = Built(name, device, getattr(torch, dtype))
        with open_peers(built.pair.teacher, built.encoders) if peers else nullcontext(none) as beside:
            for batch_size, mode in itertools.product(batch_sizes, modes):
                rows.append(_measure(built, batch_size, mode, device, repeats, beside if mode == "eager" else {}))
                path = save(output, file, device, rows, dtype=dtype, repeats=repeats)
                if batch_size == largest:
                    plot_throughput(path.with_suffix(".png"), rows, f"{device_name(device)}, {dtype}")
    header = ["pair", "batch", "mode", "ours img/s", "CLIP img/s", "faster", "±", "ratio", "of it", "MiB", "CLIP MiB"]
    report(f"Encoder beside CLIP, {dtype}", header, [_cells(row) for row in rows], path)
    if peers:
        header = ["pair", "batch", "beside", "ours img/s", "theirs img/s", "faster"]
        report(f"Encoder beside its peers, {dtype}", header, peer_cells(rows), path)
    return rows


class Built:
    """A pair's encoders on a device, and the ratio of their multiply-adds."""

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        self.name, self.dtype, self.pair = name, dtype, PAIRS[name]
        size = self.pair.image_size
        with torch.device(device):
            student = SparseFormerModel(preset(self.pair.student, num_latents=self.pair.num_latents))
            teacher = build_image_tower(self.pair.teacher)
        self.encoders = {"student": student.eval().requires_grad_(False), "teacher": teacher}
        self.encoders = {key: encoder.to(device, dtype) for key, encoder in self.encoders.items()}
        whole = count_multiply_adds(student, size, output_hidden_states=True)
        self.ratio = count_multiply_adds(teacher, size) / whole


def _measure(
    built: Built, batch_size: int, mode: str, device: str, repeats: int, peers: dict[str, Peer]
) -> dict[str, Any]:
    """Time both encoders on one batch in one mode, and their peers in the same run."""
    pair, encoders = built.pair, built.encoders
    pixels = torch.randn(batch_size, 3, pair.image_size, pair.image_size, device=device, dtype=built.dtype)
    with torch.inference_mode():
        runs = {key: _prepare(encoder, pixels, mode) for key, encoder in encoders.items()}
        both = {
            f"{side} {name}": partial(getattr(peer, side), pixels) for name, peer in peers.items() for side in SIDES
        }
        timings = interleave(runs | both, device, repeats)
        memory = {key: None if mode == "graph" else peak_memory(function, device) for key, function in runs.items()}
    speed_up = paired_ratio(timings["teacher"], timings["student"])
    measured = {
        key: timings[key].to_dict()
        | {"weight_bytes": sum(p.nbytes for p in encoder.parameters()), "peak_bytes": memory[key]}
        for key, encoder in encoders.items()
    }
    return {
        "pair": built.name,
        "tokens": pair.num_latents + 1,
        "batch_size": batch_size,
        "mode": mode,
        **measured,
        "speed_up": speed_up,
        "multiply_add_ratio": built.ratio,
        "of_ratio": speed_up / built.ratio,
    } | ({"peers": {name: _peer_row(timings, name) for name in peers}} if peers else {})


def _peer_row(timings: dict[str, Timing], name: str) -> dict[str, Any]:
    ours, theirs = (timings[f"{side} {name}"] for side in SIDES)
    return {"ours": ours.to_dict(), "theirs": theirs.to_dict(), "speed_up": paired_ratio(theirs, ours)}


def _prepare(encoder: nn.Module, pixels: Tensor, mode: str) -> Callable[[], object]:
    """Make a function that embeds ``pixels`` in one of the modes; compiling and capturing happen here."""
    embed: Callable[[Tensor], object] = encoder
    if mode == "compiled":
        embed = torch.compile(encoder, fullgraph=isinstance(encoder, SparseFormerModel), dynamic=False)

    def function() -> object:
        return embed(pixels)

    return capture(function) if mode == "graph" else function


def _cells(row: dict[str, Any]) -> list[str]:
    student, teacher = row["student"], row["teacher"]
    memory = [
        "" if side["peak_bytes"] is None else f"{(side['weight_bytes'] + side['peak_bytes']) / 2**20:.0f}"
        for side in (student, teacher)
    ]
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
