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
        student, earlier = SparseFormerModel(shape), None
        inherit(student, teacher, config.reuse_weights)
    else:
        earlier = load_encoder(config.init_from)
        check_fits(earlier.config, teacher)
        check_head(earlier, teacher)
        student = resize(
            earlier,
            config.num_latents or earlier.config.num_latents,
            config.image_size or earlier.config.image_size,
        )
        for name in ("interpolation", "crop_fraction", "resize_mode"):  # encoders of before had none of them
            setattr(student.config, name, getattr(teacher.preprocessing, name))
        student.config.num_teacher_layers = teacher.num_hidden_layers
        student.config.teacher_tiles = teacher.tiles
    if config.elastic is not None:
        make_elastic(student, config.elastic)
    if teacher.tiles > 1:
        start_in_tiles(student, earlier)
    # On CPUs the backward of fused attention is slower than plain products.
    student.set_attn_implementation(config.attention if config.attention != "auto" else "eager" if on_cpu else "sdpa")
    if config.gradient_checkpointing:
        student.gradient_checkpointing_enable()
    return student


@torch.no_grad()
def start_in_tiles(student: SparseFormerModel, earlier: SparseFormerModel | None) -> None:
    """Let equal parts of the latents start on the tiles of the student's teacher, row by row, each on the same grid.

    Args:
        student: reads whole pictures; changed in place.
        earlier: from which it is continued; where it has as many latents, its grid is kept, or if it reads tiles and
            has as many as there are for each, put on each.

    Raises:
        ValueError: the latents make no equal parts, or their number is not fixed.
    """
    tiles, config = student.config.teacher_tiles, student.config
    if config.num_latents % tiles**2 or config.num_latents_range is not None:
        raise ValueError(
            f"`tiles` {tiles} of a student with {config.num_latents} latents: expected a multiple of {tiles**2}, as "
            "many for each tile, and no `elastic`"
        )
    count = config.num_latents // tiles**2
    before = None if earlier is None else (earlier.config.teacher_tiles, earlier.config.num_latents)
    if before == (tiles, config.num_latents):
        return
    grid = earlier.focusing.initial_rois if earlier is not None and before == (1, count) else initial_rois(count)
    rows, columns = torch.arange(tiles).repeat_interleave(tiles), torch.arange(tiles).repeat(tiles)
    corners = torch.stack([columns, rows, columns, rows], dim=-1)  # [G^2, 4]
    student.focusing.initial_rois.copy_(((corners[:, None] + grid) / tiles).flatten(0, 1))


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
