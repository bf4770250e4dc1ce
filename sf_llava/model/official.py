"""Released SparseFormer checkpoints (bootstrapped B and L, AugReg and CLIP) into our models, strictly.

The official layout: ``layers.0`` is the focusing block, ``layers.1`` the transition, ``layers.2`` the last sampling
block, ``layers.3`` and on the cortex. Every size is read from the tensors.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from sf_llava.configuration import (
    AUGREG_CROP,
    AUGREG_MEAN,
    AUGREG_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    SparseFormerConfig,
)
from sf_llava.model import SparseFormerModel
from sf_llava.weights.fit import find_misfit, some
from sf_llava.weights.tensor_files import read_state_dict, require_numbers

_TOP = {
    "feat_extractor.conv1.": "early_conv.conv.",
    "initial_roi.weight": "focusing.initial_rois",
    "initial_embedding.weight": "focusing.latent_embedding",
    "cls_embedding.weight": "cls_token",
    "layers.0.stage_embedding.weight": "focusing.stage_embedding",
    "layers.1.0.": "focusing.transition.",
}
_SAMPLING = {
    "roi_offset_module.0.": "offset_norm.",
    "roi_offset_module.1.": "offsets.",
    "roi_offset_bias": "offset_bias",
    "adaptive_mixing.parameter_generator.0.": "mixing.norm.",
    "adaptive_mixing.parameter_generator.1.": "mixing.reduce.",
    "adaptive_mixing.parameter_generator.2.": "mixing.generate.",
    "adaptive_mixing.out_proj.": "mixing.proj.",
    "pe_transition.0.": "position_norm.",
    "pe_transition.1.": "position.",
}
_ROI = {
    "roi_adjust_module.0.": "roi_norm.",
    "roi_adjust_module.1.": "roi_hidden.",
    "roi_adjust_module.3.": "roi_deltas.",
}
_NUM_NON_CORTEX_LAYERS = 3
_TENSORS_PER_LAYER = 12  # of a cortex block


def load_official(path: str | Path, image_size: int | None = None) -> SparseFormerModel:
    """Load a released SparseFormer ``.pth`` file.

    Args:
        path: file saved by ``torch.save``: a state dict, possibly the one in ``{"model": ...}``, possibly with a prefix
            such as DDP's ``module.`` before every key.
        image_size: input side in pixels to record, 224 by default; the tensors do not tell it.

    Returns:
        The model in float32, in eval mode.

    Raises:
        OSError: no such file.
        ValueError: the file cannot be read, or its keys, shapes or numbers are not a bootstrapped SparseFormer's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}")
    state = read_state_dict(path)
    try:
        return convert_official(state, image_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def convert_official(state: dict[str, Tensor], image_size: int | None = None) -> SparseFormerModel:
    """Convert an official state dict; see :func:`load_official`."""
    config = _read_config(state, 224 if image_size is None else image_size)
    with torch.device("meta"):  # names and shapes alone: no memory is taken on a file's word
        expected = SparseFormerModel(config).state_dict()
    converted = {_rename(key, "proj.bias" in state): value for key, value in state.items()}
    for name in ("focusing.latent_embedding", "cls_token"):
        if name in converted:
            converted[name] = converted[name].flatten()
    asked, found = ({name: tuple(value.shape) for name, value in state.items()} for state in (expected, converted))
    if misfit := find_misfit(asked, found):
        raise ValueError(f"not a bootstrapped SparseFormer checkpoint: {misfit}")
    require_numbers(converted, "the checkpoint")
    model = SparseFormerModel(config)
    model.load_state_dict(converted)
    return model.eval()


def _read_config(state: dict[str, Tensor], image_size: int) -> SparseFormerConfig:
    """Read every size from the tensors. A projection with bias is AugReg's classifier, one without is CLIP's."""

    def shape(key: str, num_dimensions: int) -> tuple[int, ...]:
        """Give a tensor's shape; a checkpoint without it, or with another number of dimensions, is none of ours."""
        if key not in state:
            raise ValueError(f"not a bootstrapped SparseFormer checkpoint: no tensor {key} ({_guess(state, key)})")
        found = tuple(state[key].shape)
        if len(found) != num_dimensions or 0 in found:
            raise ValueError(
                f"not a bootstrapped SparseFormer checkpoint: {key} has shape {found}, where {num_dimensions} "
                "dimension(s) of at least 1 are expected"
            )
        return found

    (width,), (projected, _) = shape("norm.weight", 1), shape("proj.weight", 2)
    num_latents, _ = shape("initial_roi.weight", 2)
    iterations, focusing_size = shape("layers.0.stage_embedding.weight", 2)
    mixing_size, _ = shape("layers.0.adaptive_mixing.parameter_generator.1.weight", 2)
    num_parameters, _ = shape("layers.0.adaptive_mixing.parameter_generator.2.weight", 2)
    channels = shape("feat_extractor.conv1.weight", 4)[0]
    num_points = shape("layers.0.roi_offset_bias", 1)[0] // 2
    intermediate_size, _ = shape(f"layers.{_NUM_NON_CORTEX_LAYERS}.mlp.fc1.weight", 2)
    layers = {int(match[1]) for key in state if (match := re.match(r"layers\.(\d{1,9})\.", key))}
    num_layers = max(layers) + 1
    if len(layers) != num_layers or len(state) < _TENSORS_PER_LAYER * (num_layers - _NUM_NON_CORTEX_LAYERS):
        raise ValueError(
            f"not a bootstrapped SparseFormer checkpoint: keys name a layer {max(layers)}, but there are only "
            f"{len(layers)} layers and {len(state)} tensors"
        )
    is_augreg = "proj.bias" in state
    return SparseFormerConfig(
        image_size=image_size,
        num_latents=num_latents,
        hidden_size=width,
        focusing_size=focusing_size,
        num_focusing_iterations=iterations,
        num_hidden_layers=num_layers - _NUM_NON_CORTEX_LAYERS,
        num_attention_heads=width // 64,
        focusing_num_attention_heads=focusing_size // 64,
        intermediate_size=intermediate_size,
        hidden_act="gelu" if is_augreg else "quick_gelu",
        conv_channels=channels,
        num_sampling_points=num_points,
        mixing_size=mixing_size,
        mixing_points=(num_parameters - channels**2) // max(num_points, 1),
        projection_dim=0 if is_augreg else projected,
        num_classes=projected if is_augreg else 0,
        image_mean=AUGREG_MEAN if is_augreg else OPENAI_CLIP_MEAN,
        image_std=AUGREG_STD if is_augreg else OPENAI_CLIP_STD,
        crop_fraction=AUGREG_CROP if is_augreg and image_size == 224 else 1.0,
    )


def _guess(state: dict[str, Tensor], missing: str) -> str:
    """Say why a file without a tensor may lack it."""
    if wrapped := [key for key in state if key.endswith(f".{missing}")]:
        return f"there is {wrapped[0]}: save the file without the prefix {wrapped[0].removesuffix(missing)!r}"
    if "focusing.initial_rois" in state:
        return "it is in this project's own format already: from_pretrained loads its directory"
    return f"found {some(sorted(state))}; SparseFormer v1 files, with their own layer order, are not supported"


def _rename(key: str, is_augreg: bool) -> str:
    """Rename one official key; a key that fits nowhere keeps its name and is reported as unexpected."""
    for old, new in _TOP.items():
        if key.startswith(old):
            return new + key[len(old) :]
    if key.startswith("proj."):
        return key.replace("proj", "classifier" if is_augreg else "projection", 1)
    if not (match := re.match(r"layers\.(\d+)\.(.*)", key)):
        return key
    layer, rest = int(match[1]), match[2]
    if layer >= _NUM_NON_CORTEX_LAYERS:
        return f"cortex.{layer - _NUM_NON_CORTEX_LAYERS}.{rest}"
    sampling = "focusing.block.sampling." if layer == 0 else "focusing.last_sampling."
    for old, new in _SAMPLING.items():
        if rest.startswith(old):
            return sampling + new + rest[len(old) :]
    for old, new in _ROI.items():
        if rest.startswith(old):
            return f"focusing.block.{new}{rest[len(old) :]}"
    return f"focusing.block.transformer.{rest}"
