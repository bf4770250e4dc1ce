"""CLIP models of open_clip as teachers: a built-in configuration with a tag or a weights file, or a local directory.

OpenAI's weights (and some others) were trained with QuickGELU. open_clip only warns when such a tag meets a
configuration with plain GELU, and says nothing when a file does; here a mismatch is an error.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from sf_llava.data.transforms import RESIZE_MODES, Preprocessing
from sf_llava.files import read_json_object
from sf_llava.teachers.base import (
    Teacher,
    brief,
    canonical_block,
    is_torchscript,
    load_strictly,
    require_fit,
    unsupported,
)
from sf_llava.teachers.hub import hub_or_cache
from sf_llava.teachers.timm_vit import TimmVitTeacher, require_plain
from sf_llava.weights.model_directory import check_json_files
from sf_llava.weights.tensor_files import read_state_dict

BLOCK_NAMES = {
    "norm1.weight": "ln_1.weight",
    "norm1.bias": "ln_1.bias",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj.weight": "attn.out_proj.weight",
    "attn.proj.bias": "attn.out_proj.bias",
    "norm2.weight": "ln_2.weight",
    "norm2.bias": "ln_2.bias",
    "mlp.fc1.weight": "mlp.c_fc.weight",
    "mlp.fc1.bias": "mlp.c_fc.bias",
    "mlp.fc2.weight": "mlp.c_proj.weight",
    "mlp.fc2.bias": "mlp.c_proj.bias",
    "ls1.gamma": "ls_1.gamma",
    "ls2.gamma": "ls_2.gamma",
}
CONFIG_FILE = "open_clip_config.json"
OPENAI_CONSTANTS = ("input_resolution", "context_length", "vocab_size")
TEXTS_AT_ONCE = 256


class ClipTexts(Teacher):
    """The text tower of an open_clip model."""

    has_text = True
    clip: Any  # open_clip's model, whose parts torch types as Tensor | Module
    tokenizer_name: str
    tokenizer: Any = None

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        if self.tokenizer is None:
            try:
                self.tokenizer = open_clip.get_tokenizer(self.tokenizer_name)
            except Exception as error:  # each tokenizer has errors of its own for a broken file
                raise ValueError(
                    f"the tokenizer of {self.name} could not be read or fetched ({brief(error)}); "
                    f"give a local directory that holds {CONFIG_FILE}, the weights and the tokenizer's files"
                ) from error
            inner = getattr(self.tokenizer, "tokenizer", None)
            if inner is not None and not hasattr(inner, "batch_encode_plus"):
                inner.batch_encode_plus = inner.__call__  # open_clip 3.2 calls it by its name before transformers 5
        batches = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        return torch.cat([self.clip.encode_text(self.tokenizer(batch).to(self.device)) for batch in batches])


class OpenClipTeacher(ClipTexts):
    """A CLIP of open_clip whose image tower is its own plain ViT."""

    def __init__(self, name: str, clip: Any, tokenizer_name: str, preprocess: dict[str, Any]) -> None:
        """Wrap a loaded model.

        Args:
            name: as given to ``load_teacher``.
            clip: an ``open_clip.CLIP`` or ``open_clip.CustomTextCLIP``.
            tokenizer_name: what ``open_clip.get_tokenizer`` takes.
            preprocess: open_clip's preprocessing configuration (mean, std, interpolation, resize_mode).
        """
        visual = clip.visual
        _require_plain(name, visual)
        size = visual.image_size[0]
        super().__init__(name, size, visual.patch_size[0], _preprocessing(name, size, preprocess))
        self.clip = clip
        self.tokenizer_name = tokenizer_name
        block = visual.transformer.resblocks[0]
        self.hidden_size = visual.transformer.width
        self.num_hidden_layers = visual.transformer.layers
        self.num_attention_heads = block.attn.num_heads
        self.intermediate_size = block.mlp.c_fc.out_features
        self.hidden_act = _activation(name, block.mlp.gelu)
        self.layer_norm_eps = block.ln_1.eps
        self.projection_dim = visual.output_dim
        self.freeze()

    def embed(self, pixel_values: Tensor) -> Tensor:
        return self.clip.visual._embeds(pixel_values)

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        return self.clip.visual.transformer.resblocks[index](tokens)

    def block_state_dict(self, index: int) -> dict[str, Tensor]:
        return canonical_block(self.clip.visual.transformer.resblocks[index].state_dict(), BLOCK_NAMES, self.name)

    def head_state_dict(self) -> dict[str, Tensor]:
        visual = self.clip.visual
        return {
            "norm.weight": visual.ln_post.weight.detach(),
            "norm.bias": visual.ln_post.bias.detach(),
            "projection.weight": visual.proj.detach().T.contiguous(),  # [E, D]
        }

    def image_parameters(self) -> Iterable[Tensor]:
        return self.clip.visual.parameters()


class OpenClipTimmTeacher(ClipTexts, TimmVitTeacher):
    """A CLIP or SigLIP of open_clip whose image tower is timm's plain ViT."""

    def __init__(self, name: str, clip: Any, tokenizer_name: str, preprocess: dict[str, Any]) -> None:
        """Wrap a loaded model; see :class:`OpenClipTeacher`."""
        visual = clip.visual
        require_plain(name, visual.trunk)
        size = visual.trunk.patch_embed.img_size[0]
        super().__init__(name, visual.trunk, _preprocessing(name, size, preprocess))
        layers = [layer for layer in visual.head.children() if not isinstance(layer, nn.Dropout)]
        plain = all(isinstance(layer, nn.Linear) and layer.bias is None for layer in layers)
        if not isinstance(visual.trunk.head, nn.Identity) or len(layers) > 1 or not plain:
            raise unsupported(name, "behind its pooling is more than a projection without bias")
        self.clip = clip
        self.tokenizer_name = tokenizer_name
        if layers:
            self.projection_dim = layers[0].out_features
        self.freeze()

    @property
    def projection(self) -> nn.Linear:
        return next(layer for layer in self.clip.visual.head.modules() if isinstance(layer, nn.Linear))

    def image_parameters(self) -> Iterable[Tensor]:
        return self.clip.visual.parameters()


