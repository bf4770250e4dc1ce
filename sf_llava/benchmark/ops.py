"""``benchmark.py ops``: both ops, plain PyTorch against what the encoder uses, forward and backward.

Beside them stands a copy that moves as many bytes as the op must (inputs read once, outputs written once), and the
bytes that each path keeps for its backward; "fused" recomputes everything, which only the GPU kernels do by default.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sf_llava.benchmark.report import print_table, save
from sf_llava.benchmark.timing import interleave, paired_ratio, peak_memory
from sf_llava.model.rois import initial_rois
from sf_llava.ops import force, sample_and_mix, sample_points

CHANNELS, POINTS, MIXING_POINTS = 64, 16, 32
SIZES = {"sf-mini": (16, 16), "sf-b-49 @224": (48, 56), "sf-l-64 @224": (64, 56), "sf-l-144 @336": (144, 84)}
"""Latents and the side of the feature map."""
KEPT = {"plain": "reference", "ours": "auto", "fused": "op"}
OPS = {"sample_points": sample_points, "sample_and_mix": sample_and_mix}


def run(output: Path, batch_sizes: list[int], device: str, dtype: str, repeats: int, seed: int) -> list[dict[str, Any]]:
    """Time every op at every size, print the table, write ``ops_DEVICE_DTYPE.json``."""
    torch.manual_seed(seed)
    rows = [
        _measure(name, size, batch_size, device, getattr(torch, dtype), repeats)
        for name in OPS
        for size in SIZES
        for batch_size in batch_sizes
    ]
    kept = [f"kept MiB {key}" for key in KEPT]
    header = ["op", "size", "batch", "pass", "plain ms", "ours ms", "faster", "copy ms", "of copy", *kept]
    cells = [cell for row in rows for cell in _cells(row)]
    print_table(f"Ops, {dtype}: plain PyTorch against the op", header, cells)
    save(output, f"ops_{torch.device(device).type}_{dtype}", device, rows, dtype=dtype, repeats=repeats)
    return rows


def _measure(name: str, size: str, batch: int, device: str, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    op, tensors = OPS[name], _inputs(*SIZES[size], batch, device, dtype)
    tensors = tensors if name == "sample_and_mix" else tensors[:3]
    with torch.no_grad():
        result = op(*tensors)
    grad = torch.randn_like(result)
    moved = {"forward": _size(*tensors, result), "backward": _size(*tensors, grad) + _size(*tensors)}
    row: dict[str, Any] = {"op": name, "size": size, "batch_size": batch}

    def forward(path: str) -> Callable[[], object]:
        def function() -> object:
            with force(path), torch.no_grad():
                return op(*tensors)

        return function

    def both(path: str) -> Callable[[], object]:
        def function() -> object:
            with force(path):
                return torch.autograd.grad(op(*tensors), tensors, grad)

        return function

    for part, make in (("forward", forward), ("forward and backward", both)):
        bytes_moved = moved["forward"] + (moved["backward"] if make is both else 0)
        source = torch.empty(bytes_moved // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        functions = {
            "plain": make("reference"),
            "ours": make("auto"),
            "copy": lambda target=target, source=source: target.copy_(source),
        }
        timings = interleave(functions, device, repeats)
        row[part] = {key: timing.to_dict() for key, timing in timings.items()} | {
            "speed_up": paired_ratio(timings["plain"], timings["ours"]),
            "share_of_copy": paired_ratio(timings["copy"], timings["ours"]),
            "bytes_moved": bytes_moved,
            "peak_bytes": {key: peak_memory(functions[key], device) for key in ("plain", "ours")},
        }
    row["kept_bytes"] = {key: _kept(op, tensors, path) for key, path in KEPT.items()}
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


def _kept(op: Callable[..., Tensor], tensors: tuple[Tensor, ...], path: str) -> int:
    """Count the bytes kept for the backward, inputs left out."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with force(path), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        op(*tensors)
    inputs = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return sum(size for pointer, size in kept.items() if pointer not in inputs)


def _size(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _cells(row: dict[str, Any]) -> list[list[str]]:
    kept = [f"{row['kept_bytes'][key] / 2**20:.1f}" for key in KEPT]
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
            *kept,
        ]
        for part in ("forward", "forward and backward")
    ]
