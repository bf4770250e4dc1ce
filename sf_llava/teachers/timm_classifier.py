"""Builds classifiers of timm's plain ViT (AugReg's kind) to be trained, and saves them for ``load_teacher``."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import VisionTransformer, save_for_hf

ARCHITECTURE = "vit_tiny_patch16_224"
"""Of which timm builds any size: CLS, GELU, pre-norm blocks, a linear classifier."""


def build_classifier(num_classes: int, geometry: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> Any:
    """Build a ``VisionTransformer`` with random weights, its attention in plain products (trains fastest on CPUs).

    Args:
        num_classes: outputs.
        geometry: ``img_size``, ``patch_size``, ``embed_dim``, ``depth`` and ``num_heads``, as timm calls them.
        preprocessing: what its ``pretrained_cfg`` says of pictures: ``mean``, ``std``, ``crop_pct``.
    """
    overlay = {"input_size": (3, geometry["img_size"], geometry["img_size"]), "tag": "", **preprocessing}
    vit = timm.create_model(ARCHITECTURE, num_classes=num_classes, pretrained_cfg_overlay=overlay, **geometry)
    for block in vit.blocks:
        block.attn.fused_attn = False
    return vit


def save_classifier(vit: VisionTransformer, geometry: Mapping[str, Any], directory: Path) -> None:
    """Fill ``directory`` with timm's config.json and half-precision weights, as ``timm.models.save_for_hf`` does."""
    half = copy.deepcopy(vit).half()
    save_for_hf(half, str(directory), model_args=dict(geometry), safe_serialization=True)
