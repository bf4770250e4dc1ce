"""Small random SigLIPs and DINOv2s, as transformers saves them."""

from pathlib import Path

from tiny_models import randomise, word_tokenizer
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

SIGLIP_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-4,
}
SIGLIP_TEXT = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}
DINOV2 = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2, "patch_size": 8}


def save_siglip(path: Path, **vision: object) -> Path:
    """Write a whole ``SiglipModel`` with tokenizer and image processor."""
    vision = SIGLIP_VISION | vision
    randomise(SiglipModel(SiglipConfig(vision_config=vision, text_config=SIGLIP_TEXT))).save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    side = vision["image_size"]
    SiglipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(path)
    return path


def save_siglip_vision(path: Path, **vision: object) -> Path:
    """Write a ``SiglipVisionModel``, the tower of a LLaVA, without image processor."""
    randomise(SiglipVisionModel(SiglipVisionConfig(**(SIGLIP_VISION | vision)))).save_pretrained(path)
    return path


def save_dinov2(path: Path) -> Path:
    """Write a ``Dinov2Model`` for pictures of 40 px whose processor makes them 24."""
    randomise(Dinov2Model(Dinov2Config(**DINOV2, image_size=40))).save_pretrained(path)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 24, "width": 24}}
    BitImageProcessorPil(**size, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(path)
    return path


def save_dinov2_with_registers(path: Path) -> Path:
    """Write a ``Dinov2WithRegistersModel`` without image processor."""
    config = Dinov2WithRegistersConfig(**DINOV2, image_size=24, num_register_tokens=4)
    randomise(Dinov2WithRegistersModel(config)).save_pretrained(path)
    return path
