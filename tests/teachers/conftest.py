"""Small random models of every family, saved the way each library saves its own, every parameter random."""

import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from tiny_families import save_dinov2, save_dinov2_with_registers, save_siglip, save_siglip_vision
from tiny_models import open_clip_config, open_clip_siglip_config, randomise, word_tokenizer
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from sf_llava.mini.training.clip_model import build_tokenizer
from sf_llava.teachers import load_teacher
from sf_llava.teachers.base import Teacher

WORDS = ("a", "photo", "of", "the", "cat", "dog", "red")


OPENAI_TEXT = {"text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}}


@pytest.fixture(scope="session")
def open_clip_models(tmp_path_factory) -> Path:
    """Directory of configurations, registered in open_clip, with the random weights of ``tiny`` beside them."""
    directory = tmp_path_factory.mktemp("open_clip")
    configs = {
        "tiny": open_clip_config(),
        "tiny-quickgelu": open_clip_config(quick_gelu=True),
        "tiny-custom": open_clip_config() | {"custom_text": True},
        "tiny-openai": open_clip_config(width=64, head_width=64) | OPENAI_TEXT,
        "tiny-openai-quickgelu": open_clip_config(quick_gelu=True, width=64, head_width=64) | OPENAI_TEXT,
        "tiny-336": open_clip_config(image_size=32),
        "tiny-attn-pool": open_clip_config(attentional_pool=True, attn_pooler_heads=2),
        "tiny-avg-pool": open_clip_config(pool_type="avg"),
        "tiny-patch-dropout": open_clip_config(patch_dropout=0.5),
        "tiny-layer-scale": open_clip_config(ls_init_value=0.1),
        "tiny-qk-norm": open_clip_config(qk_norm=True),
    }
    (directory / "configs").mkdir()
    for name, config in configs.items():
        (directory / "configs" / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(directory / "configs")
    clip = randomise(open_clip.CLIP(**open_clip_config()))
    torch.save(clip.state_dict(), directory / "weights.pt")
    clip = randomise(open_clip.CLIP(**configs["tiny-layer-scale"]))
    torch.save(clip.state_dict(), directory / "layer-scale.pt")
    return directory


@pytest.fixture(scope="session")
def open_clip_dir(open_clip_models, tmp_path_factory) -> Path:
    """A directory as ``open_clip.push_to_hf_hub`` would fill it, with normalisation of its own."""
    directory = tmp_path_factory.mktemp("open_clip_dir")
    clip = randomise(open_clip.CLIP(**open_clip_config(quick_gelu=True)), seed=1)
    torch.save(clip.state_dict(), directory / "open_clip_pytorch_model.bin")
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    config = {"model_cfg": open_clip_config(quick_gelu=True), "preprocess_cfg": preprocess}
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    return directory


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
    "hidden_act": "silu",
    "layer_norm_eps": 1e-4,
}


@pytest.fixture(scope="session")
def transformers_dir(tmp_path_factory) -> Path:
    """A whole ``CLIPModel`` with tokenizer and image processor."""
    directory = tmp_path_factory.mktemp("transformers")
    tokenizer = build_tokenizer(WORDS)
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 1, "max_position_embeddings": 12, "eos_token_id": tokenizer.eos_token_id}
    model = CLIPModel(CLIPConfig(vision_config=VISION, text_config=text, projection_dim=20))
    randomise(model).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    CLIPImageProcessorPil(**size, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def transformers_vision_dir(tmp_path_factory) -> Path:
    """A ``CLIPVisionModelWithProjection`` without image processor."""
    directory = tmp_path_factory.mktemp("transformers_vision")
    config = CLIPVisionConfig(**(VISION | {"hidden_act": "quick_gelu"}), projection_dim=20)
    randomise(CLIPVisionModelWithProjection(config)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def timm_file(tmp_path_factory) -> Path:
    """The random weights of ``vit_sf_tiny``."""
    file = tmp_path_factory.mktemp("timm") / "weights.pt"
    torch.save(randomise(timm.create_model("vit_sf_tiny")).state_dict(), file)
    return file


@pytest.fixture(scope="session")
def timm_clip_file(tmp_path_factory) -> Path:
    """The random weights of ``vit_sf_tiny_clip``: a head without bias, as timm keeps CLIP's projection."""
    file = tmp_path_factory.mktemp("timm_clip") / "weights.pt"
    model = randomise(timm.create_model("vit_sf_tiny_clip"))
    nn.init.zeros_(model.head.bias)
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture(scope="session")
def transformers_siglip_dir(tmp_path_factory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="session")
def transformers_siglip_vision_dir(tmp_path_factory) -> Path:
    return save_siglip_vision(tmp_path_factory.mktemp("siglip_vision"))


@pytest.fixture(scope="session")
def transformers_dinov2_dir(tmp_path_factory) -> Path:
    return save_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="session")
def transformers_dinov2_registers_dir(tmp_path_factory) -> Path:
    return save_dinov2_with_registers(tmp_path_factory.mktemp("dinov2_registers"))


@pytest.fixture(scope="session")
def open_clip_siglip_dir(tmp_path_factory) -> Path:
    """A SigLIP of open_clip with its tokenizer."""
    directory = tmp_path_factory.mktemp("open_clip_siglip")
    parts = {name: value for name, value in open_clip_siglip_config().items() if name != "custom_text"}
    clip = randomise(open_clip.CustomTextCLIP(**parts))
    torch.save(clip.state_dict(), directory / "open_clip_pytorch_model.bin")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": open_clip_siglip_config(), "preprocess_cfg": preprocess}
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    word_tokenizer().save_pretrained(directory)
    return directory


TIMM_MODELS = {
    "timm_siglip": "vit_sf_tiny_siglip",
    "timm_dinov2": "vit_sf_tiny_dinov2",
    "timm_dinov2_registers": "vit_sf_tiny_reg4_dinov2",
}


@pytest.fixture(scope="session")
def timm_files(tmp_path_factory) -> dict[str, str]:
    """Names of further teachers of timm, without classifiers, by family."""
    directory, names = tmp_path_factory.mktemp("timm_families"), {}
    for family, model in TIMM_MODELS.items():
        torch.save(randomise(timm.create_model(model, num_classes=0)).state_dict(), directory / f"{family}.pt")
        names[family] = f"timm:{model}/{directory / family}.pt"
    return names


FAMILIES = (
    *("open_clip_file", "open_clip_custom", "open_clip_dir", "open_clip_layer_scale", "open_clip_siglip"),
    *("transformers", "transformers_vision", "transformers_siglip", "transformers_siglip_vision"),
    *("transformers_dinov2", "transformers_dinov2_registers"),
    *("timm", "timm_clip", *TIMM_MODELS),
)
OPEN_CLIP_MODELS = {
    "open_clip_file": "tiny",
    "open_clip_custom": "tiny-custom",
    "open_clip_layer_scale": "tiny-layer-scale",
}


@pytest.fixture(params=FAMILIES)
def teacher_name(request) -> str:
    """The name of one small teacher of each kind."""
    fixture = request.getfixturevalue
    if request.param in OPEN_CLIP_MODELS:
        file = "layer-scale.pt" if request.param == "open_clip_layer_scale" else "weights.pt"
        return f"open_clip:{OPEN_CLIP_MODELS[request.param]}/{fixture('open_clip_models') / file}"
    if request.param in TIMM_MODELS:
        return fixture("timm_files")[request.param]
    if request.param.startswith("timm"):
        model = "vit_sf_tiny_clip" if request.param == "timm_clip" else "vit_sf_tiny"
        return f"timm:{model}/{fixture(request.param + '_file')}"
    directory = fixture(request.param if request.param.endswith("_dir") else f"{request.param}_dir")
    return str(directory)  # a bare directory


@pytest.fixture
def teacher(teacher_name) -> Teacher:
    return load_teacher(teacher_name)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(5))
