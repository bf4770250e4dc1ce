"""The student of a run: built around the teacher, or taken from an earlier run."""

import re

import torch

from sf_llava.bootstrap.config import StudentConfig
from sf_llava.bootstrap.inherit import check_fits, check_head, inherit, resize, student_config
from sf_llava.measure.tuned import Student, TunedTeacher
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder
from sf_llava.model.rois import initial_rois
from sf_llava.teachers.base import Teacher


def make_student(config: StudentConfig, teacher: Teacher, on_cpu: bool) -> Student:
    """Build the student in float32 at the asked size, for training on a CPU or elsewhere.

    Raises:
        ValueError: ``init_from`` holds no whole encoder, or the student does not fit the teacher.
    """
    if config.reduce is not None:
        return TunedTeacher(teacher, config.reduce)
    if config.init_from is None:
        shape = student_config(teacher, config.num_latents, config.image_size, config.num_truncated)
        student = SparseFormerModel(shape)
        inherit(student, teacher, config.reuse_weights)
    else:
        student = load_encoder(config.init_from)
        check_fits(student.config, teacher)
        check_head(student, teacher)
        student = resize(
            student,
            config.num_latents or student.config.num_latents,
            config.image_size or student.config.image_size,
        )
        for name in ("interpolation", "crop_fraction", "resize_mode"):  # encoders of before had none of them
            setattr(student.config, name, getattr(teacher.preprocessing, name))
        student.config.num_teacher_layers = teacher.num_hidden_layers
    if config.elastic is not None:
        make_elastic(student, config.elastic)
    # On CPUs the backward of fused attention is slower than plain products.
    student.set_attn_implementation(config.attention if config.attention != "auto" else "eager" if on_cpu else "sdpa")
    if config.gradient_checkpointing:
        student.gradient_checkpointing_enable()
    return student


def make_elastic(student: SparseFormerModel, elastic: str) -> None:
    """Let a student have any number of latents between two, ``LOWEST-HIGHEST``; all start on the balanced grid.

    Raises:
        ValueError: another form, or the student's own number is not between them.
    """
    found = re.fullmatch(r"(\d+)-(\d+)", elastic)
    lowest, highest = map(int, found.groups()) if found else (1, 0)
    count = student.config.num_latents
    if not 1 <= lowest <= count <= highest:
        raise ValueError(
            f"`elastic` {elastic}: expected the lowest and highest number of latents, as 8-32, with the student's "
            f"{count} between them"
        )
    student.config.num_latents_range = [lowest, highest]
    with torch.no_grad():
        student.focusing.initial_rois.copy_(initial_rois(count))
