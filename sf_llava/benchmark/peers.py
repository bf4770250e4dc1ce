"""What a user could take in place of the SparseFormer, and in which ways either can be run.

Beside the whole CLIP: CLIP cut at the block that LLaVA reads, CLIP with its tokens merged to a quarter (ToMe), the
smaller CLIP B/16. On a CPU in float32 also both encoders packed and exported, where the runtimes are installed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sf_llava.benchmark import runtimes
from sf_llava.benchmark.llava import LAYER
from sf_llava.export.features import ImageFeatures
from sf_llava.measure.baselines import MergedTeacher
from sf_llava.model import SparseFormerModel, packing
from sf_llava.teachers.architectures import build_image_tower, build_teacher
from sf_llava.teachers.base import Teacher

SMALLER = "open_clip:ViT-B-16-quickgelu"

Embed = Callable[[Tensor], object]
SIDES = ("ours", "theirs")


class Peer(NamedTuple):
    """Two functions of pixels (B, 3, S, S) that do the same job: by the SparseFormer, by what could stand there."""

    ours: Embed
    theirs: Embed


@contextmanager
def open_peers(tower: str, encoders: Mapping[str, nn.Module]) -> Iterator[dict[str, Peer]]:
    """Build the peers of a pair; exported files are deleted in the end.

    Args:
        tower: name of its CLIP.
        encoders: ``student``, the SparseFormer, and ``teacher``, the CLIP, on one device in one precision.
    """
    student, teacher = encoders["student"], encoders["teacher"]
    assert isinstance(student, SparseFormerModel), "a pair has one"
    device, dtype, size = student.device, student.dtype, student.config.image_size
    whole = build_teacher(tower).to(device, dtype)
    peers = {
        f"CLIP up to layer {LAYER}": Peer(_latents(student), _tokens(whole)),
        "CLIP, tokens merged to a quarter": Peer(student, MergedTeacher(whole, whole.num_patches // 4)),
    }
    if tower != SMALLER and size == 224:
        peers["CLIP B/16"] = Peer(student, build_image_tower(SMALLER).to(device, dtype))
    with ExitStack() as stack:
        if device.type == "cpu" and dtype == torch.float32:
            if packing.is_available():
                peers["CLIP, ours packed"] = Peer(packing.pack_for_cpu(student), teacher)
            if runtimes.installed():
                sides = (ImageFeatures(student).eval(), teacher)
                ours, theirs = (stack.enter_context(runtimes.opened(module, size)) for module in sides)
                for name in sorted(ours.keys() - {"eager"}):
                    peers[f"CLIP, both in {name}"] = Peer(ours[name][0], theirs[name][0])
        yield peers


def _latents(student: SparseFormerModel) -> Embed:
    return lambda pixels: student(pixels, output_hidden_states=LAYER)


def _tokens(teacher: Teacher) -> Embed:
    return lambda pixels: teacher.tokens(pixels, LAYER)


def peer_cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Show the peers of all rows: images a second of both sides, and how many times ours are theirs."""
    cells = []
    for row in rows:
        for name, one in row.get("peers", {}).items():
            speeds = [f"{row['batch_size'] / one[side]['seconds']:.2f}" for side in SIDES]
            cells.append([row["pair"], str(row["batch_size"]), name, *speeds, f"{one['speed_up']:.2f}x"])
    return cells
