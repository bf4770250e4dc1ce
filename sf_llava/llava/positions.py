"""Positions by RoI centre and an attention bias: what a swapped LLaVA's LLM can be told without any training.

The LLM was trained on M patch tokens in raster order. N latents in their own order put every word behind them at
another position, say nothing about where they look, and weigh less than M tokens in every attention of the text. So:

    order      latents stand in raster order of the patch that their last RoI's centre falls on
    positions  each has the position id of that patch; the text behind starts where it started in training
    bias       log(M / N) is added to the attention scores from text to latents, as if each stood for M / N patches

With N = M latents, one on each patch, this is the plain model. It works with every way of transformers' ``generate``
(sampling, beams, several samples, batches padded on the left, static caches, prompts read in chunks, assistants):
``generate`` sees the prompt's ids alone, and hooks before the LLM give it the latents, positions and bias (hooks.py).

    swapped = swap(model, processor, "path/to/encoder")
    generate_in_place(model, inputs, count_patches(swapped.vision_config), max_new_tokens=64)

Letters: B prompts, L prompt tokens, I images, N latents, M patches, T image tokens (N, one more with CLS), W width.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from sf_llava.llava.hooks import read_prompts, weigh_latents
from sf_llava.llava.host import embed_prompts, find_llava


class PlacedPrompt(NamedTuple):
    """What a LLaVA reads: ``inputs_embeds`` (B, L, W), ``position_ids`` (B, L), ``latents`` (B, L) bool."""

    inputs_embeds: Tensor
    position_ids: Tensor
    latents: Tensor


def find_patches(rois: Tensor, num_patches: int) -> Tensor:
    """Find the patch that every RoI's centre falls on, the nearest one for a centre outside the image.

    Args:
        rois: (..., 4) corners as image fractions.
        num_patches: M, a square number.

    Returns:
        (...) int64 in 0 .. M - 1, in raster order.
    """
    side = math.isqrt(num_patches)
    if side**2 != num_patches:
        raise ValueError(f"{num_patches} patches are no square grid, on which positions by RoI centre need them")
    cells = ((rois[..., :2] + rois[..., 2:]) / 2 * side).floor().clamp(0, side - 1).long()  # x, y
    return cells[..., 1] * side + cells[..., 0]


def arrange(states: Tensor, rois: Tensor, num_patches: int, with_cls: bool) -> tuple[Tensor, Tensor]:
    """Put latents into raster order of the patches that their RoIs' centres fall on.

    Args:
        states: (I, 1 + N, D) hidden states, CLS first.
        rois: (I, N, 4) corners as image fractions.
        num_patches: M.
        with_cls: whether the LLM reads CLS too.

    Returns:
        Tokens (I, T, D) in that order, and their places (I, T) int64 in the M patches, or in CLS and the M patches.
    """
    places, order = find_patches(rois, num_patches).sort(dim=1, stable=True)  # [I, N]
    cls, latents = states.split([1, order.shape[1]], dim=1)
    tokens = latents.take_along_dim(order[..., None], dim=1)  # [I, N, D]
    if not with_cls:
        return tokens, places
    return torch.cat([cls, tokens], dim=1), torch.cat([torch.zeros_like(places[:, :1]), places + 1], dim=1)


@torch.no_grad()
def place_prompt(model: LlavaForConditionalGeneration, inputs: Mapping[str, Tensor], num_patches: int) -> PlacedPrompt:
    """Embed prompts with their latents in raster order, and give every token its position.

    Args:
        model: a LLaVA whose vision tower is a SparseFormer, wrapped or not.
        inputs: of its processor: ``input_ids``, ``attention_mask`` (B, L) and ``pixel_values`` (I, 3, S, S).
        num_patches: M of the vision tower that the LLM was trained with.

    Raises:
        ValueError: another tower, or one that is read at several layers.
    """
    model = find_llava(model)
    tower, layer = model.model.vision_tower, model.config.vision_feature_layer
    if not isinstance(layer, int):
        raise ValueError(f"positions by RoI centre need one vision_feature_layer, not {layer}")
    seen = tower(inputs["pixel_values"], output_hidden_states=layer)
    if getattr(seen, "rois", None) is None:
        raise ValueError(f"only a SparseFormer has RoIs to place tokens by; the vision tower is {type(tower).__name__}")
    with_cls = model.config.vision_feature_select_strategy == "full"
    tokens, places = arrange(seen.hidden_states[layer], seen.rois[:, -1], num_patches, with_cls)
    input_ids = inputs["input_ids"]
    embeds = embed_prompts(model, input_ids, model.model.multi_modal_projector(tokens).flatten(0, 1))
    image = input_ids == model.config.image_token_id
    positions = count_positions(image, _attended(inputs).bool(), places.to(image.device), num_patches + with_cls)
    latent = image.masked_scatter(
        image, (torch.arange(places.shape[1]) >= with_cls).repeat(len(places)).to(image.device)
    )
    return PlacedPrompt(embeds, positions, latent)


def _attended(inputs: Mapping[str, Tensor]) -> Tensor:
    """The prompts' mask (B, L); all of them where there is none."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]) if mask is None else mask


