"""Token accounting: how many tokens an image becomes, in the processor and in the prompt.

A ``LlavaProcessor`` writes ``(H // patch_size) * (W // patch_size) + num_additional_image_tokens`` image tokens, less
one where CLS is dropped. With ``patch_size`` set to the side of the image the product is one: it stands for CLS, and
the latents are the additional tokens.
"""

import copy
from collections.abc import Sequence

from PIL import Image
from transformers import BatchFeature, LlavaProcessor, PreTrainedTokenizerBase
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sf_llava.configuration import SparseFormerConfig

STRATEGIES = ("default", "full")  # without and with CLS, in transformers' words


def count_image_tokens(config: SparseFormerConfig, strategy: str = "default") -> int:
    """Count the tokens an LLM receives for one image: the latents, and CLS with the strategy ``full``."""
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown vision_feature_select_strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    return config.num_latents + (strategy == "full")


def fit_processor(processor: LlavaProcessor, config: SparseFormerConfig, strategy: str) -> None:
    """Make ``processor`` prepare images and prompts for an encoder: size, normalisation and exact token count.

    Interpolation, padding and everything about the text stay as they are; the image processor is replaced by a copy.
    """
    images = copy.deepcopy(processor.image_processor)
    side = config.image_size
    if "shortest_edge" in dict(images.size):
        images.size = type(images.size)(shortest_edge=side)
    else:
        images.size = type(images.size)(height=side, width=side)
    if getattr(images, "crop_size", None) is not None:
        images.crop_size = type(images.crop_size)(height=side, width=side)
    images.image_mean, images.image_std = list(config.image_mean), list(config.image_std)
    processor.image_processor = images
    processor.patch_size = side
    processor.vision_feature_select_strategy = strategy
    processor.num_additional_image_tokens = config.num_latents


def build_processor(
    config: SparseFormerConfig,
    tokenizer: PreTrainedTokenizerBase,
    strategy: str = "default",
    chat_template: str | None = None,
) -> LlavaProcessor:
    """Build the processor of a LLaVA whose vision tower is a SparseFormer.

    Args:
        config: of the encoder.
        tokenizer: of the LLM; it must know the image token, ``<image>`` unless it names another ``image_token``.
        strategy: ``default`` drops CLS, ``full`` keeps it; the same as in the model's config.
        chat_template: Jinja template for conversations and the pipeline.
    """
    processor = LlavaProcessor(CLIPImageProcessorPil(), tokenizer, chat_template=chat_template)
    if processor.image_token_id is None or processor.image_token_id == tokenizer.unk_token_id:
        raise ValueError(
            f"the tokenizer has no image token {processor.image_token!r}: add it with "
            f"add_tokens(['{processor.image_token}'], special_tokens=True) and resize the model's embeddings"
        )
    fit_processor(processor, config, strategy)
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
                f"prompt {number} holds {token} {_times(named)} but has {len(pictures)} image(s): write {token} once "
                "for every image"
            )
    flat = [picture for pictures in images for picture in pictures]
    return processor(images=flat or None, text=list(prompts), return_tensors="pt", padding=True, padding_side="left")


def _times(count: int) -> str:
    return {0: "nowhere", 1: "once", 2: "twice"}.get(count, f"{count} times")
