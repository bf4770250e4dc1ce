"""What every evaluator starts with: which student, which teacher."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sf_llava.catalogue import default_encoder
from sf_llava.files import read_json
from sf_llava.measure.encoders import Candidate, student_candidate, teacher_candidate
from sf_llava.measure.tuned import is_tuned, load_tuned, tuned_candidate
from sf_llava.model.loading import find_encoder, load_encoder
from sf_llava.teachers import load_teacher
from sf_llava.teachers.base import Teacher


def choose_models(encoders: Sequence[str], teacher: str | None) -> tuple[list[str], str]:
    """Fill in what was not asked for: the embedded default's student, and the teacher that the runs name.

    Returns:
        Directories of encoders or their runs (empty: the teacher alone) and the teacher's name.

    Raises:
        ValueError: the runs name several teachers.
    """
    encoders = list(encoders)
    if not encoders and teacher in (None, "mini"):
        encoder, remark = default_encoder()
        encoders = [encoder]
        if remark:
            print(remark)
    if teacher is None:
        named = dict.fromkeys(name for name in map(teacher_of, encoders) if name)
        if len(named) > 1:
            raise ValueError(
                f"the encoders are of several teachers, {', '.join(named)}: compare those of one `teacher`"
            )
        teacher = next(iter(named), None)
    return encoders, teacher or "mini"


def teacher_of(encoder: str) -> str | None:
    """Name the teacher of an encoder that lies in its run directory."""
    run = find_encoder(encoder).parent / "config.json"
    config = read_json(run) if run.is_file() else None
    teacher = config.get("teacher") if isinstance(config, dict) else None
    return teacher if isinstance(teacher, str) else None


def load_models(
    encoders: Sequence[str], teacher: str, dtype: str, device: torch.device, latents: Sequence[int] | None = None
) -> tuple[Teacher, list[Candidate]]:
    """Load the teacher, and put it side by side with its students; several are called by their directories.

    Args:
        encoders: directories of students, or of their runs.
        teacher: its name.
        dtype: of all.
        device: of all.
        latents: numbers with which each student stands there, all of them elastic; default: its own.

    Raises:
        ValueError: a student of another teacher, or one that was not trained with such a number.
    """
    loaded = load_teacher(teacher, dtype=dtype, device=device)
    candidates = [teacher_candidate(loaded)]
    for encoder in encoders:
        name = "student" if len(encoders) == 1 else encoder
        if latents:
            candidates += _load_elastic(encoder, loaded, name, latents)
        else:
            candidates.append(load_candidate(encoder, loaded, name))
    return loaded, candidates


def load_candidate(encoder: str | Path, teacher: Teacher, name: str = "student") -> Candidate:
    """Load a student of a teacher, a SparseFormer or the teacher with fewer tokens, in its dtype and where it is."""
    if is_tuned(encoder):
        return tuned_candidate(name, load_tuned(encoder, teacher))
    return student_candidate(load_encoder(encoder, dtype=teacher.dtype, device=teacher.device), teacher, name)


def _load_elastic(encoder: str, teacher: Teacher, name: str, latents: Sequence[int]) -> list[Candidate]:
    """Load an elastic student once, to stand there with several numbers of latents."""
    if is_tuned(encoder):
        raise ValueError(f"`latents` are of SparseFormers; {encoder} is its teacher with fewer tokens")
    student = load_encoder(encoder, dtype=teacher.dtype, device=teacher.device)
    return [student_candidate(student.with_num_latents(count), teacher, f"{name}, {count}") for count in latents]
