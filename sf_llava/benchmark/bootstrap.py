"""``benchmark.py bootstrap``: one step of bootstrapping, split into data, teacher, student and optimiser.

The teacher is random and frozen, the student has its shape; half of the cortex is frozen as in the paper. The data path
(read, crop, flip, normalise) is timed alone, in one process: ``--workers`` of the trainer multiply it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from sf_llava.benchmark.encoder import PAIRS
from sf_llava.benchmark.report import print_table, save
from sf_llava.benchmark.timing import interleave, paired_ratio, peak_memory
from sf_llava.configuration import preset
from sf_llava.data.bootstrap_images import BootstrapImages, collate
from sf_llava.data.names import open_images
from sf_llava.data.transforms import BootstrapTransform, Preprocessing
from sf_llava.model import SparseFormerModel
from sf_llava.ops import force
from sf_llava.teachers.architectures import build_image_tower

PATHS = {"plain": "reference", "ours": "auto"}


def run(
    output: Path, pairs: list[str], batch_size: int, data: str, device: str, dtype: str, repeats: int, seed: int
) -> list[dict[str, Any]]:
    """Time the parts of a step for every pair, print the table, write ``bootstrap_DEVICE_DTYPE.json``."""
    torch.manual_seed(seed)
    rows = [_measure(name, batch_size, data, device, getattr(torch, dtype), repeats) for name in pairs]
    parts = ["data", "teacher", "student", "optimizer"]
    header = ["pair", "batch", *(f"{part} ms" for part in parts), "img/s", "data img/s", "ops", "MiB", "plain MiB"]
    print_table(f"A bootstrap step, {dtype}", header, [_cells(row, parts) for row in rows])
    name = f"bootstrap_{torch.device(device).type}_{dtype}"
    save(output, name, device, rows, dtype=dtype, repeats=repeats, data=data)
    return rows


def _measure(
    name: str, batch_size: int, data: str, device: str, dtype: torch.dtype, repeats: int
) -> dict[str, Any]:
    pair = PAIRS[name]
    config = preset(pair.student, num_latents=pair.num_latents)
    student = SparseFormerModel(config).to(device).train()
    for module in (*student.cortex[len(student.cortex) // 2 :], student.norm, student.projection):
        module.requires_grad_(False)
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-5, fused=True)
    teacher = build_image_tower(pair.teacher).to(device, dtype)
    if torch.device(device).type == "cuda":
        teacher = torch.compile(teacher)
    images = BootstrapImages(
        open_images(data),
        BootstrapTransform(Preprocessing(pair.image_size, config.image_mean, config.image_std)),
        seed=0,
    )
    keys = [(0, index % len(images)) for index in range(batch_size)]
    batch = collate([images[key] for key in keys])["pixel_values"].to(device)
    with torch.no_grad():
        target = teacher(batch.to(dtype)).float()

    def learn(path: str) -> Callable[[], object]:
        def function() -> None:
            optimizer.zero_grad()
            with force(path):
                with torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32):
                    embeds = student(batch).image_embeds
                (1 - F.cosine_similarity(embeds.float(), target, dim=-1)).mean().backward()

        return function

    def teach() -> object:
        with torch.no_grad():
            return teacher(batch.to(dtype))

    functions = {
        "data": lambda: collate([images[key] for key in keys]),
        "teacher": teach,
        "plain student": learn("reference"),
        "student": learn("auto"),
        "optimizer": optimizer.step,
    }
    timings = interleave(functions, device, repeats)
    peaks = {key: peak_memory(functions[key], device) for key in ("plain student", "student")}
    return {
        "pair": name,
        "batch_size": batch_size,
        "parts": {key: timing.to_dict() for key, timing in timings.items()},
        "ops_speed_up": paired_ratio(timings["plain student"], timings["student"]),
        "peak_bytes": peaks,
    }


def _cells(row: dict[str, Any], parts: list[str]) -> list[str]:
    seconds = {part: timing["seconds"] for part, timing in row["parts"].items()}
    step = seconds["teacher"] + seconds["student"] + seconds["optimizer"]
    peaks = [f"{peak / 2**20:.0f}" if peak else "" for peak in reversed(row["peak_bytes"].values())]
    return [
        row["pair"],
        str(row["batch_size"]),
        *(f"{seconds[part] * 1e3:.1f}" for part in parts),
        f"{row['batch_size'] / step:.1f}",
        f"{row['batch_size'] / seconds['data']:.0f}",
        f"{row['ops_speed_up']:.2f}x",
        *peaks,
    ]
