"""``sf-llava benchmark bootstrap``: a training step, split into data, teacher, student and optimiser; its memory.

The teacher is random and frozen, on a GPU compiled ("plain" in the file: not); the student has its shape; half of the
cortex is frozen as in the paper. The data path
(read, crop, flip, collate) is timed alone, in one process: ``workers`` of the trainer multiply it. The student's
forward and backward is measured with plain PyTorch, with what the encoder uses ("ours"), and with the fused ops, which
on a GPU are the same: bytes kept for the backward, and the peak beyond weights and optimiser, gradients included.
"aligned" is ours with the losses on tokens that a run has by default, on tokens drawn at random.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.benchmark.encoder import PAIRS
from sf_llava.benchmark.timing import interleave, kept_for_backward, paired_ratio, peak_memory
from sf_llava.bootstrap.align import FROM_IMAGES
from sf_llava.bootstrap.objectives.objective import Seen
from sf_llava.bootstrap.objectives.statistics import MAX_DIRECTIONS, TokenStatistics
from sf_llava.bootstrap.objectives.tokens import TokenObjective
from sf_llava.configuration import preset
from sf_llava.data.bootstrap_images import BootstrapImages, collate
from sf_llava.data.names import open_images
from sf_llava.data.transforms import BootstrapTransform, Preprocessing
from sf_llava.model import SparseFormerModel
from sf_llava.ops import force
from sf_llava.report import device_kind, report, save
from sf_llava.teachers.architectures import build_teacher
from sf_llava.teachers.compiled import compile_frozen

PATHS = {"plain": "reference", "ours": "auto", "fused": "op"}
PARTS = ("data", "teacher", "student", "aligned student", "optimizer")
LAYER = -2  # that LLaVA reads


def run(
    output: Path, pairs: list[str], batch_size: int, data: str, device: str, dtype: str, repeats: int, seed: int
) -> list[dict[str, Any]]:
    """Measure a step of every pair, print two tables; ``bootstrap_KIND_DTYPE.json`` is written after every pair."""
    torch.manual_seed(seed)
    rows = []
    for name in pairs:
        rows.append(_measure(name, batch_size, data, device, getattr(torch, dtype), repeats))
        file = f"bootstrap_{device_kind(device)}_{dtype}"
        path = save(output, file, device, rows, dtype=dtype, repeats=repeats, data=data)
    header = ["pair", "batch", *(f"{part} ms" for part in PARTS), "img/s", "data img/s", "student faster"]
    report(f"A bootstrap step, {dtype}", header, [_cells(row) for row in rows], path)
    columns = [f"{kind} MiB {path}" for kind in ("kept", "peak") for path in (*PATHS, "aligned")]
    header = ["pair", "batch", *columns, "peak of fused beside plain"]
    report(f"Memory of a bootstrap step, {dtype}", header, [_memory_cells(row) for row in rows], path)
    return rows


def _measure(name: str, batch_size: int, data: str, device: str, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    pair = PAIRS[name]
    config = preset(pair.student, num_latents=pair.num_latents)
    on_gpu = torch.device(device).type == "cuda"
    student = SparseFormerModel(config).to(device).train()
    student.set_attn_implementation("sdpa" if on_gpu else "eager")  # as the trainer chooses
    for module in (*student.cortex[len(student.cortex) // 2 :], student.norm, student.projection):
        module.requires_grad_(False)
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, fused=True)
    tower = build_teacher(pair.teacher).to(device, dtype)

    def teacher(pixels: Tensor) -> tuple[Tensor, Tensor]:
        return tower.embeds_and_tokens(pixels, LAYER)

    images = BootstrapImages(
        open_images(data),
        BootstrapTransform(Preprocessing(pair.image_size, config.image_mean, config.image_std)),
        seed=0,
    )
    keys = [(0, index % len(images)) for index in range(batch_size)]
    batch = images.normalise(collate([images[key] for key in keys])["pixels"].to(device))
    with torch.no_grad():
        taught = Seen(*teacher(batch.to(dtype)))
    compiled = compile_frozen(teacher, batch.to(dtype)) if on_gpu else teacher
    objective = TokenObjective(FROM_IMAGES, draw_statistics(taught.tokens[0, 1:].float()))
    autocast = partial(torch.autocast, torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32)

    def loss(path: str) -> Tensor:
        with force(path), autocast():
            embeds = student(batch).image_embeds
        return (1 - F.cosine_similarity(embeds.float(), taught.embeds.float(), dim=-1)).mean()

    def aligned_loss() -> Tensor:
        with autocast():
            said = Seen.by_student(student(batch, output_hidden_states=(LAYER, -1)), LAYER)
        terms = objective(said, taught, torch.arange(batch_size), torch.Generator().manual_seed(0))
        cosine = F.cosine_similarity(said.embeds, taught.embeds.float(), dim=-1).mean()
        return 1 - cosine + torch.stack([weight * terms[name] for name, weight in objective.weights.items()]).sum()

    def learn(loss: Callable[[], Tensor]) -> Callable[[], object]:
        def function() -> None:
            optimizer.zero_grad()
            loss().backward()

        return function

    @torch.no_grad()
    def teach(teacher: Callable[[Tensor], tuple[Tensor, Tensor]]) -> object:
        return teacher(batch.to(dtype))

    functions = {
        "data": lambda: collate([images[key] for key in keys]),
        "plain teacher": lambda: teach(teacher),
        "teacher": lambda: teach(compiled),
        "plain student": learn(partial(loss, "reference")),
        "student": learn(partial(loss, "auto")),
        "aligned student": learn(aligned_loss),
        "optimizer": optimizer.step,
    }
    if not on_gpu:
        del functions["plain teacher"]  # it is the same there
    timings = interleave(functions, device, repeats)
    kept, peaks = {}, {}
    losses = {key: partial(loss, path) for key, path in PATHS.items()} | {"aligned": aligned_loss}
    for key, one in losses.items():
        optimizer.zero_grad()
        kept[key] = kept_for_backward(one, student.parameters())
        peaks[key] = peak_memory(learn(one), device)
    return {
        "pair": name,
        "batch_size": batch_size,
        "parts": {key: timing.to_dict() for key, timing in timings.items()},
        "ops_speed_up": paired_ratio(timings["plain student"], timings["student"]),
        "kept_bytes": kept,
        "peak_bytes": peaks,
    }


def draw_statistics(tokens: Tensor) -> TokenStatistics:
    """Draw statistics of a teacher at random, of the shapes that its tokens (M, D) ask for."""
    width = tokens.shape[-1]
    zeros, ones = torch.zeros(width, device=tokens.device), torch.ones(width, device=tokens.device)
    directions = torch.randn(width, MAX_DIRECTIONS, device=tokens.device) / width**0.5
    return TokenStatistics(zeros, ones, torch.randn_like(tokens), directions, ones.mean())


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = {part: row["parts"][part]["seconds"] for part in PARTS}
    step = seconds["teacher"] + seconds["student"] + seconds["optimizer"]
    return [
        row["pair"],
        str(row["batch_size"]),
        *(f"{seconds[part] * 1e3:.1f}" for part in PARTS),
        f"{row['batch_size'] / step:.1f}",
        f"{row['batch_size'] / seconds['data']:.0f}",
        f"{row['ops_speed_up']:.2f}x",
    ]


def _memory_cells(row: dict[str, Any]) -> list[str]:
    peaks = row["peak_bytes"]
    sizes = [*row["kept_bytes"].values(), *peaks.values()]
    mebibytes = [f"{size / 2**20:.0f}" for size in sizes]
    return [row["pair"], str(row["batch_size"]), *mebibytes, f"{peaks['fused'] / peaks['plain'] - 1:+.1%}"]
