"""What a family of LLaVAs needs of a swap, one row a family; and why what cannot be swapped cannot.

In all of them the model inside (``model.model``) has ``vision_tower``, ``multi_modal_projector`` and
``language_model``, and the tower is read at hidden states by number. The rest is in this table.
"""

from dataclasses import dataclass
from typing import Any

from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    VipLlavaForConditionalGeneration,
)

from sf_llava.llava import tiles
from sf_llava.llava.tiles import Flat


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Attributes:
        model, processor: transformers' classes.
        flat: what they become while a SparseFormer is the tower, where they cut a picture into tiles; None where a
            picture is one square view.
    """

    model: Any
    processor: Any
    flat: Flat | None = None


FAMILIES = (
    Family(LlavaForConditionalGeneration, LlavaProcessor),
    Family(VipLlavaForConditionalGeneration, LlavaProcessor),
    Family(LlavaNextForConditionalGeneration, LlavaNextProcessor, tiles.LLAVA_NEXT),
    Family(LlavaNextVideoForConditionalGeneration, LlavaNextVideoProcessor, tiles.LLAVA_NEXT_VIDEO),
    Family(LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor, tiles.LLAVA_ONEVISION),
)

MODELS = {
    model.config_class.model_type: model
    for family in FAMILIES
    for model in (family.model, *([family.flat.model] if family.flat else ()))
}
"""What loads a directory, by the ``model_type`` in its config.json."""

SHUFFLE = "it merges patches that are neighbours on a grid into one token, and latents have no neighbours"
REFUSED = {
    "qwen": f"{SHUFFLE}; its LLM counts positions on that grid too (M-RoPE)",
    "glm4": f"{SHUFFLE}; its LLM counts positions on that grid too (M-RoPE)",
    "internvl": SHUFFLE,
    "idefics3": SHUFFLE,
    "smolvlm": SHUFFLE,
    "mistral3": SHUFFLE,
    "gemma3": "it averages patches that are neighbours on a grid, and latents have no neighbours",
    "mllama": "its LLM reads pictures by cross-attention to several layers of its tower, not as tokens of the prompt",
    "video_llava": "it has a tower for pictures and another for videos, with weights of their own but one "
    "configuration, and an encoder has learnt from one tower",
}
"""By the beginning of ``model_type``: why a SparseFormer cannot be its tower."""


def family_of(model: Any) -> Family | None:
    """Find the row of a model, also while its tower is a SparseFormer; None: it is of no family here."""
    return next((family for family in FAMILIES if isinstance(model, family.model)), None)


def why_not(model_type: Any) -> str | None:
    """Say why models of a type cannot take a SparseFormer; None where no reason is known."""
    return next((reason for start, reason in REFUSED.items() if str(model_type).startswith(start)), None)


def names_of_models() -> str:
    """Name the classes of the table, for errors."""
    return ", ".join(family.model.__name__ for family in FAMILIES)
