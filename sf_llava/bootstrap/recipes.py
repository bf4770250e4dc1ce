"""Recipes, named after the paper's stages: what a run does where nothing else was asked for."""

from collections.abc import Mapping
from typing import Any

from sf_llava.bootstrap.align import FROM_IMAGES, asks_llm, reads_llava

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

MINI_TEACHERS = ("mini", "mini-siglip")
"""Of the drawn world: its recipe is theirs where none is asked for."""

MINI_ALIGNED_RECIPE = dict(steps=1440, batch_size=32, inherited_lr_scale=0.5, num_tunable=3)
"""Changes of the mini world's recipe where tokens are aligned: as many pictures in four times the steps, and every
block tuned whose output LLaVA reads."""

MINI_CONTINUED_RECIPE = MINI_ALIGNED_RECIPE | dict(steps=880, lr=1e-3)
"""Changes of the mini world's ScienceQA stage where tokens are aligned from images alone: the same, and as many
pictures as the paper's loss has there."""

MINI_LLM_RECIPE = dict(steps=300, batch_size=32, llm_batch_size=96, lr=1e-3, num_tunable=3)
"""Changes of the mini world's ScienceQA stage where it asks a LLM: few pictures for the embedding, many questions, and
every block tuned whose output LLaVA reads."""


def fill_up(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Give the values of all fields that do not keep their default.

    Args:
        asked: what is asked for, by flat names; ``align`` as weights.

    Raises:
        ValueError: values that contradict each other or make no run.
    """
    teacher = asked.get("teacher", "mini")
    stage = asked.get("stage", "mini" if teacher in MINI_TEACHERS else "imagenet")
    if stage not in RECIPES:
        raise ValueError(f"`stage` {stage!r} is unknown; valid: {', '.join(RECIPES)}")
    align = asked.get("align", {} if "reduce" in asked else FROM_IMAGES)
    asks = asks_llm(align)
    recipe = dict(RECIPES[stage])
    if stage == "mini" and align:
        recipe |= MINI_ALIGNED_RECIPE
    if teacher in MINI_TEACHERS and stage != "mini":
        recipe |= {name: RECIPES["mini"][name] for name in ("data", "val_data", "batch_size")} | {"lr": 5e-4}
        if stage == "scienceqa":
            recipe |= dict(data="mini:diagrams", steps=220)
        if stage == "scienceqa" and align:
            recipe |= MINI_LLM_RECIPE if asks else MINI_CONTINUED_RECIPE
    if "reduce" in asked:
        _check_reduction(asked, align)
    for names in (("steps", "epochs"), ("warmup_steps", "warmup_epochs")):
        if asked.keys() & set(names):
            recipe = {name: value for name, value in recipe.items() if name not in names}
    if "num_truncated" in asked:  # fewer or more blocks than the recipe was made for
        recipe.pop("num_tunable", None)
    if teacher == "mini" and reads_llava(align):
        recipe |= dict(llava="mini")
    if teacher == "mini" and asks:
        recipe |= dict(questions="mini-described:80000")
    if not asks:
        recipe.pop("llm_batch_size", None)
    values = {**recipe, **asked, "stage": stage, "align": align}
    _check_alignment(asked, values, asks)
    if "data" not in values:
        raise ValueError(f"`stage` {stage} needs `data`: folder:DIR, parquet:FILES, webdataset:SHARDS or hub:NAME")
    if stage in ("continue", "scienceqa") and "init_from" not in values:
        raise ValueError(f"`stage` {stage} continues a student: give its run or encoder with `init_from`")
    return values


def _check_reduction(asked: Mapping[str, Any], align: Mapping[str, float]) -> None:
    """Refuse what is about a SparseFormer where the student is the teacher with fewer tokens."""
    others = ("init_from", "num_latents", "elastic", "tiles", "image_size", "num_truncated", "reuse_weights")
    if idle := [name for name in (*others, "attention", "gradient_checkpointing") if name in asked]:
        raise ValueError(f"`{idle[0]}` has no use with `reduce`: its student is the whole teacher with fewer tokens")
    if align:
        raise ValueError("`reduce` is trained by its embedding alone: leave out `align`, whose losses are on latents")


def _check_alignment(asked: Mapping[str, Any], values: Mapping[str, Any], asks: bool) -> None:
    """Refuse what has no use without the losses it belongs to, and losses without what they need."""
    idle = {} if asks else {"questions": " llm", "llm_batch_size": " llm"}
    if not reads_llava(values["align"]):
        idle["llava"] = " llm or layers"
    if not values["align"]:
        idle["align_layer"] = ""
    for name, losses in idle.items():
        if name in asked:
            raise ValueError(f"`{name}` has no use without `align`{losses}")
    if asked.get("align_layer", -1) >= 0:
        raise ValueError(f"`align_layer` must count from the end, as -2 does, not be {asked['align_layer']}")
    if asks and not ("llava" in values and "questions" in values):
        raise ValueError(
            "`align` llm or placed needs `llava` (a LLaVA on this teacher) and `questions` (in ScienceQA's form)"
        )
    if reads_llava(values["align"]) and "llava" not in values:
        raise ValueError("`align` layers needs `llava`, a LLaVA on this teacher")
