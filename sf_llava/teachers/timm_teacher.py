"""Vision transformers of timm as teachers: AugReg classifiers, DINOv2, and the image towers of CLIP and SigLIP.

timm keeps CLIP's projection as a classifier without bias; such a tower gives ``image_embeds`` behind it. It has no
text tower, so zero-shot evaluation needs the same model from open_clip or transformers.
"""

import difflib
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.models import VisionTransformer, split_model_name_tag
from torch import nn

from sf_llava.files import read_json_object
from sf_llava.teachers.base import brief, is_torchscript, load_strictly
from sf_llava.teachers.hub import hub_or_cache
from sf_llava.teachers.timm_vit import TimmVitTeacher, read_preprocessing, require_plain
from sf_llava.weights.tensor_files import read_state_dict

EMA_FIRST = ("state_dict_ema", "model_ema", "state_dict", "model")  # timm's own order for a training checkpoint
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a directory, in timm's order


class TimmTeacher(TimmVitTeacher):
    """A plain ViT of timm."""

    def __init__(self, name: str, vit: VisionTransformer) -> None:
        """Wrap a loaded model; its ``pretrained_cfg`` says how images are preprocessed."""
        require_plain(name, vit)
        super().__init__(name, vit, read_preprocessing(name, vit.patch_embed.img_size[0], vit.pretrained_cfg))
        head = vit.head
        # A head without bias behind a pre-norm ViT is CLIP's projection, not a classifier.
        if isinstance(head, nn.Linear) and isinstance(vit.norm_pre, nn.LayerNorm) and not head.bias.any():
            self.projection_dim = head.out_features
        elif isinstance(head, nn.Linear):
            self.num_classes = head.out_features
        self.freeze()


def load(name: str, spec: str, dtype: torch.dtype) -> TimmTeacher:
    """Load ``MODEL.TAG`` from the hub or its cache, ``MODEL/FILE``, or a directory that timm wrote or its hub holds.

    Raises:
        ValueError: unknown model or tag, missing or broken file, no network, plain GELU for weights that were trained
            with QuickGELU, weights that do not fit, a model that is not a plain ViT.
    """
    if Path(spec).is_dir():
        return TimmTeacher(name, _from_directory(Path(spec)).to(dtype))
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
    tags = _tags(architecture)
    if tag and tag not in tags:
        raise ValueError(f"timm's {architecture} has no weights {tag!r}; it has: {', '.join(tags) or 'none'}")


def _tags(architecture: str) -> list[str]:
    return [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", pretrained=True)]


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


def _from_directory(directory: Path) -> VisionTransformer:
    """Build what config.json describes by names and numbers, and read the weights beside it."""
    path = directory / "config.json"
    values = read_json_object(path) if path.is_file() else {}
    architecture, options = values.get("architecture"), values.get("model_args") or {}
    preprocessing = values.get("pretrained_cfg") or {}
    if not (isinstance(architecture, str) and isinstance(options, dict) and isinstance(preprocessing, dict)):
        raise ValueError(
            f"{path} is none of timm's: it needs `architecture`, and `model_args` by name if there are any"
        )
    if unknown := sorted(options.keys() - signature(VisionTransformer).parameters.keys()):
        raise ValueError(f"{path}: a VisionTransformer of timm has no {', '.join(unknown)}")
    file = next((directory / known for known in WEIGHTS if (directory / known).is_file()), None)
    if file is None:
        raise ValueError(f"{directory} holds no weights: expected {' or '.join(WEIGHTS)}")
    name = f"timm:{architecture}/{file}"
    _require_known(architecture)
    if (tag := preprocessing.get("tag")) in _tags(architecture):
        _require_quick_gelu(name, f"{architecture}.{tag}")
    return _from_file(name, architecture, file, {**options, "pretrained_cfg_overlay": preprocessing})


def _from_file(name: str, model: str, file: Path, options: Mapping[str, Any] = MappingProxyType({})) -> Any:
    if not file.is_file():
        raise ValueError(f"{file}, the weights of {name}, is not a file")
    if is_torchscript(file):
        raise ValueError(f"{file} is OpenAI's TorchScript archive; load it by open_clip:MODEL-quickgelu/{file}")
    state = read_state_dict(file, prefer=EMA_FIRST)
    num_classes = len(state["head.weight"]) if "head.weight" in state and state["head.weight"].ndim else 0
    try:
        vit = timm.create_model(model, **{**options, "pretrained": False, "num_classes": num_classes})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"timm could not build {name} ({brief(error)})") from error
    require_plain(name, vit)  # a clearer answer than keys that do not fit
    load_strictly(vit, state, str(file))
    return vit
