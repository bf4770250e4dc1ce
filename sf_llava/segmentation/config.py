"""Every number of a training of a segmenter, and the recipes that fill in what was not asked for."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from sf_llava.segmentation.head import HeadConfig
from sf_llava.segmentation.segmenter import BACKBONES, Backbone

SMALL = dict(
    num_latents=32, image_size=64, steps=600, warmup_steps=30, batch_size=16, lr=2e-3, encoder_lr_scale=0.25,
    head=HeadConfig(width=128, num_heads=2, mlp_width=512, num_convolutions=1),
)  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "ade20k": dict(
        num_latents=256, image_size=512, steps=80_000, warmup_steps=1500, batch_size=32, lr=2e-4, encoder_lr_scale=0.1,
        drop_path=0.3, scale=(0.5, 2.0), flip=0.5, max_share=0.75, recolour=True, head=HeadConfig(),
    ),
    "mini": SMALL | dict(drop_path=0.0, scale=(1.0, 1.0), flip=0.0, max_share=1.0, recolour=False),
    "small": SMALL | dict(drop_path=0.1, scale=(0.75, 2.0), flip=0.5, max_share=0.75, recolour=True),
}  # fmt: skip
"""ade20k is the paper's: 80,000 steps, 256 latents, the rates, drop path and augmentation of ViT-Adapter-B on AugReg,
which it follows (2e-5 for the encoder, ten times that for the head, linear decay; 4 pictures on each of 8 devices).
mini is for the drawn world, small for photographs on encoders of its size."""

MAY_CHANGE = ("output", "device", "workers", "save_every", "keep_checkpoints")
"""Settings that may differ between a run and its resumption: they change no number."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """One training; made by :meth:`of`.

    Attributes:
        data, val_data: pictures with masks by name, see :func:`sf_llava.data.masked.open_masked`.
        classes, ignored: how masks are read, where the data do not know it.
        encoder: SparseFormer or its run; of ``random`` the shape alone counts.
        backbone: ``student``, ``random`` (the same encoder with new weights), ``teacher`` (the patches of the ViT that
            the encoder's run names, or ``teacher``), ``unet`` (of the same multiply-adds).
        teacher: name of the ViT; None: the one that the encoder's run names.
        output: directory of the run.
        num_latents: of the encoder; more than it was bootstrapped with start on the balanced grid.
        image_size: S, side of the training views.
        freeze: train the head alone.
        steps, warmup_steps: optimiser steps, and those of linear warm-up, followed by linear decay to zero.
        batch_size: views a step, of all processes; micro_batch_size: at once in a process (all of its share).
        lr: peak rate of the head, and of all of a U-Net; encoder_lr_scale: of backbones, relative.
        weight_decay: of matrices.
        drop_path: share of views that pass by the last cortex block.
        scale, flip, max_share, recolour: augmentation, see :class:`~sf_llava.data.mask_transforms.MaskedTransform`.
        head: its numbers.
        val_images: of the validation set, the first ones alone; None: all.
        log_every, save_every, keep_checkpoints: what is told and kept on the way.
    """

    data: str
    val_data: str
    output: str
    encoder: str
    num_latents: int
    image_size: int
    steps: int
    warmup_steps: int
    batch_size: int
    lr: float
    encoder_lr_scale: float
    drop_path: float
    scale: tuple[float, float]
    flip: float
    max_share: float
    recolour: bool
    head: HeadConfig
    classes: str | None = None
    ignored: tuple[int, ...] = ()
    backbone: Backbone = "student"
    teacher: str | None = None
    freeze: bool = False
    micro_batch_size: int | None = None
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0
    device: str = "auto"
    dtype: str = "fp32"
    workers: int = 0
    val_images: int | None = None
    log_every: int = 10
    save_every: int = 500
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise ValueError(f"unknown `backbone` {self.backbone!r}: expected {', '.join(BACKBONES)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"{self.warmup_steps} `warmup_steps` of {self.steps} `steps`: expected no more than those")

    @classmethod
    def of(cls, recipe: str, **asked: Any) -> "SegmentConfig":
        """Fill up what is asked for with a recipe; None asks for nothing.

        Raises:
            ValueError: unknown names, or numbers that contradict each other.
        """
        if recipe not in RECIPES:
            raise ValueError(f"unknown `recipe` {recipe!r}: expected {', '.join(RECIPES)}")
        asked = {name: value for name, value in asked.items() if value is not None}
        if unknown := sorted(asked.keys() - {known.name for known in fields(cls)}):
            raise ValueError(f"unknown setting(s) {', '.join(unknown)} of a training")
        values = RECIPES[recipe] | asked
        values["warmup_steps"] = asked.get("warmup_steps", min(values["warmup_steps"], values["steps"]))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as ``config.json`` holds it."""
        values = asdict(self) | {"scale": list(self.scale), "ignored": list(self.ignored)}
        return values
