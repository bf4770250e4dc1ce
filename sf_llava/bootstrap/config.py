"""Every number of a bootstrap run, and the recipes that set them.

Recipes are named after the paper's stages. A flag given by the user always wins over the recipe.
"""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from sf_llava.catalogue import QUICKSTART
from sf_llava.cli import BATCH, COUNT, FRACTION, NON_NEGATIVE, POSITIVE, POSITIVE_INT, SEED, THREADS_OR_AUTO, Number

LATENTS = Number(int, 1, 2**16)
PIXELS = Number(int, 1, 2**13)
BLOCKS = Number(int, 0, 1000)
WORKERS = Number(int, 0, 512)
EPOCHS = Number(float, 0, 10**6, above=True)
BETA = Number(float, 0, 1 - 1e-9)
AREA = Number(float, 0, 1, above=True)
RATIO = Number(float, 1, 100)


def _flag(default: Any, text: str, number: Number | None = None) -> Any:
    return field(default=default, metadata={"help": text, "number": number})


@dataclass(frozen=True)
class BootstrapConfig:
    """One run. ``None`` means: taken from the recipe, the teacher or the machine, and written down in the run."""

    # what
    stage: Literal["mini", "imagenet", "continue", "scienceqa"] | None = _flag(
        None,
        "recipe: mini (drawn world, minutes), imagenet (the paper's 20 epochs), continue (5 epochs from a smaller "
        "student with more latents or pixels), scienceqa (about 1,000 steps on its images). "
        "Default: mini for the mini teacher, imagenet otherwise",
    )
    teacher: str = _flag("mini", "mini, open_clip:MODEL/TAG_OR_FILE, transformers:ID_OR_DIR, timm:MODEL[/FILE], a path")
    data: str | None = _flag(None, "unlabelled images: mini, folder:DIR, parquet:FILES, webdataset:SHARDS, hub:NAME")
    val_data: str | None = _flag(None, "validation images; default: some of `data`, held out")
    classes: str | None = _flag(None, "classes of `val_data`: mini, cifar10, imagenet or FILE.json; default: its own")
    val_images: int = _flag(1000, "how many held-out images to validate on", POSITIVE_INT)
    output: str = _flag(str(QUICKSTART), "run directory")
    init_from: str | None = _flag(None, "run or encoder directory to continue from")
    resume: bool = _flag(False, "continue the run in `output` where it was killed; start it if it has not begun")
    # student
    num_latents: int | None = _flag(None, "latent tokens; default: a quarter of the teacher's patches", LATENTS)
    image_size: int | None = _flag(None, "student's input side in pixels; default: the teacher's", PIXELS)
    num_truncated: int | None = _flag(None, "leading teacher blocks to drop; default: a third (Table 8)", BLOCKS)
    num_tunable: int | None = _flag(
        None, "cortex blocks to tune, counted from the first; default: a third (Table 8)", BLOCKS
    )
    reuse_weights: bool = _flag(True, "inherit the teacher's blocks (Table 3: w/o reusing weights)")
    # loss
    loss: Literal["cosine", "kl"] = _flag("cosine", "align embeddings (Eq. 5) or distil class logits (Table 3)")
    temperature: float = _flag(3.0, "of the KL loss", POSITIVE)
    class_loss_weight: float = _flag(
        0.0, "weight of an added cross-entropy on labels (Table 3: with cls loss)", NON_NEGATIVE
    )
    # alignment of tokens, beyond the paper
    align: str | None = _flag(
        None,
        "losses on the tokens that LLaVA reads, beside the embedding's: none (the paper), set, readout, llm, placed "
        "(llm, read with positions and bias), or a sum with weights, set=0.3+readout=1 (these are the default weights; "
        "llm and placed: 4). Bootstrap first, align after",
    )
    align_layer: int | None = _flag(None, "hidden state that LLaVA reads, counted from the end; default: -2")
    llava: str | None = _flag(None, "LLaVA on this teacher, for `align` llm: a directory, a hub name, mini")
    questions: str | None = _flag(None, "ScienceQA data for `align` llm, of which the train split is read: DIR, mini:N")
    llm_batch_size: int | None = _flag(None, "questions of one optimiser step, over all processes; default: 32", BATCH)
    # schedule
    epochs: float | None = _flag(None, "passes over the data; paper: 20", EPOCHS)
    steps: int | None = _flag(None, "optimiser steps; wins over `epochs`", POSITIVE_INT)
    warmup_epochs: float | None = _flag(None, "linear warm-up with inherited weights frozen; paper: 1", NON_NEGATIVE)
    warmup_steps: int | None = _flag(None, "the same in steps; wins over `warmup_epochs`", COUNT)
    batch_size: int | None = _flag(None, "images of one optimiser step, over all processes", BATCH)
    micro_batch_size: int | None = _flag(None, "images a process sees at once; smaller ones are accumulated", BATCH)
    lr: float | None = _flag(None, "peak learning rate; paper: 2e-4, continuation 5e-5", POSITIVE)
    inherited_lr_scale: float = _flag(
        0.1, "learning rate of inherited tunable blocks, relative; paper: 0.1", NON_NEGATIVE
    )
    weight_decay: float = _flag(0.05, "AdamW, on matrices only; not in the paper", NON_NEGATIVE)
    beta1: float = _flag(0.9, "AdamW; not in the paper", BETA)
    beta2: float = _flag(0.98, "AdamW; not in the paper", BETA)
    clip_norm: float = _flag(1.0, "gradient clipping; not in the paper", POSITIVE)
    # augmentation
    flip: float | None = _flag(None, "probability of a horizontal flip; paper: 0.5, ScienceQA: 0", FRACTION)
    crop_scale_min: float | None = _flag(None, "smallest area of a random resized crop; paper: 0.5; 1: no crop", AREA)
    crop_ratio_max: float = _flag(
        4 / 3, "largest aspect ratio of a crop, the smallest is its inverse; paper: 4/3", RATIO
    )
    # machine
    seed: int = _flag(0, "of the student's initialisation, the image order and the augmentation", SEED)
    device: Literal["auto", "cpu"] = _flag("auto", "auto: the accelerator where there is one")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = _flag("auto", "arithmetic; auto: bf16 where it is fast")
    workers: int = _flag(1, "data loading processes a device", WORKERS)
    threads: int = _flag(0, "CPU threads for arithmetic; 0: torch's choice", THREADS_OR_AUTO)
    gradient_checkpointing: bool = _flag(False, "recompute activations to save memory")
    attention: Literal["auto", "eager", "sdpa"] = _flag("auto", "attention kernel; auto: eager on CPU, sdpa elsewhere")
    # reporting
    log_every: int = _flag(10, "steps between log lines", POSITIVE_INT)
    eval_every: int | None = _flag(None, "steps between validations; default: ten a run", POSITIVE_INT)
    save_every: int | None = _flag(None, "steps between checkpoints; default: twenty a run", POSITIVE_INT)
    keep_checkpoints: int = _flag(2, "newest checkpoints to keep, at least 1", POSITIVE_INT)


