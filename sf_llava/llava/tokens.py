"""Token accounting: how many tokens an image becomes, in the processor and in the prompt.

A ``LlavaProcessor`` writes ``(H // patch_size) * (W // patch_size) + num_additional_image_tokens`` image tokens, less
one where CLS is dropped. With ``patch_size`` set to the side of the image the product is one: it stands for the first
token, CLS where there is one, and the others are the additional tokens.
"""

from collections.abc import Iterable, Sequence
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
    ProcessorMixin,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from sf_llava.configuration import SparseFormerConfig
from sf_llava.llava.families import family_of
from sf_llava.llava.host import kind_of
from sf_llava.llava.preparing import fit_image_processor
from sf_llava.llava.reading import strategy_of

PROCESSOR_FIELDS = (
    "image_processor",
    "video_processor",
    "patch_size",
    "num_additional_image_tokens",
    "num_image_tokens",
    "vision_feature_select_strategy",
)
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


def check_processor(processor: Any, expected: Any = LlavaProcessor) -> None:
    """Check that ``processor`` counts image tokens as a LLaVA's does, one of the class ``expected``.

    Raises:
        ValueError: it is another kind.
    """
    if not isinstance(processor, expected):
        raise ValueError(f"expected the LLaVA's {expected.__name__}, not {kind_of(processor)}")
    for name in ("image_processor", "tokenizer"):
        if getattr(processor, name, None) is None:
            raise ValueError(f"the {expected.__name__} has no {name}: load it from the LLaVA's directory")


def keep_fields(processor: ProcessorMixin) -> dict[str, Any]:
    """Give what a swap changes of a processor, by name."""
    return {name: getattr(processor, name) for name in PROCESSOR_FIELDS if hasattr(processor, name)}


def fit_processor(
    processor: ProcessorMixin, images: BaseImageProcessor, config: SparseFormerConfig, strategy: str, videos: Any = None
) -> None:
    """Give ``processor`` the image processor, that of videos if it has one, and the exact token count of an encoder."""
    processor.image_processor = images
    if videos is not None:
        processor.video_processor = videos
    _set_count(processor, config.image_size, config.num_tokens - 1, strategy)


def _set_count(processor: ProcessorMixin, patch_size: int, extra: int, strategy: str, patches: int = 1) -> None:
    """Tell a processor that a square is so many patches of ``patch_size``, and ``extra`` tokens."""
    processor.vision_feature_select_strategy = strategy
    if hasattr(processor, "num_image_tokens"):  # LLaVA-OneVision's
        processor.num_image_tokens = patches + extra
    else:
        processor.patch_size, processor.num_additional_image_tokens = patch_size, extra


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
    fit_processor(processor, fit_image_processor(processor, config, None), config, strategy)
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
        ``input_ids``, ``attention_mask`` (B, L) and, if there is any picture, ``pixel_values`` (images, 3, S, S); where
        pictures are cut into tiles (images, V, 3, S, S), with ``image_sizes``.

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
    shown = [list(pictures) for pictures in images] if any(images) else None
    return processor(images=shown, text=list(prompts), return_tensors="pt", padding=True, padding_side="left")


def _encode_without_pad_token(
    processor: LlavaProcessor, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]
) -> BatchFeature:
    """Do what :func:`encode_prompts` does where the tokenizer has no pad token: masked tokens are never read."""
    filler = processor.tokenizer.eos_token_id or 0
    rows = [
        processor(images=[list(pictures)] if pictures else None, text=[prompt], return_tensors="pt")
        for prompt, pictures in zip(prompts, images, strict=True)
    ]
    longest = max(row["input_ids"].shape[1] for row in rows)

    def padded(name: str, value: int) -> Tensor:
        return torch.cat([F.pad(row[name], (longest - row[name].shape[1], 0), value=value) for row in rows])

    inputs = {"input_ids": padded("input_ids", filler), "attention_mask": padded("attention_mask", 0)}
    pictured = [row for row in rows if "pixel_values" in row]
    for name in pictured[0].keys() - inputs.keys() if pictured else ():  # pixels, and what belongs to tiles
        inputs[name] = _join([row[name] for row in pictured])
    return BatchFeature(inputs)


def _join(rows: list[Tensor]) -> Tensor:
    """Join what belongs to pictures: (I, ...), or pixels (I, V, 3, S, S), with empty views behind the fewer."""
    if rows[0].ndim == 5:
        most = max(row.shape[1] for row in rows)
        rows = [F.pad(row, (0, 0, 0, 0, 0, 0, 0, most - row.shape[1])) for row in rows]
    return torch.cat(rows)


def harmless(processor: LlavaProcessor, text: str) -> str:
    """Write a person's text so that none of its words is a token with a meaning of its own (``<image>``, ``</s>``)."""
    return break_tokens({*processor.tokenizer.all_special_tokens, processor.image_token}, text)


def break_tokens(tokens: Iterable[str], text: str) -> str:
    """Write a text so that it holds none of ``tokens``: a space after the first letter of each."""
    for token in tokens:
        text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


def complete_processor(model: LlavaForConditionalGeneration, processor: ProcessorMixin) -> None:
    """Correct a processor that writes another number of tokens than the model's tower gives, as old ones do.

    Raises:
        ValueError: it is no processor of such a model, or the tower's patches cannot be counted.
    """
    family = family_of(model)
    assert family is not None, "find_llava has let it pass"
    check_processor(processor, family.processor)
    config, strategy = model.config.vision_config, strategy_of(model.config)
    if isinstance(config, SparseFormerConfig):
        patch_size, extra = config.image_size, config.num_tokens - 1
    else:
        extra, patch_size = count_extra_tokens(model), config.patch_size
    patches = (config.image_size // patch_size) ** 2
    if hasattr(processor, "num_image_tokens"):
        right = (processor.num_image_tokens, processor.vision_feature_select_strategy) == (patches + extra, strategy)
    else:
        names = ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy")
        now = tuple(getattr(processor, name) for name in names)
        right = None not in now and _count_written(config.image_size, *now) == patches + extra - (strategy == "default")
    if not right:
        _set_count(processor, patch_size, extra, strategy, patches)


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
