"""Token accounting: how many tokens an image becomes, in the processor and in the prompt.

A ``LlavaProcessor`` writes ``(H // patch_size) * (W // patch_size) + num_additional_image_tokens`` image tokens, less
one where CLS is dropped. With ``patch_size`` set to the side of the image the product is one: it stands for the first
token, CLS where there is one, and the others are the additional tokens.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    BaseImageProcessor,
    BatchFeature,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from sf_llava.configuration import SparseFormerConfig
from sf_llava.llava.host import kind_of

PROCESSOR_FIELDS = ("image_processor", "patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
STRATEGIES = ("default", "full")  # without and with CLS, in transformers' words


def count_image_tokens(config: SparseFormerConfig, strategy: str = "default") -> int:
    """Count the tokens an LLM receives for one image: the latents, and CLS, if there is one, with ``full``.

    Raises:
        ValueError: an unknown strategy, or one that drops the CLS of an encoder without.
    """
    check_strategy(config, strategy)
    return config.num_tokens - (strategy == "default")


def check_strategy(config: SparseFormerConfig, strategy: str) -> None:
    """Check that a LLaVA's ``vision_feature_select_strategy`` does not drop a latent of an encoder without CLS."""
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown vision_feature_select_strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    if strategy == "default" and not config.use_cls:
        raise ValueError(
            "the encoder has no CLS, and vision_feature_select_strategy 'default' would drop its first latent for one: "
            "expected 'full', as of a LLaVA with a SigLIP"
        )


def check_processor(processor: Any) -> None:
    """Check that ``processor`` counts image tokens as a LLaVA's does.

    Raises:
        ValueError: it is another kind.
    """
    if not isinstance(processor, LlavaProcessor):
        raise ValueError(f"expected the LLaVA's LlavaProcessor, not {kind_of(processor)}")
    for name in ("image_processor", "tokenizer"):
        if getattr(processor, name, None) is None:
            raise ValueError(f"the LlavaProcessor has no {name}: load it from the LLaVA's directory")


def fit_image_processor(processor: LlavaProcessor, config: SparseFormerConfig) -> BaseImageProcessor:
    """Give a copy of ``processor``'s image processor that prepares images for an encoder: size and normalisation.

    Interpolation, padding and everything else stay as they are.

    Raises:
        ValueError: it is no LlavaProcessor, or its image processor does not make squares of the encoder's side.
    """
    check_processor(processor)
    images, side = copy.deepcopy(processor.image_processor), config.image_size
    size = getattr(images, "size", None)
    images.size = _like(size, {"shortest_edge": side} if "shortest_edge" in dict(size or {}) else _square(side))
    if getattr(images, "crop_size", None) is not None:
        images.crop_size = _like(images.crop_size, _square(side))
    images.image_mean, images.image_std = list(config.image_mean), list(config.image_std)
    made = {name: tuple(value.shape) for name, value in images(_picture(side), return_tensors="pt").items()}
    if made != {"pixel_values": (1, 3, side, side)}:
        raise ValueError(
            f"the encoder reads squares of {side} pixels, but the processor's {type(images).__name__} makes {made} of "
            "a picture: use the image processor of a CLIP"
        )
    return images


def _picture(side: int) -> Image.Image:
    return Image.new("RGB", (side + 3, side + 2))


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _like(size: Any, values: dict[str, int]) -> Any:
    """Write a size in the form that an image processor holds it in: transformers' class, or a dictionary."""
    return type(size)(**values) if isinstance(size, Mapping) or hasattr(size, "height") else values


def fit_processor(
    processor: LlavaProcessor, images: BaseImageProcessor, config: SparseFormerConfig, strategy: str
) -> None:
    """Give ``processor`` the image processor and the exact token count of an encoder."""
    processor.image_processor = images
    processor.patch_size = config.image_size
    processor.vision_feature_select_strategy = strategy
    processor.num_additional_image_tokens = config.num_tokens - 1


def build_processor(
    config: SparseFormerConfig,
    tokenizer: PreTrainedTokenizerBase,
    strategy: str | None = None,
    chat_template: str | None = None,
) -> LlavaProcessor:
    """Build the processor of a LLaVA whose vision tower is a SparseFormer.

    Args:
        config: of the encoder.
        tokenizer: of the LLM; it must know the image token, ``<image>`` unless it names another ``image_token``.
        strategy: ``default`` drops CLS, ``full`` keeps it or has none to drop; the same as in the model's config. None
            drops CLS where there is one.
        chat_template: Jinja template for conversations and the pipeline.

    Raises:
        ValueError: a strategy that does not fit the encoder, or a tokenizer without an image token.
    """
    strategy = strategy or ("default" if config.use_cls else "full")
    check_strategy(config, strategy)
    images = SiglipImageProcessorPil() if config.resize_mode == "squash" else CLIPImageProcessorPil()
    processor = LlavaProcessor(images, tokenizer, chat_template=chat_template)
    if processor.image_token_id is None or processor.image_token_id == tokenizer.unk_token_id:
        raise ValueError(
            f"the tokenizer has no image token {processor.image_token!r}: add it with "
            f"add_tokens(['{processor.image_token}'], special_tokens=True) and resize the model's embeddings"
        )
    fit_processor(processor, fit_image_processor(processor, config), config, strategy)
    return processor


