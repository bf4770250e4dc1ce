"""The student of a run: built around the teacher, or taken from an earlier run."""

from collections.abc import Mapping

from sf_llava.bootstrap.config import StudentConfig
from sf_llava.bootstrap.inherit import check_fits, check_head, inherit, resize, student_config
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder
from sf_llava.teachers.base import Teacher


def make_student(config: StudentConfig, teacher: Teacher, on_cpu: bool) -> SparseFormerModel:
    """Build the student in float32 at the asked size, for training on a CPU or elsewhere.

    Raises:
        ValueError: ``init_from`` holds no whole encoder, or the student does not fit the teacher.
    """
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
    # On CPUs the backward of fused attention is slower than plain products.
    student.set_attn_implementation(config.attention if config.attention != "auto" else "eager" if on_cpu else "sdpa")
    if config.gradient_checkpointing:
        student.gradient_checkpointing_enable()
    return student


def refuse_alignment(align: Mapping[str, float], teacher: Teacher) -> None:
    """Refuse losses on tokens where there is no CLS, behind which they look for tokens.

    Raises:
        ValueError: there is such a loss, and the teacher has no CLS.
    """
    if align and not teacher.use_cls:
        raise ValueError(
            f"`align` {'+'.join(align)} compares the tokens behind CLS, and {teacher.name} has no CLS: leave it out"
        )
