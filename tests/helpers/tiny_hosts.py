"""Tiny random LLaVAs of every family that takes a SparseFormer, and their processors."""

from typing import Any

import torch
from tiny_llava import CHAT_TEMPLATE, WIDTH, make_encoder, make_tokenizer, text_config
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    SiglipVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from sf_llava.model import SparseFormerModel

SIDE, PATCH = 32, 8
GRID = [[rows * SIDE, columns * SIDE] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
TOWER = dict(
    hidden_size=WIDTH,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=SIDE,
    patch_size=PATCH,
)
SQUARE = {"height": SIDE, "width": SIDE}
IMAGE, VIDEO = 3, 24
TILED = ("next", "next_video", "onevision")
HOSTS = ("vip", *TILED)


def make_host(name: str, **changes: object) -> Any:
    """A model of a family; OneVision has a SigLIP without its last block, as published ones do."""
    torch.manual_seed(0)
    fields: dict[str, Any] = dict(text_config=text_config(), image_token_index=IMAGE)
    clip = CLIPVisionConfig(**TOWER)
    if name == "llava":
        return LlavaForConditionalGeneration(LlavaConfig(vision_config=clip, **(fields | changes))).eval()
    if name == "vip":
        model = VipLlavaForConditionalGeneration(VipLlavaConfig(vision_config=clip, **(fields | changes)))
        return model.eval()
    fields |= dict(image_grid_pinpoints=GRID)
    if name == "next":
        return LlavaNextForConditionalGeneration(LlavaNextConfig(vision_config=clip, **(fields | changes))).eval()
    fields |= dict(video_token_index=VIDEO)
    if name == "next_video":
        config = LlavaNextVideoConfig(vision_config=clip, **(fields | changes))
        return LlavaNextVideoForConditionalGeneration(config).eval()
    siglip = SiglipVisionConfig(**TOWER, vision_use_head=False)
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(vision_config=siglip, **(fields | changes))
    ).eval()


def make_vip(layers: int | list[int] = (-2, -3)) -> Any:
    """A VipLLaVA that reads these hidden states; their field's name is another one in older releases."""
    field = "vision_feature_layer" if hasattr(VipLlavaConfig(), "vision_feature_layer") else "vision_feature_layers"
    return make_host("vip", **{field: layers if isinstance(layers, int) else list(layers)})


def make_host_processor(name: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    assert tokenizer.convert_tokens_to_ids("<video>") == VIDEO
    counts = dict(patch_size=PATCH, num_additional_image_tokens=1, vision_feature_select_strategy="default")
    fields: dict[str, Any] = dict(chat_template=CHAT_TEMPLATE)
    if name in ("llava", "vip"):
        images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE)
        return LlavaProcessor(images, tokenizer, **counts, **fields)
    if name == "onevision":
        return LlavaOnevisionProcessor(
            LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=GRID),
            tokenizer,
            LlavaOnevisionVideoProcessor(size=SQUARE),
            num_image_tokens=(SIDE // PATCH) ** 2,
            vision_feature_select_strategy="full",
            **fields,
        )
    images = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=GRID)
    if name == "next":
        return LlavaNextProcessor(images, tokenizer, **counts, **fields)
    videos = LlavaNextVideoVideoProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    return LlavaNextVideoProcessor(videos, images, tokenizer, **counts, **fields)


def make_student_of(name: str, num_latents: int = 5, **changes: object) -> SparseFormerModel:
    """A random encoder that fits a family's tower."""
    if name == "onevision":
        changes = dict(use_cls=False, projection_dim=0, resize_mode="squash", num_teacher_layers=4) | changes
    return make_encoder(num_latents, **changes)
