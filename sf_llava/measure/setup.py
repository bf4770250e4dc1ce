"""What every evaluator starts with: which student, which teacher."""

import torch

from sf_llava.catalogue import default_encoder
from sf_llava.files import read_json
from sf_llava.measure.encoders import Candidate, student_candidate, teacher_candidate
from sf_llava.model.loading import find_encoder, load_encoder
from sf_llava.teachers import load_teacher
from sf_llava.teachers.base import Teacher


def choose_models(encoder: str | None, teacher: str | None) -> tuple[str | None, str]:
    """Fill in what was not asked for: the embedded default's student, and the teacher that its run names.

    Returns:
        Directory of an encoder or its run (None: the teacher alone) and the teacher's name.
    """
    if encoder is None and teacher in (None, "mini"):
        encoder, remark = default_encoder()
        if remark:
            print(remark)
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
