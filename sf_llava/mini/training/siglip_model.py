"""Builds small SigLIP models with transformers' classes: no CLS, attention pools the patches.

The result of :func:`save_siglip` is an ordinary directory for ``SiglipModel``, ``AutoTokenizer`` and ``AutoProcessor``.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from sf_llava.mini.training.clip_model import MEAN, STD, save_half, shape_towers, start_image_tower

FIRST_SCALE, FIRST_BIAS = 10.0, -10.0
"""Of the pairs' logits when training begins (Zhai et al. 2023, Sec. 3.2)."""


def build_siglip(
    vocabulary_size: int, *, width: int, layers: int, head_dim: int, text_width: int, text_layers: int
) -> SiglipModel:
    """A SigLIP of 64 px pictures in patches of 8, with SiLU and plain matmul attention (fastest on CPUs).

    Its embeddings are as wide as the image tower. Texts of up to 64 tokens are padded to 64 without a mask.
    """
    heads = text_width // head_dim
    vision, text = shape_towers(vocabulary_size, width, layers, head_dim, text_width, text_layers, heads)
    config = SiglipConfig(vision_config=vision, text_config=text | {"projection_size": width})
    model = SiglipModel._from_config(config, attn_implementation="eager")
    start_image_tower(model)
    with torch.no_grad():
        torch.nn.init.normal_(model.vision_model.embeddings.patch_embedding.weight, std=0.02)  # positions are larger
        model.logit_scale.fill_(math.log(FIRST_SCALE))
        model.logit_bias.fill_(FIRST_BIAS)
    return model


def save_siglip(
    model: SiglipModel,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    class_names: Sequence[str],
    templates: Sequence[str],
) -> None:
    """Fill ``directory`` with half-precision weights, tokenizer and image processor.

    Class names and templates for zero-shot evaluation are recorded in config.json under ``zero_shot``.
    """
    save_half(model, directory, class_names, templates)
    image_processor = SiglipImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=list(MEAN), image_std=list(STD)
    )
    SiglipProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(directory)
