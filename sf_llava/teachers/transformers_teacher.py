"""ViTs of transformers as teachers: CLIP and SigLIP, with or without their text towers, and DINOv2."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2Model,
    Dinov2WithRegistersModel,
    PretrainedConfig,
    SiglipModel,
    SiglipVisionModel,
)

from sf_llava.teachers.base import BLOCK_KEYS, LAYER_SCALES, Teacher, canonical_block, unsupported, weights_of
from sf_llava.teachers.families import CLIP, DINOV2, NAFLEX, NO_HEAD, ROPE, SIGLIP, SWIGLU, Family
from sf_llava.teachers.hub import hub_or_cache
from sf_llava.teachers.transformers_preprocessing import read_preprocessing
from sf_llava.weights.fit import describe_misfit
from sf_llava.weights.model_directory import check_json_files, check_model_directory, reason
from sf_llava.weights.tensor_files import require_numbers


@dataclass(frozen=True)
class Model:
    """How transformers builds the models of one ``model_type``.

    Attributes:
        family: what they need.
        kind: their class.
        layers, norm, pre_norm: where the image tower has its blocks, the norm behind them, and the one in front.
        takes_mask: whether a block asks for an attention mask.
    """

    family: Family
    kind: type
    layers: str = "encoder.layers"
    norm: str = "post_layernorm"
    pre_norm: str | None = None
    takes_mask: bool = True


def _dinov2(kind: type) -> Model:
    return Model(DINOV2, kind, "encoder.layer", "layernorm", takes_mask=False)


MODELS = {
    "clip": Model(CLIP, CLIPModel, pre_norm="pre_layrnorm"),
    "clip_vision_model": Model(CLIP, CLIPVisionModelWithProjection, pre_norm="pre_layrnorm"),
    "siglip": Model(SIGLIP, SiglipModel),
    "siglip_vision_model": Model(SIGLIP, SiglipVisionModel),
    "dinov2": _dinov2(Dinov2Model),
    "dinov2_with_registers": _dinov2(Dinov2WithRegistersModel),
}
REFUSED = {"dinov3_vit": ROPE, "siglip2": NAFLEX, "siglip2_vision_model": NAFLEX, "eva02": ROPE}
LAYER_NAMES = {
    "layer_norm1": "norm1",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.out_proj": "attn.proj",
    "layer_norm2": "norm2",
    # DINOv2's, before transformers 5.24
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    # and from then on
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "layer_scale1": "ls1",
    "layer_scale2": "ls2",
}
"""Canonical names of a block's layers, by all of transformers' names that differ from them."""
BLOCK_NAMES = {key: key for key in (*BLOCK_KEYS, *LAYER_SCALES)}  # once they are renamed
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")
TEXTS_AT_ONCE = 256


class TransformersTeacher(Teacher):
    """A ViT of transformers."""

    model: Any  # transformers' model, whose parts torch types as Tensor | Module
    tokenizer: Any

    def __init__(self, name: str, model: Any, path: str) -> None:
        """Wrap a loaded model.

        Args:
            name: as given to ``load_teacher``.
            model: of one of the classes in ``MODELS``.
            path: directory or hub id, for the image processor and the tokenizer.

        Raises:
            ValueError: it cannot be a teacher, or its image processor cannot be read.
        """
        self.made = MODELS[model.config.model_type]
        family = self.made.family
        vision = getattr(model, "vision_model", model)
        config = vision.config
        _require_plain(name, config, family)
        preprocessing = read_preprocessing(name, path, config.image_size, family)
        super().__init__(name, preprocessing.image_size, config.patch_size, preprocessing)
        self.model = model
        self.path = path
        self.tokenizer = None
        self.use_cls = family.use_cls
        self.has_text = hasattr(model, "text_model")
        self.num_registers = getattr(config, "num_register_tokens", 0)
        self.hidden_size = config.hidden_size
        self.num_hidden_layers = config.num_hidden_layers
        self.num_attention_heads = config.num_attention_heads
        self.intermediate_size = self._layers[0].mlp.fc1.out_features
        self.hidden_act = config.hidden_act
        self.layer_norm_eps = config.layer_norm_eps
        if hasattr(model, "visual_projection"):
            self.projection_dim = model.visual_projection.out_features
        # Written by scripts/train_mini.py: a small text tower knows no prompts but those it was trained with.
        self.templates = tuple(getattr(model.config, "zero_shot", {}).get("templates", ()))
        for index in range(self.num_hidden_layers):
            self.block_state_dict(index)
        self.freeze()

    @property
    def _vision(self) -> Any:
        return getattr(self.model, "vision_model", self.model)

    @property
    def _layers(self) -> Any:
        return self._vision.get_submodule(self.made.layers)

    def embed(self, pixel_values: Tensor) -> Tensor:
        tokens = self._vision.embeddings(pixel_values)
        return tokens if self.made.pre_norm is None else self._vision.get_submodule(self.made.pre_norm)(tokens)

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        block = self._layers[index]
        return block(tokens, None) if self.made.takes_mask else block(tokens)

    def block_state_dict(self, index: int) -> dict[str, Tensor]:
        own = {}
        for name, value in self._layers[index].state_dict().items():
            layer, _, kind = name.rpartition(".")
            own[f"{LAYER_NAMES.get(layer, layer)}.{'gamma' if kind == 'lambda1' else kind}"] = value
        for kind in ("weight", "bias"):
            parts = [own.pop(f"attn.{part}.{kind}", None) for part in "qkv"]
            if None not in parts:
                own[f"attn.qkv.{kind}"] = torch.cat(parts)  # [3 D, ...]
        return canonical_block(own, BLOCK_NAMES, self.name)

    def head_state_dict(self) -> dict[str, Tensor]:
        state = weights_of(norm=self._vision.get_submodule(self.made.norm))
        if not self.use_cls:
            state |= _pooling_state(self._vision.head)
        if self.projection_dim:
            state["projection.weight"] = self.model.visual_projection.weight.detach()  # [E, D]
        return state

    def image_parameters(self) -> Iterable[Tensor]:
        yield from self._vision.parameters()
        if self.projection_dim:
            yield from self.model.visual_projection.parameters()

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        if not self.has_text:
            return super().encode_text(texts)
        config, family = self.model.config.text_config, self.made.family
        if self.tokenizer is None:
            self.tokenizer = _load_tokenizer(self.name, self.path, config, family)
        embeds = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            batch = texts[start : start + TEXTS_AT_ONCE]
            inputs = self.tokenizer(
                [text.lower() for text in batch] if family.pads_texts else batch,
                padding="max_length" if family.pads_texts else True,
                truncation=True,
                max_length=config.max_position_embeddings,
                return_tensors="pt",
            ).to(self.device)
            names = ("input_ids",) if family.pads_texts else ("input_ids", "attention_mask")
            embeds.append(self.model.get_text_features(**{name: inputs[name] for name in names}).pooler_output)
        return torch.cat(embeds)


def _pooling_state(head: Any) -> dict[str, Tensor]:
    """Give SigLIP's pooling head under the names of a student's."""
    attention, width = head.attention, head.probe.shape[-1]
    weight, bias = attention.in_proj_weight.detach(), attention.in_proj_bias.detach()
    state = {
        "query": F.linear(head.probe.detach(), weight[:width], bias[:width]).flatten(),
        "kv.weight": weight[width:],
        "kv.bias": bias[width:],
        **weights_of(proj=attention.out_proj, norm=head.layernorm),
        **weights_of(**{"mlp.fc1": head.mlp.fc1, "mlp.fc2": head.mlp.fc2}),
    }
    return {f"pool.{name}": value for name, value in state.items()}


def _require_plain(name: str, config: Any, family: Family) -> None:
    if getattr(config, "use_swiglu_ffn", False):
        raise unsupported(name, SWIGLU)
    if not getattr(config, "vision_use_head", True):
        raise unsupported(name, NO_HEAD)
    for field in ("image_size", "patch_size"):
        if not isinstance(getattr(config, field), int):
            raise unsupported(name, f"its {field} is {getattr(config, field)}, not one number for both sides")


def load(name: str, path: str, dtype: torch.dtype) -> TransformersTeacher:
    """Load a directory or a hub id.

    Raises:
        ValueError: nothing there, no network, a model that cannot be a teacher, a broken file, weights that do not fit.
    """
    local = Path(path).is_dir()
    if not local and (Path(path).exists() or path.startswith((".", "/", "~"))):
        raise ValueError(f"{path} is not a directory; transformers:DIR needs one with config.json and the weights")
    with nullcontext() if local else hub_or_cache():
        return TransformersTeacher(name, _load_model(name, path, local, dtype), path)


def _load_model(name: str, path: str, local: bool, dtype: torch.dtype) -> Any:
    if local:
        check_json_files(path)
    model_class: Any = MODELS[_model_type(name, path)].kind
    if local:
        check_model_directory(path)
    try:
        model, info = model_class.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # each weights format has errors of its own for a broken file
        raise ValueError(_broken(path, local, error)) from error
    misshaped = (key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    if misfit := describe_misfit(info["missing_keys"], info["unexpected_keys"], misshaped):
        raise ValueError(f"{path} does not fit {model_class.__name__}: {misfit}")
    require_numbers(dict(model.named_parameters()), path)
    return model


def _model_type(name: str, path: str) -> str:
    try:
        config, _ = PretrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        raise ValueError(_broken(path, Path(path).is_dir(), error)) from error
    model_type = config.get("model_type", "none")
    if model_type not in MODELS:
        why = REFUSED.get(model_type, f"known are {', '.join(MODELS)}")
        raise unsupported(name, f"its config.json has model_type {model_type!r}: {why}")
    return model_type


def _broken(path: str, local: bool, error: Exception) -> str:
    if local:
        return f"the model in {path} could not be read ({reason(error)}); a file may be missing or truncated"
    return (
        f"{path} could not be fetched from the hub ({reason(error)}); without a network give a directory that "
        "holds config.json, the weights and the tokenizer: transformers:DIR"
    )


def _load_tokenizer(name: str, path: str, config: Any, family: Family) -> Any:
    """Load the tokenizer, strictly: where files are missing AutoTokenizer would build one without a vocabulary."""
    local = Path(path).is_dir()
    if local and not any((Path(path) / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(f"{name} has no tokenizer; add one of {', '.join(TOKENIZER_FILES)} to {path}")
    try:
        with nullcontext() if local else hub_or_cache():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # each tokenizer file has errors of its own
        raise ValueError(f"the tokenizer of {name} could not be read ({reason(error)})") from error
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f"the text tower of {name} knows {config.vocab_size} tokens, its tokenizer {len(tokenizer)}")
    # A CLIP reads where a text ends. 2 is what the first configurations say; there transformers looks for the largest
    # id instead. A SigLIP reads the last place, and its configurations name another id.
    if not family.pads_texts and config.eos_token_id not in (2, tokenizer.eos_token_id):
        ends = f"ends texts by {config.eos_token_id}, its tokenizer by {tokenizer.eos_token_id}"
        raise ValueError(f"the text tower of {name} {ends}")
    return tokenizer
