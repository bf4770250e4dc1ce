"""What a run keeps of its teacher (see teacher_cache.py): whether it pays, where it lies, how much it is."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from sf_llava import files
from sf_llava.bootstrap.rows import SEAL_BYTES, RowFile
from sf_llava.bootstrap.teacher_cache import RowShape, TeacherCache
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.measure.store import digest_texts
from sf_llava.report import device_name
from sf_llava.teachers.base import Teacher

SHARE_OF_DISK = 0.5
"""Of what is free on the disk of a run, so much may be taken without being asked for: checkpoints need room too."""


@dataclass(frozen=True)
class ShownImages:
    """Images of a run, and how often it shows them: ``count`` times altogether; ``digest`` is of the images."""

    images: BootstrapImages
    count: int
    digest: str

    @property
    def is_random(self) -> bool:
        return self.images.transform.is_random

    @property
    def num_views(self) -> int:
        """How many different views are shown."""
        return self.count if self.is_random else min(self.count, len(self.images))

    @property
    def repeats(self) -> bool:
        """Whether a view is shown more than once."""
        return self.count > self.num_views


@dataclass(frozen=True)
class CachePlan:
    """What is kept of the teacher, and where.

    Attributes:
        directory: of the files.
        shape: of a row.
        abouts: for each set of images, everything on which the bits of its rows depend; a file each.
        num_bytes: that will be written at most.
    """

    directory: Path
    shape: RowShape
    abouts: tuple[dict[str, Any], ...]
    num_bytes: int

    @property
    def keys(self) -> list[str]:
        """Names of the files: digests of what they are about."""
        return [digest_texts(json.dumps(about, sort_keys=True)) for about in self.abouts]

    def __str__(self) -> str:
        what = "CLS and tokens" if self.shape.tokens > 1 else "CLS"
        return f"the teacher's {what} of every view, {size_of(self.num_bytes)}, are kept in {self.directory}"

    def require_room(self) -> None:
        """Refuse what the disk has no room for.

        Raises:
            OSError: it has not; the message says what to do.
        """
        free = shutil.disk_usage(files.make_directory(self.directory)).free
        there = [path.stat().st_blocks * 512 for path in self._paths() if path.is_file()]
        if self.num_bytes - sum(there) > free:
            raise OSError(
                f"{self} and {size_of(free)} are free there: name another directory with `teacher_cache`, or none"
            )

    def to_dict(self) -> dict[str, Any]:
        """Say for ``config.json`` what is kept where."""
        return {"directory": str(self.directory), "files": [path.name for path in self._paths()],
                "bytes": self.num_bytes}  # fmt: skip

    @contextmanager
    def open(self, accelerator: Accelerator) -> Iterator["TeacherCache"]:
        """Open the files, or make them, and close them at the end.

        Beside each the main process writes what it is about.

        Raises:
            OSError: one cannot be made or opened; the message names it.
        """
        files.make_directory(self.directory)
        if accelerator.is_main_process:
            for path, about in zip(self._paths(), self.abouts, strict=True):
                files.write_json(path.with_suffix(".json"), about)
        with ExitStack() as stack:
            opened = [
                RowFile(path, self.shape.num_bytes, key) for path, key in zip(self._paths(), self.keys, strict=True)
            ]
            for file in opened:
                stack.callback(file.close)
            yield TeacherCache(opened, self.shape, accelerator.device)

    def _paths(self) -> list[Path]:
        return [self.directory / f"{key}.rows" for key in self.keys]


def plan_cache(
    asked: str,
    run_cache: Path,
    sets: Sequence[ShownImages],
    at_once: int,
    teacher: Teacher,
    weights: str,
    layer: int | None,
    is_compiled: bool,
) -> tuple[CachePlan | None, str]:
    """Decide what is kept of the teacher.

    Args:
        asked: ``none``; a directory, where it is kept for other runs too; or ``auto``: the CLS, for this run alone, if
            views are shown more than once.
        run_cache: directory for the latter.
        sets: the training images, and the pictures of questions where there are any.
        at_once: pictures of all sets that the teacher sees at once.
        teacher: the teacher.
        weights: digest of its weights.
        layer: hidden state that objectives read; None where none does.
        is_compiled: whether the teacher runs compiled.

    Returns:
        The plan, None where nothing is kept; and a sentence, empty where nothing is to be said.

    Raises:
        OSError: the directory that was asked for cannot be made, or its disk has no room.
    """
    tokens = 1 if layer is None else 1 + teacher.num_tokens
    shape = RowShape(tokens, teacher.hidden_size, teacher.dtype)
    num_bytes = sum(shown.num_views for shown in sets) * (SEAL_BYTES + shape.num_bytes)
    automatic = asked == "auto"
    if asked == "none" or (automatic and not all(shown.repeats for shown in sets)):
        return None, ""
    if automatic and layer is not None:
        return None, f"the teacher's tokens would be kept with `teacher_cache` DIR: {size_of(num_bytes)}"
    about = describe_teacher(teacher, weights, layer, at_once, is_compiled)
    abouts = tuple(about | describe_views(shown) for shown in sets)
    plan = CachePlan(run_cache if automatic else Path(asked), shape, abouts, num_bytes)
    if not automatic:
        plan.require_room()
    elif num_bytes > SHARE_OF_DISK * shutil.disk_usage(run_cache.parent).free:
        return None, f"too little of the disk is free to keep the teacher's CLS ({size_of(num_bytes)})"
    return plan, str(plan)


def describe_teacher(
    teacher: Teacher, weights: str, layer: int | None, at_once: int, is_compiled: bool
) -> dict[str, Any]:
    """Name what the bits of a teacher's hidden states depend on, beside the picture."""
    geometry = ("image_size", "patch_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")
    kind = teacher.device.type
    return {
        "teacher": {name: getattr(teacher, name) for name in geometry} | {"weights": weights},
        "layer": layer,
        "dtype": str(teacher.dtype),
        "pictures_at_once": at_once,
        "compiled": is_compiled,
        "device": device_name(kind) if kind in ("cpu", "cuda") else kind,
        "threads": torch.get_num_threads() if kind == "cpu" else None,
        "torch": torch.__version__,
    }


def describe_views(shown: ShownImages) -> dict[str, Any]:
    """Name what decides which views of which pictures there are."""
    images = shown.images
    views = {"transform": repr(images.transform), "seed": images.seed if shown.is_random else None}
    return {"images": len(images), "digest": shown.digest} | views


def size_of(num_bytes: int) -> str:
    """Write a number of bytes for people."""
    unit, size = next((found for found in (("GB", 1e9), ("MB", 1e6)) if num_bytes >= found[1]), ("kB", 1e3))
    return f"{num_bytes / size:,.1f} {unit}"
