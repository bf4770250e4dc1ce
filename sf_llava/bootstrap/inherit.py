"""Build a student around a teacher: truncate the leading blocks, tune the middle, freeze the ending (Figure 2)."""

from dataclasses import dataclass

import torch
from torch import nn

from sf_llava.configuration import SparseFormerConfig
from sf_llava.measure.tuned import Student, TunedTeacher
from sf_llava.model import SparseFormerModel
from sf_llava.model.rois import initial_rois
from sf_llava.teachers.base import Teacher

INHERITED_FIELDS = (
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "cortex_layer_norm_eps",
    "projection_dim",
    "num_classes",
    "use_cls",
    "image_mean",
    "image_std",
)
"""Configuration that a student shares with its teacher."""

HEAD_MODULES = ("norm", "pool", "projection", "classifier")
"""Modules after the cortex, inherited and always frozen."""

MAX_ROUNDING = 0.05
"""Of a student's head against its teacher's, relative; four significant bits are off by 0.03 at most."""


@dataclass(frozen=True)
class Inheritance:
    """What became of the teacher's N blocks, and of the student's parameters (counts of scalars)."""

    num_truncated: int
    num_tunable: int
    num_frozen: int
    reused: bool
    new_parameters: int
    tunable_parameters: int
    frozen_parameters: int

    def __str__(self) -> str:
        verb = "inherited" if self.reused else "drawn at random"
        return (
            f"teacher blocks: {self.num_truncated} truncated; cortex {verb}: {self.num_tunable} tunable, "
            f"{self.num_frozen} frozen; parameters: {self.new_parameters:,} new, {self.tunable_parameters:,} tunable, "
            f"{self.frozen_parameters:,} frozen"
        )


