"""Vision transformers of timm as teachers: AugReg classifiers, and the image towers of CLIP that timm hosts.

timm keeps CLIP's projection as a classifier without bias; such a tower gives ``image_embeds`` behind it. It has no
text tower, so zero-shot evaluation needs the same model from open_clip or transformers.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path

import timm
import torch
from timm.layers import GELU, GELUTanh, QuickGELU
from timm.models import VisionTransformer, split_model_name_tag
from timm.models.vision_transformer import Block, Mlp
from torch import Tensor, nn

from sf_llava.data.transforms import Preprocessing
from sf_llava.teachers.base import (
    BLOCK_KEYS,
    Teacher,
    brief,
    canonical_block,
    is_torchscript,
    load_strictly,
    unsupported,
)
from sf_llava.teachers.hub import hub_or_cache
from sf_llava.weights.tensor_files import read_state_dict

BLOCK_NAMES = {key: key for key in BLOCK_KEYS}  # the canonical names are timm's
EMA_FIRST = ("state_dict_ema", "model_ema", "state_dict", "model")  # timm's own order for a training checkpoint


class TimmTeacher(Teacher):
    """A plain ViT of timm."""

    def __init__(self, name: str, vit: VisionTransformer) -> None:
        """Wrap a loaded model; its ``pretrained_cfg`` says how images are preprocessed."""
        _require_plain(name, vit)
        size, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]
        super().__init__(name, size, patch, _preprocessing(name, size, vit.pretrained_cfg))
        self.vit = vit
        block = vit.blocks[0]
        self.hidden_size = vit.embed_dim
        self.num_hidden_layers = len(vit.blocks)
        self.num_attention_heads = block.attn.num_heads
        self.intermediate_size = block.mlp.fc1.out_features
        self.hidden_act = _activation(name, block.mlp.act)
        self.layer_norm_eps = block.norm1.eps
        # A head without bias behind a pre-norm ViT is CLIP's projection, not a classifier.
        if isinstance(vit.norm_pre, nn.LayerNorm) and not vit.head.bias.any():
            self.projection_dim = vit.head.out_features
        else:
            self.num_classes = vit.head.out_features
        self.freeze()

    def embed(self, pixel_values: Tensor) -> Tensor:
        tokens = self.vit._pos_embed(self.vit.patch_embed(pixel_values))
        return self.vit.norm_pre(tokens)

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        return self.vit.blocks[index](tokens)

    def block_state_dict(self, index: int) -> dict[str, Tensor]:
        return canonical_block(self.vit.blocks[index].state_dict(), BLOCK_NAMES, self.name)

    def head_state_dict(self) -> dict[str, Tensor]:
        norm, head = self.vit.norm, self.vit.head
        state = {"norm.weight": norm.weight.detach(), "norm.bias": norm.bias.detach()}
        if self.projection_dim:
            return {**state, "projection.weight": head.weight.detach()}  # [E, D]
        return {**state, "classifier.weight": head.weight.detach(), "classifier.bias": head.bias.detach()}

    def image_parameters(self) -> Iterable[Tensor]:
        return self.vit.parameters()


def load(name: str, spec: str, dtype: torch.dtype) -> TimmTeacher:
    """Load ``MODEL.TAG`` from the hub or its cache, or ``MODEL/FILE``.

    Raises:
        ValueError: unknown model or tag, missing or broken file, no network, plain GELU for weights that were trained
            with QuickGELU, weights that do not fit, a model that is not a plain ViT.
    """
    model, _, file = spec.partition("/")
    _require_known(model)
    _require_quick_gelu(name, model)
    vit = _from_file(name, model, Path(file)) if file else _from_hub(name, model)
    return TimmTeacher(name, vit.to(dtype))


def _require_known(model: str) -> None:
    architecture, tag = split_model_name_tag(model)
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models("vit_*"), n=4, cutoff=0.5)
        raise ValueError(f"timm has no model {architecture!r}; close names: {', '.join(close) or 'none'}")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ValueError(f"timm's {architecture} has no weights {tag!r}; it has: {', '.join(tags) or 'none'}")


def _require_quick_gelu(name: str, model: str) -> None:
    """Refuse weights that timm marks as trained with QuickGELU (OpenAI's and some more) in a plain GELU model."""
    architecture, tag = split_model_name_tag(model)
    notes = timm.get_pretrained_cfg(model).notes if tag else None
    if "quickgelu" not in architecture and any("natively QuickGELU" in note for note in notes or ()):
        quick = architecture.replace("_clip_", "_clip_quickgelu_")
        raise ValueError(
            f"{name}: the weights {tag} were trained with QuickGELU, but {architecture} computes GELU; "
            f"write {name.replace(architecture, quick, 1)}"
        )


def _from_hub(name: str, model: str) -> VisionTransformer:
    if not split_model_name_tag(model)[1]:
        tags = ", ".join(timm.list_models(f"{model}.*", pretrained=True)) or "none"
        raise ValueError(f"{name} names no weights; timm has: {tags}; or give a file, timm:{model}/FILE")
    try:
        with hub_or_cache():
            return timm.create_model(model, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the weights of {model} could not be fetched ({brief(error)}); without a network give a file: "
            f"timm:{model}/FILE"
        ) from error


def _from_file(name: str, model: str, file: Path) -> VisionTransformer:
    if not file.is_file():
        raise ValueError(f"{file}, the weights of {name}, is not a file")
    if is_torchscript(file):
        raise ValueError(f"{file} is OpenAI's TorchScript archive; load it by open_clip:MODEL-quickgelu/{file}")
    state = read_state_dict(file, prefer=EMA_FIRST)
    num_classes = len(state["head.weight"]) if "head.weight" in state and state["head.weight"].ndim else 0
    vit = timm.create_model(model, pretrained=False, num_classes=num_classes)
    _require_plain(name, vit)  # a clearer answer than keys that do not fit
    load_strictly(vit, state, str(file))
    return vit


def _require_plain(name: str, vit: nn.Module) -> None:
    if type(vit) is not VisionTransformer:
        raise unsupported(name, f"it is a {type(vit).__name__}")
    if vit.attn_pool is not None or vit.global_pool != "token":
        raise unsupported(name, f"it pools with {vit.global_pool!r} (a MAP head, an average ...), not its CLS token")
    if vit.num_prefix_tokens != 1:
        raise unsupported(name, f"it has {vit.num_prefix_tokens} tokens before its patches (register tokens)")
    if not isinstance(vit.patch_drop, nn.Identity):
        raise unsupported(name, "it uses patch dropout")
    if not isinstance(vit.norm, nn.LayerNorm) or not isinstance(vit.fc_norm, nn.Identity):
        raise unsupported(name, "it has no final LN in front of its pooling")
    if not isinstance(vit.head, nn.Linear):
        raise unsupported(name, "it has no classifier")
    if vit.patch_embed.img_size[0] != vit.patch_embed.img_size[1]:
        raise unsupported(name, f"its images are not square but {vit.patch_embed.img_size}")
    for block in vit.blocks:
        if type(block) is not Block or type(block.mlp) is not Mlp:
            raise unsupported(name, f"its blocks are {type(block).__name__} with {type(block.mlp).__name__}")
        canonical_block(block.state_dict(), BLOCK_NAMES, name)


def _activation(name: str, module: nn.Module) -> str:
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, GELUTanh) or (isinstance(module, nn.GELU) and module.approximate == "tanh"):
        return "gelu_pytorch_tanh"
    if isinstance(module, nn.GELU | GELU):
        return "gelu"
    raise unsupported(name, f"its blocks use the activation {type(module).__name__}")


def _preprocessing(name: str, size: int, config: dict) -> Preprocessing:
    if config.get("crop_mode", "center") != "center":
        raise unsupported(name, f"its images are cropped by {config['crop_mode']!r} instead of at the centre")
    return Preprocessing(size, config["mean"], config["std"], config["interpolation"], config["crop_pct"])
