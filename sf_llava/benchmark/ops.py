"""``sf-llava benchmark ops``: both ops, plain PyTorch against what the encoder uses, forward and backward.

Beside them stands a copy that moves as many bytes as the op must (inputs read once, outputs written once), the bytes
that each path keeps for its backward ("fused" recomputes everything, which only the GPU kernels do by default), and the
peak of memory. On a GPU each time is that of ``CALLS`` calls in a CUDA graph: the kernels alone, not their launches,
with caches as warm as they are from one iteration of the encoder to the next.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sf_llava.benchmark.timing import capture, interleave, kept_for_backward, paired_ratio, peak_memory
from sf_llava.model.rois import initial_rois
from sf_llava.ops import force, sample_and_mix, sample_points
from sf_llava.report import device_kind, report, save

CHANNELS, POINTS, MIXING_POINTS = 64, 16, 32
CALLS = 20
SIZES = {"sf-mini": (16, 16), "sf-b-49 @224": (48, 56), "sf-l-64 @224": (64, 56), "sf-l-144 @336": (144, 84)}
"""Latents and the side of the feature map."""
PATHS = {"plain": "reference", "ours": "auto", "fused": "op"}
PARTS = ("forward", "forward and backward")
OPS: dict[str, Callable[..., Tensor]] = {"sample_points": sample_points, "sample_and_mix": sample_and_mix}


def run(
    output: Path,
    batch_sizes: list[int],
    device: str,
    dtype: str,
    repeats: int,
    seed: int,
    sizes: Sequence[str] = tuple(SIZES),
) -> list[dict[str, Any]]:
    """Time every op at every size, print the table, write ``ops_KIND_DTYPE.json`` (again after every row)."""
    torch.manual_seed(seed)
    rows = []
    for name, size, batch_size in itertools.product(OPS, sizes, batch_sizes):
        rows.append(_measure(name, size, batch_size, device, getattr(torch, dtype), repeats))
        file = f"ops_{device_kind(device)}_{dtype}"
        path = save(output, file, device, rows, dtype=dtype, repeats=repeats)
    memory = [f"{what} MiB: {', '.join(PATHS)}" for what in ("kept", "peak")]
    header = ["op", "size", "batch", "pass", "plain ms", "ours ms", "faster", "copy ms", "of copy", *memory]
    cells = [cell for row in rows for cell in _cells(row)]
    report(f"Ops, {dtype}: plain PyTorch against the op", header, cells, path)
    return rows


def _measure(name: str, size: str, batch: int, device: str, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    op: Callable[..., Tensor] = OPS[name]
    tensors = _inputs(*SIZES[size], batch, device, dtype)
    tensors = tensors if name == "sample_and_mix" else tensors[:3]
    with torch.no_grad():
        result = op(*tensors)
    grad = torch.randn_like(result)
    moved = {"forward": _size(*tensors, result), "backward": _size(*tensors, grad) + _size(*tensors)}
    row: dict[str, Any] = {"op": name, "size": size, "batch_size": batch}

    def call(path: str) -> Callable[[], Tensor]:
        def function() -> Tensor:
            with force(path):
                return op(*tensors)

        return function

    def forward(path: str) -> Callable[[], object]:
        return torch.no_grad()(call(path))

    def both(path: str) -> Callable[[], object]:
        return lambda: torch.autograd.grad(call(path)(), tensors, grad)

    makers: tuple[Callable[[str], Callable[[], object]], ...] = (forward, both)
    for part, make in zip(PARTS, makers, strict=True):
        bytes_moved = moved["forward"] + (moved["backward"] if make is both else 0)
        source = torch.empty(bytes_moved // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        functions: dict[str, Callable[[], object]] = {
            "plain": make("reference"),
            "ours": make("auto"),
            "copy": partial(target.copy_, source),
        }
        calls = 1
        if torch.device(device).type == "cuda":
            calls = CALLS
            functions = {key: capture(function, calls) for key, function in functions.items()}
        timings = interleave(functions, device, repeats, calls=calls)
        row[part] = {key: timing.to_dict() for key, timing in timings.items()} | {
            "speed_up": paired_ratio(timings["plain"], timings["ours"]),
            "share_of_copy": paired_ratio(timings["copy"], timings["ours"]),
            "bytes_moved": bytes_moved,
            "peak_bytes": {key: peak_memory(make(path), device) for key, path in PATHS.items()},
        }
    row["kept_bytes"] = {key: kept_for_backward(call(path), tensors) for key, path in PATHS.items()}
    return row


def _inputs(latents: int, side: int, batch: int, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Draw a map, the initial RoIs, offsets and mixing parameters."""
    rois = initial_rois(latents).expand(batch, -1, -1).clone()
    tensors = (
        torch.randn(batch, side, side, CHANNELS, dtype=dtype),
        rois,
        torch.randn(batch, latents, POINTS, 2),
        0.1 * torch.randn(batch, latents, CHANNELS**2 + MIXING_POINTS * POINTS, dtype=dtype),
    )
    return tuple(tensor.to(device).requires_grad_() for tensor in tensors)


def _size(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _cells(row: dict[str, Any]) -> list[list[str]]:
    return [
        [
            row["op"],
            row["size"],
            str(row["batch_size"]),
            part,
            *(f"{row[part][key]['seconds'] * 1e3:.3f}" for key in ("plain", "ours")),
            f"{row[part]['speed_up']:.2f}x",
            f"{row[part]['copy']['seconds'] * 1e3:.3f}",
            f"{row[part]['share_of_copy']:.0%}",
            _mebibytes(row["kept_bytes"]),
            _mebibytes(row[part]["peak_bytes"]),
        ]
        for part in PARTS
    ]


def _mebibytes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size / 2**20:.1f}" for size in sizes.values())
