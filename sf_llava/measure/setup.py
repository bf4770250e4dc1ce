"""What every evaluator starts with: which student, which teacher, on which device."""

from pathlib import Path

import torch
from accelerate import PartialState

from sf_llava.files import read_json
from sf_llava.measure.encoders import Encoder, student_encoder, teacher_encoder
from sf_llava.model.loading import find_encoder, load_encoder
from sf_llava.teachers import load_teacher
from sf_llava.teachers.base import Teacher

QUICKSTART = "runs/quickstart/encoder"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_models(encoder: str | None, teacher: str | None) -> tuple[str | None, str]:
    """Fill in what was not asked for: the quickstart's student where it exists, and the teacher its run names.

    Returns:
        Encoder directory (None: the teacher alone) and the teacher's name.
    """
    if encoder is None and teacher in (None, "mini") and (Path(QUICKSTART) / "config.json").is_file():
        encoder = QUICKSTART
    if encoder is not None and teacher is None:
        teacher = teacher_of(encoder)
    return encoder, teacher or "mini"


def teacher_of(encoder: str) -> str | None:
    """Name the teacher of an encoder that lies in its run directory."""
    run = find_encoder(encoder).parent / "config.json"
    config = read_json(run) if run.is_file() else None
    teacher = config.get("teacher") if isinstance(config, dict) else None
    return teacher if isinstance(teacher, str) else None


def load_models(encoder: str | None, teacher: str, dtype: str, device: torch.device) -> tuple[Teacher, list[Encoder]]:
    """Load the teacher, and put it side by side with the student where there is one."""
    loaded = load_teacher(teacher, dtype=DTYPES[dtype], device=device)
    encoders = [teacher_encoder(loaded)]
    if encoder is not None:
        encoders.append(student_encoder(load_encoder(encoder, dtype=DTYPES[dtype], device=device), loaded))
    return loaded, encoders


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` ... into this process's device; starts accelerate's processes, if any.

    Raises:
        ValueError: an unknown device, one that this machine lacks, or one that several processes would share.
    """
    on_cpu = name == "cpu" or (name == "auto" and not torch.accelerator.is_available())
    state = PartialState(cpu=on_cpu)
    if name in ("auto", "cpu"):
        return state.device
    if state.num_processes > 1:
        raise ValueError(f"{state.num_processes} processes would share device {name!r}: use --device auto")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: expected auto, cpu or a device of torch (cuda, cuda:1)") from error
    try:
        torch.ones(1, device=device).item()  # fails where there is no such device, and on meta, which holds no values
    except Exception as error:  # each backend has an error of its own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"device {name!r} cannot be used here ({reason}): use --device auto or cpu") from error
    return device