def encode_prompts(
    processor: LlavaProcessor, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]
) -> BatchFeature:
    """Tokenise prompts with their images, padded on the left for generation.

    Args:
        processor: of the model.
        prompts: B texts.
        images: B lists of pictures, in the order of the image tokens in the prompt; an empty list for text alone.

    Returns:
        ``input_ids``, ``attention_mask`` (B, L) and, if there is any picture, ``pixel_values`` (images, 3, S, S).

    Raises:
        ValueError: a prompt does not name exactly as many images as it has.
    """
    if len(prompts) != len(images):
        raise ValueError(f"there are {len(prompts)} prompts but {len(images)} lists of images")
    token = processor.image_token
    for number, (prompt, pictures) in enumerate(zip(prompts, images, strict=True)):
        if (named := prompt.count(token)) != len(pictures):
            raise ValueError(
                f"prompt {number} holds {token} {times(named)} but has {len(pictures)} image(s): write {token} once "
                "for every image"
            )
    if processor.tokenizer.pad_token is None:
        return _encode_without_pad_token(processor, prompts, images)
    flat = [picture for pictures in images for picture in pictures]
    return processor(images=flat or None, text=list(prompts), return_tensors="pt", padding=True, padding_side="left")


def _encode_without_pad_token(
    processor: LlavaProcessor, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]
) -> BatchFeature:
    """Do what :func:`encode_prompts` does where the tokenizer has no pad token: masked tokens are never read."""
    filler = processor.tokenizer.eos_token_id or 0
    rows = [
        processor(images=list(pictures) or None, text=[prompt], return_tensors="pt")
        for prompt, pictures in zip(prompts, images, strict=True)
    ]
    longest = max(row["input_ids"].shape[1] for row in rows)

    def padded(name: str, value: int) -> Tensor:
        return torch.cat([F.pad(row[name], (longest - row[name].shape[1], 0), value=value) for row in rows])

    inputs = {"input_ids": padded("input_ids", filler), "attention_mask": padded("attention_mask", 0)}
    if pixels := [row["pixel_values"] for row in rows if "pixel_values" in row]:
        inputs["pixel_values"] = torch.cat(pixels)
    return BatchFeature(inputs)


def harmless(processor: LlavaProcessor, text: str) -> str:
    """Write a person's text so that none of its words is a token with a meaning of its own (``<image>``, ``</s>``)."""
    return break_tokens({*processor.tokenizer.all_special_tokens, processor.image_token}, text)


def break_tokens(tokens: Iterable[str], text: str) -> str:
    """Write a text so that it holds none of ``tokens``: a space after the first letter of each."""
    for token in tokens:
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


def complete_processor(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Correct a processor that writes another number of tokens than the model's tower gives, as old ones do.

    Raises:
        ValueError: it is no LlavaProcessor, or the tower's patches cannot be counted.
    """
    check_processor(processor)
    config, strategy = model.config.vision_config, model.config.vision_feature_select_strategy
    if isinstance(config, SparseFormerConfig):
        patch_size, extra = config.image_size, config.num_tokens - 1
    else:
        extra, patch_size = count_extra_tokens(model), config.patch_size
    right = (patch_size, extra, strategy)
    now = (processor.patch_size, processor.num_additional_image_tokens, processor.vision_feature_select_strategy)
    if None in now or _count_written(config.image_size, *now) != _count_written(config.image_size, *right):
        processor.patch_size, processor.num_additional_image_tokens, processor.vision_feature_select_strategy = right


def _count_written(image_size: int, patch_size: int, extra: int, strategy: str) -> int:
    """Count the tokens that a LlavaProcessor writes for a square picture."""
    return (image_size // patch_size) ** 2 + extra - (strategy == "default")


@torch.no_grad()
def show_nothing(model: LlavaForConditionalGeneration) -> Any:
    """Show an empty picture to a ViT tower: all that it gives."""
    tower, config = model.model.vision_tower, model.config.vision_config
    weight = next(weight for weight in tower.parameters() if weight.dtype.is_floating_point)
    empty = torch.zeros(1, 3, config.image_size, config.image_size, device=weight.device, dtype=weight.dtype)
    return tower(empty, output_hidden_states=True, return_dict=True)


def count_extra_tokens(model: LlavaForConditionalGeneration) -> int:
    """Count what a ViT tower gives beside its patches (CLS), by showing it an empty picture.

    Raises:
        ValueError: it gives fewer tokens than its config has patches.
    """
    num_patches = count_patches(model.config.vision_config)
    given = show_nothing(model).hidden_states[-1].shape[1]
    if given < num_patches:
        raise ValueError(f"the vision tower gives {given} tokens, but its config has {num_patches} patches")
    return given - num_patches


def count_patches(vision_config: Any) -> int:
    """Count M, the patch tokens of a ViT, from its config.

    Raises:
        ValueError: the config tells no square image and patch.
    """
    image, patch = (getattr(vision_config, name, None) for name in ("image_size", "patch_size"))
    if not isinstance(image, int) or not isinstance(patch, int):
        raise ValueError(
            f"the patches of a {type(vision_config).__name__} cannot be counted: expected whole numbers for image_size "
            f"and patch_size, not {image!r} and {patch!r}"
        )
    return (image // patch) ** 2


def times(count: int) -> str:
    """Say how often: nowhere, once, twice, 3 times."""
    return {0: "nowhere", 1: "once", 2: "twice"}.get(count, f"{count} times")
