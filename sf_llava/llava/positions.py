"""Generating with positions by RoI centre and an attention bias, which an LLM can be told without any training.

reading.py says what both are. It works with every way of transformers' ``generate`` (sampling, beams, several samples,
batches padded on the left, static caches, prompts read in chunks, assistants): ``generate`` sees the prompt's ids
alone, and hooks before the LLM give it the latents, positions and bias (hooks.py).

    with swapped(model, processor, "path/to/encoder") as record:
        generate_in_place(model, inputs, record.num_patches, max_new_tokens=64)

Letters: B prompts, L prompt tokens, I images, N latents, M patches, T image tokens (N, one more with CLS), W width.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from sf_llava.llava.families import family_of
from sf_llava.llava.grids import PictureInPlace, see_in_place
from sf_llava.llava.hooks import read_prompts, weigh_latents
from sf_llava.llava.host import embed_prompts, find_llava
from sf_llava.llava.reading import Reading, reading_of, see

POSITIONS_AND_BIAS = "positions by RoI centre and an attention bias"


class PromptInPlace(NamedTuple):
    """What a LLaVA reads: ``inputs_embeds`` (B, L, W), ``position_ids`` (B, L), ``latents`` (B, L) bool, and the
    ``bias`` on the attention from text to these."""

    inputs_embeds: Tensor
    position_ids: Tensor
    latents: Tensor
    bias: float


@torch.no_grad()
def embed_in_place(
    model: LlavaForConditionalGeneration, inputs: Mapping[str, Tensor], num_patches: int
) -> PromptInPlace:
    """Embed prompts with their latents in raster order, and give every token its position.

    Args:
        model: a LLaVA whose vision tower is a SparseFormer, wrapped or not.
        inputs: of its processor: ``input_ids``, ``attention_mask`` (B, L) and ``pixel_values`` (I, 3, S, S); where
            pictures are cut into tiles (I, V, 3, S, S), with ``image_sizes``.
        num_patches: M of the vision tower that the LLM was trained with.

    Raises:
        ValueError: another tower, one that is read at several layers, or videos.
    """
    model = find_llava(model)
    return embed(model, inputs, reading_of(model, num_patches))


def embed(model: LlavaForConditionalGeneration, inputs: Mapping[str, Any], reading: Reading) -> PromptInPlace:
    """Do what :func:`embed_in_place` does, by ``reading``, with a gradient."""
    if inputs.get("pixel_values_videos") is not None:
        raise ValueError(f"{POSITIONS_AND_BIAS}: for pictures, not for videos, whose frames stock models pool")
    family = family_of(model)
    if family is not None and family.flat is not None:
        pictures, bias = see_in_place(model, inputs, reading)
    else:
        seen = see(model, inputs["pixel_values"], reading)
        assert seen.places is not None and reading.num_patches is not None, "reading by RoI centre gives places"
        is_latent, span = torch.arange(seen.places.shape[1]) >= reading.with_cls, reading.num_patches + reading.with_cls
        pictures = [PictureInPlace(*one, is_latent, span) for one in zip(seen.features, seen.places, strict=True)]
        bias = reading.bias(int(is_latent.sum()))
    input_ids = inputs["input_ids"]
    embeds = embed_prompts(model, input_ids, torch.cat([picture.features for picture in pictures]))
    image = input_ids == model.config.image_token_id
    places, spans = [picture.places for picture in pictures], [picture.span for picture in pictures]
    positions = reading.count_positions(image, _attended(inputs).bool(), places, spans)
    latents = torch.cat([picture.latents for picture in pictures]).to(image.device)
    return PromptInPlace(embeds, positions, image.masked_scatter(image, latents), bias)


def _attended(inputs: Mapping[str, Any]) -> Tensor:
    """The prompts' mask (B, L); all of them where there is none."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"]) if mask is None else mask


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
        ValueError: prompts padded on the right, another tower, videos beside pictures, or a way of generating in which
            the LLM is asked for other tokens than the prompt's and its answer's.
    """
    model = find_llava(model)
    length = inputs["input_ids"].shape[1]
    if inputs.get("pixel_values") is None:
        given = {name: value for name, value in inputs.items() if value is not None}
        return _without_prompt(model.generate(**given, **generation), length)
    generated = generate_behind_prompts(model, inputs, reading_of(model, num_patches), **generation)
    return _without_prompt(generated, length)


def generate_behind_prompts(
    model: LlavaForConditionalGeneration, inputs: Mapping[str, Any], reading: Reading, **generation: Any
) -> Any:
    """Do what :func:`generate_in_place` does with pictures, by ``reading``, and return the prompts too."""
    attended, input_ids = _attended(inputs), inputs["input_ids"]
    if not attended[:, -1].all():
        raise ValueError("the prompts are padded on the right: generation needs them padded on the left")
    prompt = embed(model, inputs, reading)
    words = model.get_input_embeddings()(input_ids)
    with (
        weigh_latents(model, prompt.latents, prompt.bias),
        read_prompts(model, words, prompt.inputs_embeds, prompt.position_ids),
    ):
        return model.generate(input_ids=input_ids, attention_mask=attended, **generation)


def _without_prompt(generated: Any, length: int) -> Any:
    """Cut the prompts of so many tokens off what ``generate`` returned."""
    if isinstance(generated, Tensor):
        return generated[:, length:]
    generated["sequences"] = generated["sequences"][:, length:]
    return generated
