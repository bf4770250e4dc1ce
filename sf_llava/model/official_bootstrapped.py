"""Released bootstrapped SparseFormers (B and L, AugReg and CLIP) into our models.

The official layout: ``layers.0`` is the focusing block, ``layers.1`` the transition, ``layers.2`` the last sampling
block, ``layers.3`` and on the cortex. Every size is read from the tensors.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from sf_llava.configuration import (
    AUGREG_CROP,
    AUGREG_MEAN,
    AUGREG_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    SparseFormerConfig,
)
from sf_llava.model.official_state import OfficialState
from sf_llava.model.sparseformer import SparseFormerModel

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


def convert_bootstrapped(tensors: Mapping[str, Tensor], image_size: int) -> SparseFormerModel:
    """Convert the state dict of a bootstrapped SparseFormer; see :func:`sf_llava.model.official.convert_official`."""
    state = OfficialState(tensors, "bootstrapped SparseFormer")
    config = _read_config(state, image_size)
    converted = {_rename(key, "proj.bias" in tensors): value for key, value in tensors.items()}
    for name in ("focusing.latent_embedding", "cls_token"):
        if name in converted:
            converted[name] = converted[name].flatten()
    return state.load(SparseFormerModel, config, converted)


def _read_config(state: OfficialState, image_size: int) -> SparseFormerConfig:
    """Read every size from the tensors. A projection with bias is AugReg's classifier, one without is CLIP's."""
    shape = state.shape
    (width,), (projected, _) = shape("norm.weight", 1), shape("proj.weight", 2)
    num_latents, _ = shape("initial_roi.weight", 2)
    iterations, focusing_size = shape("layers.0.stage_embedding.weight", 2)
    mixing_size, _ = shape("layers.0.adaptive_mixing.parameter_generator.1.weight", 2)
    num_parameters, _ = shape("layers.0.adaptive_mixing.parameter_generator.2.weight", 2)
    channels = shape("feat_extractor.conv1.weight", 4)[0]
    num_points = shape("layers.0.roi_offset_bias", 1)[0] // 2
    intermediate_size, _ = shape(f"layers.{_NUM_NON_CORTEX_LAYERS}.mlp.fc1.weight", 2)
    num_layers = state.num_layers(_NUM_NON_CORTEX_LAYERS, _TENSORS_PER_LAYER)
    is_augreg = "proj.bias" in state.tensors
    return SparseFormerConfig(
        image_size=image_size,
        num_latents=num_latents,
        hidden_size=width,
        focusing_size=focusing_size,
        num_focusing_iterations=iterations,
        num_hidden_layers=num_layers,
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
