"""Positions by RoI centre and an attention bias: what a swapped LLaVA's LLM can be told without any training.

The LLM was trained on M patch tokens in raster order. N latents in their own order put every word behind them at
another position, say nothing about where they look, and weigh less than M tokens in every attention of the text. So:

    order      latents stand in raster order of the patch that their last RoI's centre falls on
    positions  each has the position id of that patch; the text behind starts where it started in training
    bias       log(M / N) is added to the attention scores from text to latents, as if each stood for M / N patches

With N = M latents, one on each patch, this is the plain model. It works with transformers' ``generate`` (greedy or
sampling, batches padded on the left, KV cache): a forward hook widens the mask, no class is changed.

    swapped = swap(model, processor, "path/to/encoder")
    generate_in_place(model, inputs, count_patches(swapped.vision_config), max_new_tokens=64)

Letters: B prompts, L prompt tokens, I images, N latents, M patches, T image tokens (N, one more with CLS), W width.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from sf_llava.model import SparseFormerModel

ATTENTION = ("eager", "sdpa")  # kernels that take an additive mask


class PlacedPrompt(NamedTuple):
    """What a LLaVA reads: ``inputs_embeds`` (B, L, W), ``position_ids`` (B, L), ``latents`` (B, L) bool."""

    inputs_embeds: Tensor
    position_ids: Tensor
    latents: Tensor


def count_patches(vision_config: Any) -> int:
    """Count M, the patch tokens of a ViT, from its config."""
    return (vision_config.image_size // vision_config.patch_size) ** 2


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
        model: a LLaVA whose vision tower is a SparseFormer.
        inputs: of its processor: ``input_ids``, ``attention_mask`` (B, L) and ``pixel_values`` (I, 3, S, S).
        num_patches: M of the vision tower that the LLM was trained with.

    Raises:
        ValueError: another tower, or one that is read at several layers.
    """
    encoder, layer = model.model.vision_tower, model.config.vision_feature_layer
    if not isinstance(encoder, SparseFormerModel):
        raise ValueError(
            f"only a SparseFormer has RoIs to place tokens by; the vision tower is {type(encoder).__name__}"
        )
    if not isinstance(layer, int):
        raise ValueError(f"positions by RoI centre need one vision_feature_layer, not {layer}")
    seen = encoder(inputs["pixel_values"], output_hidden_states=layer)
    with_cls = model.config.vision_feature_select_strategy == "full"
    tokens, places = arrange(seen.hidden_states[layer], seen.rois[:, -1], num_patches, with_cls)
    input_ids = inputs["input_ids"]
    embeds = model.get_input_embeddings()(input_ids)
    pictures = model.model.multi_modal_projector(tokens).to(embeds.device, embeds.dtype)
    image = input_ids == model.config.image_token_index
    if image.sum() != places.numel():
        raise ValueError(f"the prompts hold {image.sum()} image tokens but the pictures give {places.numel()}")
    embeds = embeds.masked_scatter(image[..., None], pictures)
    attended = inputs["attention_mask"].bool()
    positions = count_positions(image, attended, places.to(image.device), num_patches + with_cls)
    latent = image.masked_scatter(
        image, (torch.arange(places.shape[1]) >= with_cls).repeat(len(places)).to(image.device)
    )
    return PlacedPrompt(embeds, positions, latent)


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


@contextmanager
def weigh_latents(model: LlavaForConditionalGeneration, latents: Tensor, bias: float) -> Iterator[None]:
    """Add ``bias`` to all attention scores of the LLM from text to latents, while the context is open.

    Args:
        model: its LLM attends by ``eager`` or ``sdpa``.
        latents: (B, L) bool, which tokens of the prompts are latents; everything generated behind them is text.
        bias: added to the scores before the softmax.

    Raises:
        ValueError: another attention kernel.
    """
    llm: nn.Module = model.model.language_model
    if llm.config._attn_implementation not in ATTENTION:
        raise ValueError(
            f"the LLM's attention is {llm.config._attn_implementation!r}, which takes no additive mask: load the model "
            f"with attn_implementation {' or '.join(ATTENTION)}"
        )

    def widen_mask(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        embeds, attended, cache = (kwargs.get(name) for name in ("inputs_embeds", "attention_mask", "past_key_values"))
        length, device = embeds.shape[1], embeds.device
        if attended is None:  # generate drops a mask that masks nothing
            total = length + (cache.get_seq_length() if cache is not None else 0)
            attended = torch.ones(len(embeds), total, dtype=torch.bool, device=device)
        elif attended.ndim != 2:
            raise ValueError("an attention bias needs a mask (B, tokens), which a static cache does not leave")
        total = attended.shape[1]
        is_latent = nn.functional.pad(latents.to(device), (0, total - latents.shape[1]))  # [B, keys]
        scores = torch.where(is_latent[:, None, :] & ~is_latent[:, -length:, None], bias, 0.0)  # [B, queries, keys]
        causal = torch.ones(length, total, dtype=torch.bool, device=device).tril(total - length)
        masked = ~(causal & attended.bool()[:, None, :])
        mask = scores.to(embeds.dtype).masked_fill(masked, torch.finfo(embeds.dtype).min)
        return args, kwargs | {"attention_mask": mask[:, None]}

    hook = llm.register_forward_pre_hook(widen_mask, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def generate_in_place(
    model: LlavaForConditionalGeneration, inputs: Mapping[str, Tensor], num_patches: int, **generation: Any
) -> Tensor:
    """Generate with positions by RoI centre and the attention bias; text alone is generated as ever.

    Args:
        model: a LLaVA whose vision tower is a SparseFormer.
        inputs: of its processor, padded on the left: ``input_ids``, ``attention_mask``, ``pixel_values``.
        num_patches: M of the vision tower that the LLM was trained with.
        generation: for ``model.generate``.

    Returns:
        (B, new tokens) int64, without the prompts.
    """
    if "pixel_values" not in inputs:
        return model.generate(**inputs, **generation)[:, inputs["input_ids"].shape[1] :]
    placed = place_prompt(model, inputs, num_patches)
    bias = math.log(num_patches / model.model.vision_tower.config.num_latents)
    with weigh_latents(model, placed.latents, bias):
        return model.generate(
            inputs_embeds=placed.inputs_embeds,
            attention_mask=inputs["attention_mask"],
            position_ids=placed.position_ids,
            **generation,
        )
