"""What every evaluator starts with: which student, which teacher."""

from pathlib import Path

import torch

from sf_llava.catalogue import QUICKSTART
from sf_llava.files import read_json
from sf_llava.measure.encoders import Candidate, student_candidate, teacher_candidate
from sf_llava.model.loading import find_encoder, load_encoder
from sf_llava.teachers import load_teacher
from sf_llava.teachers.base import Teacher

ENCODER = str(QUICKSTART / "encoder")


def choose_models(encoder: str | None, teacher: str | None) -> tuple[str | None, str]:
    """Fill in what was not asked for: the quickstart's student where it exists, and the teacher its run names.

    Returns:
        Encoder directory (None: the teacher alone) and the teacher's name.
    """
    if encoder is None and teacher in (None, "mini") and (Path(ENCODER) / "config.json").is_file():
        encoder = ENCODER
    if encoder is not None and teacher is None:
        teacher = teacher_of(encoder)
    return encoder, teacher or "mini"


def teacher_of(encoder: str) -> str | None:
    """Name the teacher of an encoder that lies in its run directory."""
    run = find_encoder(encoder).parent / "config.json"
    config = read_json(run) if run.is_file() else None
    teacher = config.get("teacher") if isinstance(config, dict) else None
    return teacher if isinstance(teacher, str) else None


def load_models(encoder: str | None, teacher: str, dtype: str, device: torch.device) -> tuple[Teacher, list[Candidate]]:
    """Load the teacher, and put it side by side with the student where there is one."""
    loaded = load_teacher(teacher, dtype=dtype, device=device)
    encoders = [teacher_candidate(loaded)]
    if encoder is not None:
        encoders.append(student_candidate(load_encoder(encoder, dtype=dtype, device=device), loaded))
    return loaded, encoders
