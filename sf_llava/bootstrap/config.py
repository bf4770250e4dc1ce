"""Every number of a bootstrap run, in parts by what it is about, and the recipes that fill in what was not asked for.

    config = BootstrapConfig.of(teacher="mini", steps=100)      # flat names, as the flags of the command
    config.optimiser.batch_size                                 # complete: the recipe's, where none was asked for

Recipes are named after the paper's stages. What is asked for always wins over the recipe. None is left only where it
means that there is none (no run to continue) or that the teacher or the length of the run decides.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal

from sf_llava.bootstrap.align import asks_llm, parse_alignment
from sf_llava.bootstrap.recipes import fill_up
from sf_llava.catalogue import QUICKSTART
from sf_llava.cli import (
    BATCH,
    COUNT,
    FRACTION,
    LATENTS,
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_INT,
    SEED,
    THREADS_OR_AUTO,
    Number,
)

PIXELS = Number(int, 1, 2**13)
BLOCKS = Number(int, 0, 1000)
WORKERS = Number(int, 0, 512)
EPOCHS = Number(float, 0, 10**6, above=True)
BETA = Number(float, 0, 1 - 1e-9)
TILES = Number(int, 2, 64)
AREA = Number(float, 0, 1, above=True)
RATIO = Number(float, 1, 100)
LAYER = Number(int, -1000, -1)


def _flag(default: Any, text: str, number: Number | None = None) -> Any:
    return field(default=default, metadata={"help": text, "number": number})


def _recipe(text: str, number: Number | None = None) -> Any:
    """A field that the recipe fills in where it is not asked for."""
    return field(metadata={"help": text, "number": number})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Which recipe and teacher, where the run lies, on which machine, and what is told and kept on the way."""

    stage: Literal["mini", "imagenet", "continue", "scienceqa"] = _recipe(
        "recipe: mini (drawn world, minutes), imagenet (the paper's 20 epochs), continue (5 epochs from a smaller "
        "student with more latents or pixels), scienceqa (about 1,000 steps on its images). "
        "Default: mini for the mini teachers, imagenet otherwise"
    )
    teacher: str = _flag(
        "mini",
        "mini, mini-siglip, open_clip:MODEL/TAG_OR_FILE, transformers:ID_OR_DIR, timm:MODEL[/FILE], a directory",
    )
    output: str = _flag(str(QUICKSTART), "run directory")
    resume: bool = _flag(False, "continue the run in `output` where it was killed; start it if it has not begun")
    seed: int = _flag(0, "of the student's initialisation, the image order and the augmentation", SEED)
    device: Literal["auto", "cpu"] = _flag("auto", "auto: the accelerator where there is one")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = _flag("auto", "arithmetic; auto: bf16 where it is fast")
    workers: int | None = _flag(None, "data loading processes a device; default: by its share of the cores", WORKERS)
    threads: int = _flag(0, "CPU threads for arithmetic; 0: torch's choice", THREADS_OR_AUTO)
    log_every: int = _flag(10, "steps between log lines", POSITIVE_INT)
    trackers: str = _flag(
        "auto",
        "where curves go beside log.jsonl: tensorboard, wandb, mlflow, trackio, or several "
        "with commas between; none; auto: tensorboard where it is installed",
    )
    eval_every: int | None = _flag(None, "steps between validations; default: ten a run", POSITIVE_INT)
    save_every: int | None = _flag(None, "steps between checkpoints; default: twenty a run", POSITIVE_INT)
    keep_checkpoints: int = _flag(2, "newest checkpoints to keep, at least 1", POSITIVE_INT)
    teacher_cache: str = _flag(
        "auto",
        "where what the teacher says of a picture is kept, so that it runs once; the same bits with and without. "
        "auto: in `output` while the run needs it, where pictures are shown more than once and not augmented; none; or "
        "a directory, for further students of the same teacher, seed and data (augmented too), and with `align` for "
        "tokens as well: sizes are printed first",
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are augmented."""

    data: str = _recipe("unlabelled images: mini, folder:DIR, parquet:FILES, webdataset:SHARDS, hub:NAME, 'A + B'")
    val_data: str | None = _flag(None, "validation images; default: some of `data`, held out")
    classes: str | None = _flag(None, "classes of `val_data`: mini, cifar10, imagenet or FILE.json; default: its own")
    val_images: int = _flag(1000, "how many held-out images to validate on", POSITIVE_INT)
    flip: float = _recipe("probability of a horizontal flip; paper: 0.5, ScienceQA: 0", FRACTION)
    crop_scale_min: float = _recipe("smallest area of a random resized crop; paper: 0.5; 1: no crop", AREA)
    crop_ratio_max: float = _flag(
        4 / 3, "largest aspect ratio of a crop, the smallest is its inverse; paper: 4/3", RATIO
    )


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """What the student is built like, and from what."""

    init_from: str | None = _flag(None, "run or encoder directory to continue from")
    reduce: str | None = _flag(
        None,
        "in place of a SparseFormer tune the teacher's own blocks with R tokens fewer in each: tome:R, diffrate:R "
        "(Table 4, by the same loss, pictures and steps)",
    )
    num_latents: int | None = _flag(None, "latent tokens; default: a quarter of the teacher's patches", LATENTS)
    elastic: str | None = _flag(
        None,
        "LOWEST-HIGHEST, as 8-32: every step draws its number of latents between these, few as often as many, and the "
        "encoder runs with any of them; default: `num_latents` alone",
    )
    tiles: int | None = _flag(
        None,
        "G, 2 or more: the student reads a whole picture of G times the teacher's side, in place of G x G tiles that "
        "the teacher reads one by one, as in a LLaVA with tiles; default: both read the same",
        TILES,
    )
    image_size: int | None = _flag(None, "student's input side in pixels; default: the teacher's", PIXELS)
    num_truncated: int | None = _flag(None, "leading teacher blocks to drop; default: a third (Table 8)", BLOCKS)
    num_tunable: int | None = _flag(
        None, "cortex blocks to tune, counted from the first; default: a third (Table 8)", BLOCKS
    )
    reuse_weights: bool = _flag(True, "inherit the teacher's blocks (Table 3: w/o reusing weights)")
    gradient_checkpointing: bool = _flag(False, "recompute activations to save memory")
    attention: Literal["auto", "eager", "sdpa"] = _flag("auto", "attention kernel; auto: eager on CPU, sdpa elsewhere")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the student is trained for: the paper's loss on the embedding, and losses on the tokens that LLaVA reads.

    ``align`` is a text on the command line and weights by name here, empty for none (the paper's loss alone);
    ``llava`` and ``questions`` are set where it asks a LLM.
    """

    loss: Literal["cosine", "kl"] = _flag("cosine", "align embeddings (Eq. 5) or distil class logits (Table 3)")
    temperature: float = _flag(3.0, "of the KL loss", POSITIVE)
    class_loss_weight: float = _flag(
        0.0, "weight of an added cross-entropy on labels (Table 3: with cls loss)", NON_NEGATIVE
    )
    align: Mapping[str, float] = field(
        metadata={
            "help": "losses on the tokens that LLaVA reads, beside the embedding's: none (the paper), or a sum of set, "
            "readout, position (these see images alone), layers (a LLaVA's projector and first two layers, without "
            "questions), llm (all of it, with questions), placed (llm, read with positions and bias), with "
            "weights: set=0.3+readout=1 (these are the default ones; llm and placed: 4, all others 1). "
            "Default: set+readout+position",
            "number": None,
            "type": str,
        },
    )
    align_layer: int = _flag(-2, "hidden state that LLaVA reads, counted from the end", LAYER)
    llava: str | None = _flag(None, "LLaVA on this teacher, for `align` layers and llm: a directory, a hub name, mini")
    questions: str | None = _flag(None, "ScienceQA data for `align` llm, of which the train split is read: DIR, mini:N")

    @property
    def align_text(self) -> str | None:
        """``align`` as the command line has it, with all weights; None for none."""
        return "+".join(f"{name}={weight:g}" for name, weight in self.align.items()) or None


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """How long, in which batches, at which rates. ``steps`` wins over ``epochs``, of which there is one."""

    epochs: float | None = _flag(None, "passes over the data; paper: 20", EPOCHS)
    steps: int | None = _flag(None, "optimiser steps; wins over `epochs`", POSITIVE_INT)
    warmup_epochs: float | None = _flag(None, "linear warm-up with inherited weights frozen; paper: 1", NON_NEGATIVE)
    warmup_steps: int | None = _flag(None, "the same in steps; wins over `warmup_epochs`", COUNT)
    batch_size: int = _recipe("images of one optimiser step, over all processes", BATCH)
    micro_batch_size: int | None = _flag(None, "images a process sees at once; smaller ones are accumulated", BATCH)
    llm_batch_size: int = _flag(32, "questions of one optimiser step, over all processes", BATCH)
    lr: float = _recipe("peak learning rate; paper: 2e-4, continuation 5e-5", POSITIVE)
    inherited_lr_scale: float = _flag(
        0.1, "learning rate of inherited tunable blocks, relative; paper: 0.1", NON_NEGATIVE
    )
    weight_decay: float = _flag(0.05, "AdamW, on matrices only; not in the paper", NON_NEGATIVE)
    beta1: float = _flag(0.9, "AdamW; not in the paper", BETA)
    beta2: float = _flag(0.98, "AdamW; not in the paper", BETA)
    clip_norm: float = _flag(1.0, "gradient clipping; not in the paper", POSITIVE)


PARTS = {
    "run": RunConfig,
    "data": DataConfig,
    "student": StudentConfig,
    "objective": ObjectiveConfig,
    "optimiser": OptimiserConfig,
}


@dataclass(frozen=True)
class BootstrapConfig:
    """One run, complete, in parts; made by :meth:`of`. ``asked`` is what was asked for, by flat names."""

    run: RunConfig
    data: DataConfig
    student: StudentConfig
    objective: ObjectiveConfig
    optimiser: OptimiserConfig
    asked: Mapping[str, Any]

    @classmethod
    def of(cls, **asked: Any) -> "BootstrapConfig":
        """Fill up what is asked for, by the names of all parts' fields, with the stage's recipe; None asks for nothing.

        Raises:
            ValueError: unknown names, values that contradict each other or make no run.
        """
        known = {known.name for part in PARTS.values() for known in fields(part)}
        if unknown := sorted(asked.keys() - known):
            raise ValueError(f"unknown field(s) {', '.join(unknown)}; valid: {', '.join(sorted(known))}")
        asked = {name: value for name, value in asked.items() if value is not None}
        if "align" in asked:
            asked["align"] = parse_alignment(asked["align"])
        values = fill_up(asked)
        _check_bounds(values)
        parts = {
            name: part(**{known.name: values[known.name] for known in fields(part) if known.name in values})
            for name, part in PARTS.items()
        }
        return cls(**parts, asked=asked)

    def but(self, **asked: Any) -> "BootstrapConfig":
        """The run that was asked for, with these changes."""
        return self.of(**{**self.asked, **asked})

    def to_dict(self) -> dict[str, Any]:
        """All fields by their flat names, as ``config.json`` holds them."""
        values = {name: value for part in PARTS for name, value in asdict(getattr(self, part)).items()}
        values["align"] = self.objective.align_text
        if not self.objective.align:
            values["align_layer"] = None
        if not asks_llm(self.objective.align):
            values["llm_batch_size"] = None
        return values


RUN_TIME_FIELDS = ("output", "resume", "device", "dtype", "workers", "threads", "keep_checkpoints", "trackers",
                   "teacher_cache")  # fmt: skip
"""Fields that may differ between a run and its resumption: they change no number, or ``config.json`` also holds what
became of them."""

CHANGEABLE_FIELDS = (
    *("lr", "inherited_lr_scale", "weight_decay", "beta1", "beta2", "clip_norm"),
    *("micro_batch_size", "gradient_checkpointing", "attention"),
    *("num_processes", "device_type", "precision", "cpu_threads", "lanes"),
)
"""Fields, and facts of the machine, that a resumption may change, which is said and logged: a way on for training that
diverged or did not fit. With others a run would not be one run any more."""


def _check_bounds(values: Mapping[str, Any]) -> None:
    """Refuse numbers out of bounds; every field has a value, from the recipe if not its own."""
    for known in (known for part in PARTS.values() for known in fields(part)):
        if known.name in values:
            number, value = known.metadata["number"], values[known.name]
            if number is not None and not number.admits(value):
                raise ValueError(f"`{known.name}`: expected {number}, not {value}")
        else:
            assert known.default is not MISSING or known.default_factory is not MISSING, f"no recipe has {known.name}"