RECIPES: dict[str, dict[str, Any]] = {
    "mini": dict(
        data="mini:both",
        val_data="mini",
        steps=360,
        warmup_steps=25,
        batch_size=128,
        lr=2e-3,
        flip=0.0,
        crop_scale_min=1.0,
    ),
    "imagenet": dict(epochs=20.0, warmup_epochs=1.0, batch_size=1024, lr=2e-4, flip=0.5, crop_scale_min=0.5),
    "continue": dict(epochs=5.0, warmup_epochs=0.0, batch_size=1024, lr=5e-5, flip=0.5, crop_scale_min=0.5),
    "scienceqa": dict(steps=1000, warmup_steps=0, batch_size=256, lr=5e-5, flip=0.0, crop_scale_min=1.0),
}
"""The stages' defaults. Epochs, learning rates and augmentation are the paper's, except the mini world's, batch sizes
and ScienceQA's learning rate, which the paper does not give."""

MINI_LLM_RECIPE = dict(steps=600, batch_size=32, llm_batch_size=96, lr=1e-3, num_tunable=3)
"""Changes of the mini world's ScienceQA stage where it asks a LLM: few pictures for the embedding, many questions, and
every block tuned whose output LLaVA reads."""

ALIGNMENT_WEIGHTS = {"set": 0.3, "readout": 1.0, "llm": 4.0, "placed": 4.0}
"""The losses that ``align`` knows, and their default weights. Those of the LLM are large because a divergence is a mean
over all words of an answer, few of which depend on the picture."""

LLM_LOSSES = {"llm", "placed"}
"""Those of them that need a LLaVA and questions."""

RUN_TIME_FIELDS = ("output", "resume", "device", "dtype", "workers", "threads", "keep_checkpoints")
"""Fields that may differ between a run and its resumption: they change no number, or ``config.json`` also holds what
became of them."""

