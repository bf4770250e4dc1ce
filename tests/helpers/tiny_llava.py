"""A tiny LLaVA with a CLIP tower, a word tokenizer and tiny SparseFormer encoders, all random."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sf_llava.configuration import SparseFormerConfig
from sf_llava.model import SparseFormerModel

WORDS = [
    "what",
    "is",
    "in",
    "the",
    "image",
    "on",
    "a",
    "mat",
    "cat",
    "dog",
    "red",
    "blue",
    "USER:",
    "ASSISTANT:",
    "?",
    ".",
    "the",
    "answer",
    "A",
    "B",
    "C",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ 'USER: ' if message.role == 'user' else 'ASSISTANT: ' }}"
    "{% for part in message.content %}{{ '<image>\n' if part.type == 'image' else part.text }}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
WIDTH = 64


def make_tokenizer() -> PreTrainedTokenizerFast:
    specials = ["<unk>", "<s>", "</s>", "<image>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(specials + WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def make_encoder(num_latents: int = 16, **changes: object) -> SparseFormerModel:
    torch.manual_seed(num_latents)
    fields = dict(
        image_size=32,
        num_latents=num_latents,
        hidden_size=WIDTH,
        focusing_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        focusing_num_attention_heads=1,
        intermediate_size=128,
        conv_channels=16,
        mixing_size=16,
        mixing_points=8,
        projection_dim=32,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )
    return SparseFormerModel(SparseFormerConfig(**(fields | changes))).eval()


def text_config(num_layers: int = 2) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def make_llava(vision_config: object = None, num_layers: int = 2, **changes: object) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision_config = vision_config or CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
    )
    text = text_config(num_layers)
    config = LlavaConfig(vision_config=vision_config, text_config=text, image_token_index=3, **changes)
    return LlavaForConditionalGeneration(config).eval()


def save_llava(path: Path, clip: Path, **changes: object) -> None:
    """Write a tiny LLaVA on the tower of the tiny CLIP in ``clip``."""
    tower = CLIPModel.from_pretrained(clip).vision_model
    model = make_llava(tower.config, **changes)
    model.model.vision_tower = tower
    model.save_pretrained(path)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images,
        make_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(path)
