"""Released SparseFormers v1 (tiny, small, base) and models of the authors' video code into our model.

The official layout: ``layers.0`` is the focusing block, ``layers.1`` the transition, ``layers.2`` and on the cortex.
The ImageNet code that trained them names some tensors otherwise; both names are known here. Sizes are read from the
tensors; what leaves no trace in them is as in all released models: four iterations, 64 heads.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from sf_llava.model.official_state import OfficialState
from sf_llava.model.v1.configuration import SparseFormerV1Config
from sf_llava.model.v1.model import SparseFormerV1Model

_TOP = {
    "feat_extractor.conv1.": "early_conv.conv.",
    "initial_roi.weight": "focusing.initial_rois",
    "token_roi.weight": "focusing.initial_rois",
    "initial_embedding.weight": "focusing.latent_embedding",
    "token_embedding.weight": "focusing.latent_embedding",
    "layers.1.0.": "transition.",
    "layers.1.1.": "transition_norm.",
    "head.norm.": "norm.",
    "head.classifier.": "classifier.",
    "proj.": "classifier.",
}
_BLOCK = {
    "ln_attn.": "norm1.",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "ffn.0.": "norm2.",
    "ffn.1.": "mlp.fc1.",
    "ffn.3.": "mlp.fc2.",
    "roi_adjust_module.0.": "roi_norm.",
    "roi_adjust_module.1.": "roi_deltas.",
    "roi_offset_module.0.": "offset_norm.",
    "roi_offset_module.1.": "offsets.",
    "roi_offset_bias": "offset_bias",
    "adaptive_mixing.parameter_generator.0.": "mixing.norm.",
    "adaptive_mixing.parameter_generator.1.": "mixing.reduce.",
    "adaptive_mixing.parameter_generator.2.": "mixing.generate.",
    "adaptive_mixing.m_beta": "mixing.channel_bias",
    "adaptive_mixing.s_beta": "mixing.point_bias",
    "adaptive_mixing.out_proj.": "mixing.proj.",
    "adaptive_mixing.tuo_proj.": "mixing.proj.",
}
_NUM_OTHER_LAYERS = 2
_TENSORS_PER_LAYER = 12  # of a cortex block


def convert_v1(tensors: Mapping[str, Tensor], image_size: int) -> SparseFormerV1Model:
    """Convert the state dict of a SparseFormer v1; see :func:`sf_llava.model.official.convert_official`."""
    official = OfficialState(tensors, "SparseFormer v1")
    num_layers = official.num_layers(_NUM_OTHER_LAYERS, _TENSORS_PER_LAYER)
    converted = {_rename(key): value for key, value in tensors.items()}
    if len(converted) < len(tensors):
        raise official.refuse("it names some tensors twice, as the ImageNet code and as the released package does")
    conv = converted.get("early_conv.conv.weight")
    if conv is not None and conv.dim() == 5 and conv.shape[2] == 1:
        converted["early_conv.conv.weight"] = conv.squeeze(2)  # one frame at a time
    state = OfficialState(converted, official.kind)
    return state.load(SparseFormerV1Model, _read_config(state, num_layers, image_size), converted)


def _read_config(state: OfficialState, num_layers: int, image_size: int) -> SparseFormerV1Config:
    """Read every size from the renamed tensors."""
    num_latents, corners = state.shape("focusing.initial_rois", 2)
    channels = state.shape("early_conv.conv.weight", 4)[0]
    num_classes, width = state.shape("classifier.weight", 2)
    is_video = corners == 6
    return SparseFormerV1Config(
        image_size=image_size,
        is_video=is_video,
        num_latents=num_latents,
        hidden_size=width,
        focusing_size=state.shape("focusing.latent_embedding", 2)[1],
        num_hidden_layers=num_layers,
        conv_channels=channels,
        num_sampling_points=state.shape("focusing.block.offset_bias", 1)[0] // (3 if is_video else 2),
        mixing_points=state.shape("focusing.block.mixing.point_bias", 1)[0],
        num_classes=num_classes,
    )


def _rename(key: str) -> str:
    """Rename one official key; a key that fits nowhere keeps its name and is reported as unexpected."""
    for old, new in _TOP.items():
        if key.startswith(old):
            return new + key[len(old) :]
    if not (match := re.match(r"layers\.(\d+)\.(.*)", key)):
        return key
    layer, rest = int(match[1]), match[2]
    block = "focusing.block." if layer == 0 else f"cortex.{layer - _NUM_OTHER_LAYERS}."
    for old, new in _BLOCK.items():
        if rest.startswith(old):
            return block + new + rest[len(old) :]
    return block + rest