def count_positions(image: Tensor, attended: Tensor, places: Tensor, taken: int) -> Tensor:
    """Count position ids (B, L): one a word, ``taken`` for a picture, whose tokens stand at ``places`` (I, T) in it."""
    rows, places = [], iter(places)
    for is_image, is_attended in zip(image.tolist(), attended.tolist(), strict=True):
        row, position, inside = [], 0, iter(())
        for pictured, real in zip(is_image, is_attended, strict=True):
            if not pictured:
                row.append(position)
                position += real
                continue
            if (place := next(inside, None)) is None:  # the next picture begins
                start, inside = position, iter(next(places).tolist())
                position, place = start + taken, next(inside)
            row.append(start + place)
        rows.append(row)
    return torch.tensor(rows, device=image.device)


@torch.no_grad()
def generate_in_place(
    model: LlavaForConditionalGeneration, inputs: Mapping[str, Tensor], num_patches: int, **generation: Any
) -> Any:
    """Generate with positions by RoI centre and the attention bias; text alone is generated as ever.

    Args:
        model: a LLaVA whose vision tower is a SparseFormer, wrapped or not.
        inputs: of its processor, padded on the left: ``input_ids``, ``attention_mask``, ``pixel_values``.
        num_patches: M of the vision tower that the LLM was trained with.
        generation: for ``model.generate``; nothing is compiled on the way.

    Returns:
        (B, new tokens) int64, without the prompts, B times as many rows for several samples each; with
        ``return_dict_in_generate`` what ``generate`` returns, its ``sequences`` also without the prompts.

    Raises:
        ValueError: prompts padded on the right, another tower, or a way of generating in which the LLM is asked for
            other tokens than the prompt's and its answer's.
    """
    model = find_llava(model)
    attended, input_ids = _attended(inputs), inputs["input_ids"]
    if inputs.get("pixel_values") is None:
        given = {name: value for name, value in inputs.items() if value is not None}
        return _without_prompt(model.generate(**given, **generation), input_ids.shape[1])
    if not attended[:, -1].all():
        raise ValueError("the prompts are padded on the right: generation needs them padded on the left")
    placed = place_prompt(model, inputs, num_patches)
    num_latents = int(placed.latents.sum()) // len(inputs["pixel_values"])
    words = model.get_input_embeddings()(input_ids)
    with (
        weigh_latents(model, placed.latents, math.log(num_patches / num_latents)),
        read_prompts(model, words, placed.inputs_embeds, placed.position_ids),
    ):
        generated = model.generate(input_ids=input_ids, attention_mask=attended, **generation)
    return _without_prompt(generated, input_ids.shape[1])


def _without_prompt(generated: Any, length: int) -> Any:
    """Cut the prompts of so many tokens off what ``generate`` returned."""
    if isinstance(generated, Tensor):
        return generated[:, length:]
    generated["sequences"] = generated["sequences"][:, length:]
    return generated
