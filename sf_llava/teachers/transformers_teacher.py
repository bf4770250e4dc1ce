"""CLIP models of transformers as teachers: ``CLIPModel``, or ``CLIPVisionModelWithProjection`` without a text tower."""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PretrainedConfig,
)

from sf_llava.configuration import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from sf_llava.data.transforms import Preprocessing
from sf_llava.teachers.base import Teacher, canonical_block, unsupported
from sf_llava.teachers.hub import hub_or_cache
from sf_llava.weights.fit import describe_misfit
from sf_llava.weights.model_directory import check_json_files, check_model_directory, reason
from sf_llava.weights.tensor_files import require_numbers

BLOCK_NAMES = {
    "norm1.weight": "layer_norm1.weight",
    "norm1.bias": "layer_norm1.bias",
    "attn.qkv.weight": "qkv.weight",  # of the fused projection
    "attn.qkv.bias": "qkv.bias",
    "attn.proj.weight": "self_attn.out_proj.weight",
    "attn.proj.bias": "self_attn.out_proj.bias",
    "norm2.weight": "layer_norm2.weight",
    "norm2.bias": "layer_norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
}
MODELS = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection}
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which preprocessor_config.json holds
TEXTS_AT_ONCE = 256


class TransformersTeacher(Teacher):
    """A CLIP of transformers."""

    clip: Any  # transformers' model, whose parts torch types as Tensor | Module
    tokenizer: Any

    def __init__(self, name: str, clip: Any, path: str) -> None:
        """Wrap a loaded model.

        Args:
            name: as given to ``load_teacher``.
            clip: a ``CLIPModel`` or a ``CLIPVisionModelWithProjection``.
            path: directory or hub id, for the image processor and the tokenizer.
        """
        config: CLIPVisionConfig = clip.vision_model.config
        super().__init__(name, config.image_size, config.patch_size, _preprocessing(name, path, config.image_size))
        self.clip = clip
        self.path = path
        self.tokenizer = None
        self.has_text = isinstance(clip, CLIPModel)
        self.hidden_size = config.hidden_size
        self.num_hidden_layers = config.num_hidden_layers
        self.num_attention_heads = config.num_attention_heads
        self.intermediate_size = config.intermediate_size
        self.hidden_act = config.hidden_act
        self.layer_norm_eps = config.layer_norm_eps
        self.projection_dim = clip.visual_projection.out_features
        # Written by scripts/train_mini.py: a small text tower knows no prompts but those it was trained with.
        self.templates = tuple(getattr(clip.config, "zero_shot", {}).get("templates", ()))
        self.freeze()

    def embed(self, pixel_values: Tensor) -> Tensor:
        vision = self.clip.vision_model
        return vision.pre_layrnorm(vision.embeddings(pixel_values))

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        return self.clip.vision_model.encoder.layers[index](tokens, None)

    def block_state_dict(self, index: int) -> dict[str, Tensor]:
        own = self.clip.vision_model.encoder.layers[index].state_dict()
        for kind in ("weight", "bias"):
            own[f"qkv.{kind}"] = torch.cat([own.pop(f"self_attn.{part}_proj.{kind}") for part in "qkv"])  # [3 D, ...]
        return canonical_block(own, BLOCK_NAMES, self.name)

    def head_state_dict(self) -> dict[str, Tensor]:
        norm = self.clip.vision_model.post_layernorm
        return {
            "norm.weight": norm.weight.detach(),
            "norm.bias": norm.bias.detach(),
            "projection.weight": self.clip.visual_projection.weight.detach(),  # [E, D]
        }

    def image_parameters(self) -> Iterable[Tensor]:
        yield from self.clip.vision_model.parameters()
        yield from self.clip.visual_projection.parameters()

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        if not self.has_text:
            return super().encode_text(texts)
        if self.tokenizer is None:
            self.tokenizer = _load_tokenizer(self.name, self.path, self.clip.config.text_config.eos_token_id)
        longest = self.clip.config.text_config.max_position_embeddings
        embeds = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            batch = self.tokenizer(
                texts[start : start + TEXTS_AT_ONCE],
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            ).to(self.device)
            inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            embeds.append(self.clip.get_text_features(**inputs).pooler_output)
        return torch.cat(embeds)


def load(name: str, path: str, dtype: torch.dtype) -> TransformersTeacher:
    """Load a directory or a hub id.

    Raises:
        ValueError: nothing there, no network, not a CLIP, a broken file, weights that do not fit.
    """
    local = Path(path).is_dir()
    if not local and (Path(path).exists() or path.startswith((".", "/", "~"))):
        raise ValueError(f"{path} is not a directory; transformers:DIR needs one with config.json and the weights")
    with nullcontext() if local else hub_or_cache():
        return TransformersTeacher(name, _load_model(name, path, local, dtype), path)


def _load_model(name: str, path: str, local: bool, dtype: torch.dtype) -> Any:
    if local:
        check_json_files(path)
    model_class = MODELS[_model_type(name, path)]
    if local:
        check_model_directory(path)
    try:
        clip, info = model_class.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # each weights format has errors of its own for a broken file
        raise ValueError(_broken(path, local, error)) from error
    misshaped = (key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    if misfit := describe_misfit(info["missing_keys"], info["unexpected_keys"], misshaped):
        raise ValueError(f"{path} does not fit {model_class.__name__}: {misfit}")
    require_numbers(dict(clip.named_parameters()), path)
    return clip


def _model_type(name: str, path: str) -> str:
    try:
        config, _ = PretrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        raise ValueError(_broken(path, Path(path).is_dir(), error)) from error
    model_type = config.get("model_type", "none")
    if model_type not in MODELS:
        raise unsupported(name, f"its config.json has model_type {model_type!r}, not {' or '.join(MODELS)}")
    return model_type


def _broken(path: str, local: bool, error: Exception) -> str:
    if local:
        return f"the model in {path} could not be read ({reason(error)}); a file may be missing or truncated"
    return (
        f"{path} could not be fetched from the hub ({reason(error)}); without a network give a directory that "
        "holds config.json, the weights and the tokenizer: transformers:DIR"
    )


def _load_tokenizer(name: str, path: str, end_id: int) -> Any:
    """Load the tokenizer, strictly: where files are missing AutoTokenizer would build one without a vocabulary."""
    local = Path(path).is_dir()
    if local and not any((Path(path) / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(f"{name} has no tokenizer; add one of {', '.join(TOKENIZER_FILES)} to {path}")
    try:
        with nullcontext() if local else hub_or_cache():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # each tokenizer file has errors of its own
        raise ValueError(f"the tokenizer of {name} could not be read ({reason(error)})") from error
    # 2 is what CLIP's first configurations say; there transformers looks for the largest id instead.
    if end_id not in (2, tokenizer.eos_token_id):
        raise ValueError(f"the text tower of {name} ends texts by {end_id}, its tokenizer by {tokenizer.eos_token_id}")
    return tokenizer


def _preprocessing(name: str, path: str, size: int) -> Preprocessing:
    """Read ``preprocessor_config.json``; a directory without one gets CLIP's own preprocessing."""
    if Path(path).is_dir() and not any((Path(path) / file).is_file() for file in PROCESSOR_FILES):
        return Preprocessing(size, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    try:
        processor = AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=False)
    except Exception as error:  # values of other types have errors of their own
        raise ValueError(f"the image processor of {path} could not be read ({reason(error)})") from error
    if processor.resample not in RESAMPLING:
        raise ValueError(f"the image processor of {path} resamples by {processor.resample}, not by {RESAMPLING}")
    return Preprocessing(size, processor.image_mean, processor.image_std, RESAMPLING[processor.resample])