@dataclass
class _Source:
    """Where a teacher comes from: architecture, weights, and what they need.

    The weights are a file, or a tag of open_clip whose file is still to be fetched.
    """

    config: dict[str, Any]
    tokenizer_name: str
    preprocess: dict[str, Any]
    weights: Path | dict[str, Any]


def load(name: str, spec: str, dtype: torch.dtype) -> ClipTexts:
    """Load ``MODEL/TAG``, ``MODEL/FILE``, or a directory that holds ``open_clip_config.json``.

    Raises:
        ValueError: unknown model or tag, missing or broken file, no network, a QuickGELU mismatch, weights that do
            not fit, an image tower that is not a plain ViT.
    """
    source = _from_directory(name, Path(spec)) if Path(spec).is_dir() else _from_model(name, *_split(spec))
    _require_vit(name, source.config)
    file = source.weights if isinstance(source.weights, Path) else _download(name, source.weights)
    clip = _build(name, source.config, _read_weights(file, source.config), file)
    kind = OpenClipTimmTeacher if isinstance(clip.visual, TimmModel) else OpenClipTeacher
    return kind(name, clip.to(dtype), source.tokenizer_name, source.preprocess)


def _split(spec: str) -> tuple[str, str]:
    model, _, weights = spec.partition("/")
    return model, weights


def _from_model(name: str, model: str, weights: str) -> _Source:
    if model not in open_clip.list_models():
        close = difflib.get_close_matches(model, open_clip.list_models(), n=4, cutoff=0.5)
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise ValueError(f"open_clip has no model {model!r}{hint}; a directory with {CONFIG_FILE} works as well")
    config = open_clip.get_model_config(model)
    tag = get_pretrained_cfg(model, weights) if weights else {}
    if tag:
        _require_same_activation(name, config, bool(tag.get("quick_gelu")), f"open_clip's entry for {weights}")
        return _Source(config, model, merge_preprocess_dict(PreprocessCfg(), tag), tag)
    file = Path(weights)
    if not weights or not file.is_file():
        tags = ", ".join(list_pretrained_tags_by_model(model)) or "none"
        found = f"{weights!r} is neither a tag of {model} nor a file" if weights else f"{name} names no weights"
        raise ValueError(f"{found}; its tags are: {tags}; write open_clip:{model}/TAG or open_clip:{model}/FILE")
    preprocess = PreprocessCfg()
    if (file.parent / CONFIG_FILE).is_file():
        own, preprocess = _read_config(file.parent)
        _require_same_activation(name, config, bool(own.get("quick_gelu")), f"the {CONFIG_FILE} beside the file")
    if is_torchscript(file):
        _require_same_activation(name, config, True, "a TorchScript archive is OpenAI's")
    return _Source(config, model, merge_preprocess_dict(preprocess, {}), file)