CHANGEABLE_FIELDS = (
    *("lr", "inherited_lr_scale", "weight_decay", "beta1", "beta2", "clip_norm"),
    *("micro_batch_size", "gradient_checkpointing", "attention"),
    *("num_processes", "device_type", "precision", "cpu_threads"),
)
"""Fields, and facts of the machine, that a resumption may change, which is said and logged: a way on for training that
diverged or did not fit. With others a run would not be one run any more."""


def complete(config: BootstrapConfig) -> BootstrapConfig:
    """Fill what the user left open from the stage's recipe.

    Raises:
        ValueError: values that contradict each other or make no run.
    """
    stage = config.stage or ("mini" if config.teacher == "mini" else "imagenet")
    recipe = dict(RECIPES[stage])
    if config.teacher == "mini" and stage != "mini":
        recipe |= {name: RECIPES["mini"][name] for name in ("data", "val_data", "batch_size")} | {"lr": 5e-4}
        if stage == "scienceqa":
            recipe |= dict(data="mini:diagrams", steps=220)
        if stage == "scienceqa" and asks_llm(config.align):
            recipe |= MINI_LLM_RECIPE
    if config.steps is not None or config.epochs is not None:
        recipe.pop("steps", None)
        recipe.pop("epochs", None)
    if config.warmup_steps is not None or config.warmup_epochs is not None:
        recipe.pop("warmup_steps", None)
        recipe.pop("warmup_epochs", None)
    known = {f.name for f in fields(config)}
    changes = {name: value for name, value in recipe.items() if name in known and getattr(config, name) is None}
    config = _complete_alignment(replace(config, stage=stage, **changes))
    _check(config)
    return config


def parse_alignment(text: str) -> dict[str, float]:
    """Read ``set=0.3+readout`` into weights by name; a bare name has its default weight.

    Raises:
        ValueError: an unknown or repeated name, or a weight that is no positive number.
    """
    weights: dict[str, float] = {}
    for term in text.split("+"):
        name, _, number = term.strip().partition("=")
        if name not in ALIGNMENT_WEIGHTS or name in weights:
            problem = "there twice" if name in weights else "unknown"
            known = ", ".join(ALIGNMENT_WEIGHTS)
            raise ValueError(
                f"`align` {text}: {name!r} is {problem}; expected none, or a sum of {known}: set=0.3+readout"
            )
        try:
            weights[name] = float(number) if number else ALIGNMENT_WEIGHTS[name]
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise ValueError(f"`align` {text}: the weight of {name} must be a positive number, not {number!r}")
    return {name: weights[name] for name in ALIGNMENT_WEIGHTS if name in weights}


def asks_llm(align: str | None) -> bool:
    """Whether ``align`` asks a LLM."""
    return align not in (None, "none") and bool(parse_alignment(align).keys() & LLM_LOSSES)


def _complete_alignment(config: BootstrapConfig) -> BootstrapConfig:
    """Write the weights out and fill in what the asked losses need; without any, ``align`` is None."""
    weights = parse_alignment(config.align) if config.align not in (None, "none") else {}
    asks = asks_llm(config.align)
    idle = () if asks else ("llava", "questions", "llm_batch_size")
    for name in idle if weights else ("align_layer", *idle):
        if getattr(config, name) is not None:
            raise ValueError(f"`{name}` has no use without `align`{' llm' if name in idle else ''}")
    if not weights:
        return replace(config, align=None)
    config = replace(config, align="+".join(f"{name}={weight:g}" for name, weight in weights.items()))
    defaults = dict(align_layer=-2)
    if asks:
        defaults |= dict(llm_batch_size=32)
        defaults |= dict(llava="mini", questions="mini-described:80000") if config.teacher == "mini" else {}
    config = replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})
    if config.align_layer >= 0:
        raise ValueError(f"`align_layer` must count from the end, as -2 does, not be {config.align_layer}")
    if asks and (config.llava is None or config.questions is None):
        raise ValueError(
            "`align` llm or placed needs `llava` (a LLaVA on this teacher) and `questions` (in ScienceQA's form)"
        )
    return config


def _check(config: BootstrapConfig) -> None:
    if config.data is None:
        raise ValueError(
            f"`stage` {config.stage} needs `data`: folder:DIR, parquet:FILES, webdataset:SHARDS or hub:NAME"
        )
    if config.stage in ("continue", "scienceqa") and config.init_from is None:
        raise ValueError(f"`stage` {config.stage} continues a student: give its run or encoder with `init_from`")
    for known in fields(config):
        number, value = known.metadata["number"], getattr(config, known.name)
        if number is not None and value is not None and not number.admits(value):
            raise ValueError(f"`{known.name}`: expected {number}, not {value}")