def student_config(
    teacher: Teacher,
    num_latents: int | None = None,
    image_size: int | None = None,
    num_truncated: int | None = None,
) -> SparseFormerConfig:
    """Shape a student after a teacher: same width, heads, activation, epsilon, embedding and normalisation.

    Args:
        teacher: the ViT to bootstrap from.
        num_latents: latents; default: a quarter of the teacher's patches (Figure 2).
        image_size: input side in pixels; default: the teacher's.
        num_truncated: leading blocks to drop; default: a third.

    Raises:
        ValueError: more blocks truncated than the teacher has.
    """
    num_truncated = teacher.num_hidden_layers // 3 if num_truncated is None else num_truncated
    if not 0 <= num_truncated < teacher.num_hidden_layers:
        raise ValueError(
            f"{num_truncated} truncated blocks leave no cortex: teacher {teacher.name} has {teacher.num_hidden_layers}"
        )
    focusing_size = teacher.hidden_size // 2
    return SparseFormerConfig(
        image_size=image_size or teacher.image_size,
        num_latents=num_latents or max(1, teacher.num_patches // 4),
        hidden_size=teacher.hidden_size,
        focusing_size=focusing_size,
        num_hidden_layers=teacher.num_hidden_layers - num_truncated,
        num_attention_heads=teacher.num_attention_heads,
        focusing_num_attention_heads=max(1, focusing_size // 64),
        intermediate_size=teacher.intermediate_size,
        hidden_act=teacher.hidden_act,
        cortex_layer_norm_eps=teacher.layer_norm_eps,
        projection_dim=teacher.projection_dim or 0,
        num_classes=teacher.num_classes,
        image_mean=teacher.preprocessing.mean,
        image_std=teacher.preprocessing.std,
        interpolation=teacher.preprocessing.interpolation,
        crop_fraction=teacher.preprocessing.crop_fraction,
        resize_mode=teacher.preprocessing.resize_mode,
        use_cls=teacher.use_cls,
        num_teacher_layers=teacher.num_hidden_layers,
        teacher_tiles=teacher.tiles,
    )


def check_fits(config: SparseFormerConfig, teacher: Teacher) -> None:
    """Check that a student of this configuration can stand in for the teacher.

    Raises:
        ValueError: listing every field that differs.
    """
    fits = student_config(teacher, num_truncated=0)
    wrong = [
        f"{name} is {getattr(config, name)}, the teacher's is {getattr(fits, name)}"
        for name in INHERITED_FIELDS
        if getattr(config, name) != getattr(fits, name)
    ]
    if config.num_hidden_layers > teacher.num_hidden_layers:
        wrong.append(f"its cortex has {config.num_hidden_layers} blocks, the teacher {teacher.num_hidden_layers}")
    if wrong:
        raise ValueError(f"the student does not fit teacher {teacher.name}: {'; '.join(wrong)}")


def check_head(student: SparseFormerModel, teacher: Teacher) -> None:
    """Check that a student to be continued ends in this teacher's norm and head, which are never trained.

    They may have been rounded, as those of the student that ships are.

    Raises:
        ValueError: it was bootstrapped from another teacher.
    """
    for name, value in teacher.head_state_dict().items():
        wanted = value.float().cpu()
        if (student.get_parameter(name).float() - wanted).norm() > MAX_ROUNDING * wanted.norm() + 1e-3:
            raise ValueError(f"the student's {name} is not that of {teacher.name}: it was made from another teacher")


@torch.no_grad()
def inherit(student: SparseFormerModel, teacher: Teacher, reuse_blocks: bool = True) -> None:
    """Copy the teacher's last blocks into the cortex, and its final norm, pooling head and projection (or classifier).

    Args:
        student: built with :func:`student_config`; changed in place.
        teacher: any teacher of the same shape.
        reuse_blocks: without it the blocks keep their random weights (Table 3, w/o reusing weights); norm and
            projection are inherited all the same.

    Raises:
        ValueError: the shapes, the activation or the epsilon do not fit.
    """
    check_fits(student.config, teacher)
    first = teacher.num_hidden_layers - student.config.num_hidden_layers
    if reuse_blocks:
        for index, block in enumerate(student.cortex, start=first):
            block.load_state_dict(teacher.block_state_dict(index), strict=True)
    head = nn.ModuleDict({name: getattr(student, name) for name in HEAD_MODULES if hasattr(student, name)})
    head.load_state_dict(teacher.head_state_dict(), strict=True)


def set_trainable(student: Student, teacher: Teacher, num_tunable: int | None, reuse_blocks: bool) -> Inheritance:
    """Freeze the ending blocks and everything after them; leave the focusing part and the tunable blocks trainable.

    Args:
        student: changed in place (``requires_grad``).
        teacher: tells N, of which a third is tunable by default, and all where it is given fewer tokens itself.
        num_tunable: leading cortex blocks to tune; ignored without ``reuse_blocks``, where all blocks train.
        reuse_blocks: whether the cortex holds inherited weights.

    Raises:
        ValueError: more tunable blocks than the cortex has.
    """
    num_blocks = student.config.num_hidden_layers
    if not reuse_blocks or (num_tunable is None and isinstance(student, TunedTeacher)):
        num_tunable = num_blocks
    elif num_tunable is None:
        num_tunable = min(teacher.num_hidden_layers // 3, num_blocks)
    if not 0 <= num_tunable <= num_blocks:
        raise ValueError(f"{num_tunable} tunable blocks: the cortex has {num_blocks}")
    student.requires_grad_(True)
    frozen = [*student.cortex[num_tunable:], *(getattr(student, n) for n in HEAD_MODULES if hasattr(student, n))]
    if isinstance(student, TunedTeacher):
        frozen.append(student.teacher)
    elif student.config.num_latents_range is not None:  # all numbers of latents start on the balanced grid
        student.focusing.initial_rois.requires_grad_(False)
    for module in frozen:
        module.requires_grad_(False)
    tunable = sum(p.numel() for p in student.cortex[:num_tunable].parameters())
    trainable = sum(p.numel() for p in student.parameters() if p.requires_grad)
    return Inheritance(
        num_truncated=teacher.num_hidden_layers - num_blocks,
        num_tunable=num_tunable,
        num_frozen=num_blocks - num_tunable,
        reused=reuse_blocks,
        new_parameters=trainable - tunable,
        tunable_parameters=tunable,
        frozen_parameters=student.num_parameters() - trainable,
    )


def parameter_groups(
    student: Student, lr: float, inherited_scale: float, weight_decay: float, reused: bool
) -> list[dict]:
    """Split trainable parameters by inheritance and weight decay (vectors, RoIs and embeddings are not decayed).

    Each group carries ``peak_lr`` and ``inherited`` for the schedule. With ``reused`` the cortex counts as inherited. A
    tuned teacher's blocks have its rate, but warm up themselves, as there is nothing new for which they would wait.
    """
    inherited_ones = set(map(id, student.cortex.parameters())) if reused else set()
    not_decayed = ("initial_rois", "stage_embedding", "latent_embedding", "cls_token")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(not_decayed)
            groups.setdefault((id(parameter) in inherited_ones, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": lr * (inherited_scale if inherited else 1.0),
            "lr": 0.0,
            "inherited": inherited and not isinstance(student, TunedTeacher),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (inherited, decayed), parameters in groups.items()
    ]


def resize(student: SparseFormerModel, num_latents: int, image_size: int) -> SparseFormerModel:
    """Give a student more (or fewer) latents or another resolution, for continued bootstrapping (Section 4.1).

    All weights are kept; where the number of latents changes, their RoIs start again on the balanced grid.
    """
    known = student.config.num_latents_range
    kept = known if known is not None and known[0] <= num_latents <= known[1] else None
    changes = {"num_latents": num_latents, "num_latents_range": kept, "image_size": image_size}
    config = SparseFormerConfig.from_dict(student.config.to_dict() | changes)
    resized = SparseFormerModel(config)
    state = student.state_dict()
    if num_latents != student.config.num_latents:
        state["focusing.initial_rois"] = initial_rois(num_latents)
    resized.load_state_dict(state, strict=True)
    return resized
