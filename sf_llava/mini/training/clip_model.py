"""Builds small CLIP models with transformers' classes: configuration, word tokenizer, initial weights, saving.

The result of :func:`save_clip` is an ordinary directory for ``CLIPModel``, ``AutoTokenizer`` and ``AutoProcessor``.
``siglip_model`` does the same for SigLIP.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
_SPECIAL = ("<pad>", "<start>", "<unknown>", "<end>")  # ids 0 .. 3; CLIP treats an end id of 2 in a legacy way
TEXT_LENGTH = 64


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole lower-case words: ``<start> words <end>``, padded on the right."""
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        unk_token="<unknown>",
        eos_token="<end>",
        model_max_length=TEXT_LENGTH,
        padding_side="right",
    )


def build_clip(
    vocabulary_size: int,
    *,
    width: int,
    layers: int,
    head_dim: int,
    text_width: int,
    text_layers: int,
    projection: int,
    image_size: int = 64,
    patch_size: int = 8,
) -> CLIPModel:
    """A CLIP with SiLU and plain matmul attention (fastest on CPUs)."""
    vision, text = shape_towers(vocabulary_size, width, layers, head_dim, text_width, text_layers, text_width // 64)
    vision |= {"image_size": image_size, "patch_size": patch_size}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=projection)
    model = CLIPModel._from_config(config, attn_implementation="eager")
    start_image_tower(model)
    return model


def shape_towers(
    vocabulary_size: int, width: int, layers: int, head_dim: int, text_width: int, text_layers: int, text_heads: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the fields of both towers, image and text, that CLIP's and SigLIP's configurations share."""
    vision = {
        "image_size": 64,
        "patch_size": 8,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // head_dim,
        "hidden_act": "silu",
    }
    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": text_layers,
        "num_attention_heads": text_heads,
        "max_position_embeddings": TEXT_LENGTH,
        "hidden_act": "silu",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
    }
    return vision, text


def start_image_tower(model: PreTrainedModel) -> None:
    """Start the image tower of a CLIP or SigLIP of transformers by :func:`look_nearby`."""
    tower, heads = model.vision_model, model.config.vision_config.num_attention_heads
    attentions = [layer.self_attn for layer in tower.encoder.layers]
    pairs = [(attention.q_proj.weight, attention.k_proj.weight) for attention in attentions]
    look_nearby(tower.embeddings.position_embedding.weight, pairs, heads)


@torch.no_grad()
def look_nearby(positions: Tensor, attentions: Iterable[tuple[Tensor, Tensor]], num_heads: int) -> None:
    """Start a ViT in place with attention to neighbouring patches: shapes can be told apart only when it finds them.

    Learned positions become 2-D sines and cosines, larger than the patches, and keys equal queries (mimetic
    initialisation, Trockman and Kolter 2023), which makes the first attention local.

    Args:
        positions: (M, D) of M patches on a square grid, or with CLS first (1 + M, D).
        attentions: the matrices (D, D) of queries and keys of every block.
        num_heads: heads in each.
    """
    patches = sincos_positions(math.isqrt(len(positions)), positions.shape[1])
    positions.zero_()[-len(patches) :] = patches
    for queries, keys in attentions:
        for rows in queries.chunk(num_heads):
            torch.nn.init.orthogonal_(rows)
        keys.copy_(queries)


def sincos_positions(side: int, width: int) -> Tensor:
    """2-D sine-cosine positions of a ``side`` x ``side`` grid in raster order. (side * side, width) float32"""
    frequencies = torch.pi / 2 * 8 ** -torch.linspace(0, 1, width // 4)  # wavelengths of 4 to 32 patches
    angles = torch.arange(side)[:, None] * frequencies  # [side, width / 4]
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    grid = torch.cat([axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)], dim=2)
    return grid.reshape(side * side, width)


def normalise(images: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to the (B, 3, H, W) float32 the vision tower takes."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def save_clip(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    class_names: Sequence[str],
    templates: Sequence[str],
) -> None:
    """Fill ``directory`` with half-precision weights, tokenizer and image processor.

    Class names and templates for zero-shot evaluation are recorded in config.json under ``zero_shot``.
    """
    save_half(model, directory, class_names, templates)
    side = model.config.vision_config.image_size
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(directory)


def save_half(model: PreTrainedModel, directory: Path, class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Write a model's configuration, with what zero-shot evaluation asks, and its weights in half precision."""
    half = type(model)(model.config).half()
    half.load_state_dict(model.state_dict())
    half.config.zero_shot = {"class_names": list(class_names), "templates": list(templates)}
    half.save_pretrained(directory)