def _from_directory(name: str, directory: Path) -> _Source:
    if not (directory / CONFIG_FILE).is_file():
        raise ValueError(f"{directory} holds no {CONFIG_FILE}, so it is not a model directory of open_clip")
    config, preprocess = _read_config(directory)
    check_json_files(directory)
    tokenizer = directory / "tokenizer_config.json"
    if tokenizer.is_file() and "auto_map" in read_json_object(tokenizer):
        raise ValueError(f"{tokenizer} names Python code of its own (auto_map), which is not run: take it out")
    names = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt"]
    files = [directory / file for file in names if (directory / file).is_file()]
    if not files:
        raise ValueError(f"{directory} holds no weights; expected one of {', '.join(names)}")
    if is_torchscript(files[0]):
        _require_same_activation(name, config, True, "a TorchScript archive is OpenAI's")
    return _Source(config, f"local-dir:{directory}", preprocess, files[0])


def _read_config(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    content = read_json_object(directory / CONFIG_FILE)
    model, preprocess = content.get("model_cfg"), content.get("preprocess_cfg", {})
    if not isinstance(model, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= model.keys():
        raise ValueError(f"{directory / CONFIG_FILE} lacks model_cfg with embed_dim, vision_cfg and text_cfg")
    if not all(isinstance(part, dict) for part in (model["vision_cfg"], model["text_cfg"], preprocess)):
        raise ValueError(f"{directory / CONFIG_FILE}: vision_cfg, text_cfg and preprocess_cfg must be JSON objects")
    return model, merge_preprocess_dict(PreprocessCfg(), preprocess)


def _require_same_activation(name: str, config: dict[str, Any], weights_quick: bool, reason: str) -> None:
    """Refuse QuickGELU weights in a GELU configuration and the other way round: both compute nonsense silently."""
    if weights_quick == bool(config.get("quick_gelu")):
        return
    trained, computed = ("QuickGELU", "GELU") if weights_quick else ("GELU", "QuickGELU")
    model, weights = _split(name.removeprefix("open_clip:"))
    other = f"{model}-quickgelu" if weights_quick else model.removesuffix("-quickgelu")
    way_out = f"give a directory whose {CONFIG_FILE} sets quick_gelu rightly"
    if other in open_clip.list_models():
        way_out = f"write open_clip:{other}/{weights}"
    raise ValueError(
        f"{name}: the weights were trained with {trained} ({reason}), but the configuration computes {computed}; "
        + way_out
    )


def _require_vit(name: str, config: dict[str, Any]) -> None:
    """Turn away what is no ViT by its configuration, before anything is fetched or built."""
    vision = config["vision_cfg"]
    if "multimodal_cfg" in config:
        raise unsupported(name, "it is a CoCa model (attentional pooling and a caption decoder)")
    if model := vision.get("timm_model_name"):
        _require_plain_timm(name, model, vision)
    if isinstance(vision.get("layers"), list | tuple):
        raise unsupported(name, "its image tower is a ResNet")


def _require_plain_timm(name: str, model: Any, vision: dict[str, Any]) -> None:
    """Turn away an image tower of timm that is no plain ViT, by its outline alone."""
    if not isinstance(model, str) or not timm.is_model(model):
        raise ValueError(f"the image tower of {name} is {model!r}, which this release of timm does not have")
    try:
        with torch.device("meta"):
            outline = timm.create_model(model, num_classes=0, global_pool=vision.get("timm_pool") or None)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise unsupported(name, f"its image tower is timm's {model}, which is no ViT ({brief(error)})") from error
    require_plain(f"{name}, whose image tower is timm's {model},", outline)


def _is_custom(config: dict[str, Any]) -> bool:
    return bool(config.get("custom_text") or "hf_model_name" in config["text_cfg"])


def _build(name: str, config: dict[str, Any], state: dict[str, Tensor], file: Path) -> nn.Module:
    """Build the architecture and load the weights, whose names and shapes are compared before memory is taken."""
    _require_layers(name, config, len(state))
    parts = {key: value for key, value in config.items() if key != "custom_text"}
    if _is_custom(config):
        # All weights come from the checkpoint; without this a pretrained text tower would be downloaded first.
        parts["text_cfg"] = {**parts["text_cfg"], "hf_model_pretrained": False}
    build = open_clip.CustomTextCLIP if _is_custom(config) else open_clip.CLIP
    try:
        with torch.device("meta"):
            outline = build(**parts)
    except OSError as error:
        raise ValueError(
            f"the text tower of {name} needs files of {config['text_cfg'].get('hf_model_name')} that could not be "
            f"fetched ({brief(error)}); run once with a network so that they are cached"
        ) from error
    except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError) as error:
        raise ValueError(f"open_clip cannot build the configuration of {name} ({brief(error)})") from error
    for number in ("logit_scale", "logit_bias"):
        if number in state and state[number].numel() == 1 and getattr(outline, number, None) is not None:
            state[number] = state[number].reshape(getattr(outline, number).shape)  # saved as a number or a list of one
    require_fit(outline, state, str(file))
    clip = build(**parts)
    load_strictly(clip, state, str(file))
    return clip


def _require_layers(name: str, config: dict[str, Any], num_tensors: int) -> None:
    """Refuse to build more layers than the weights can be of."""
    for tower in ("vision_cfg", "text_cfg"):
        layers = config[tower].get("layers", 1)
        if not isinstance(layers, int) or not 0 < layers <= num_tensors:
            raise ValueError(f"{name}: its {tower} has layers={layers!r}, its weights are {num_tensors} tensors")


def _require_plain(name: str, visual: Any) -> None:
    if not isinstance(visual, VisionTransformer):
        raise unsupported(name, f"its image tower is a {type(visual).__name__}")
    if visual.attn_pool is not None:
        raise unsupported(name, "it uses attentional pooling")
    if visual.pool_type != "tok":
        raise unsupported(name, f"it pools with {visual.pool_type!r} instead of reading its CLS token")
    if not isinstance(visual.patch_dropout, nn.Identity):
        raise unsupported(name, "it uses patch dropout")
    if visual.image_size[0] != visual.image_size[1]:
        raise unsupported(name, f"its images are not square but {visual.image_size}")
    for block in visual.transformer.resblocks:
        canonical_block(block.state_dict(), BLOCK_NAMES, name)


def _download(name: str, tag: dict[str, Any]) -> Path:
    try:
        with hub_or_cache():
            return Path(download_pretrained(tag))
    except (OSError, RuntimeError) as error:
        model, weights = _split(name.removeprefix("open_clip:"))
        raise ValueError(
            f"the weights {weights} of {model} could not be fetched ({brief(error)}); without a network give a "
            f"file: open_clip:{model}/FILE"
        ) from error


def _read_weights(file: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Read a checkpoint in open_clip's key layout; OpenAI's archives, too, as data."""
    state = read_state_dict(file, prefer=("state_dict",))
    for constant in OPENAI_CONSTANTS:
        state.pop(constant, None)
    if _is_custom(config):
        state = convert_to_custom_text_state_dict(state)
    state.pop("text.transformer.embeddings.position_ids", None)  # a constant that old files of some text towers hold
    return state


def _activation(name: str, module: nn.Module) -> str:
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu_pytorch_tanh" if module.approximate == "tanh" else "gelu"
    raise unsupported(name, f"its blocks use the activation {type(module).__name__}")


def _preprocessing(name: str, size: int, config: dict[str, Any]) -> Preprocessing:
    mode = config["resize_mode"]
    if mode not in RESIZE_MODES:
        raise unsupported(name, f"its images are resized by {mode!r}, not by {' or '.join(RESIZE_MODES)}")
    return Preprocessing(size, config["mean"], config["std"], config["interpolation"], resize_mode=mode)
