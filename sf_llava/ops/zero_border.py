"""Reading that gives zero outside the image, as SparseFormer v1 does: a border of zeros that is then repeated.

The ops repeat the border of a feature map. Around one pixel of zeros they repeat zero, and between it and the map they
fade, to the last bit of the arithmetic what zero padding gives; so every path of the ops serves both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.ops.geometry import to_geometry


def add_zero_border(features: Tensor) -> Tensor:
    """Surround a feature map (B, H, W, C) by one pixel of zeros: (B, H + 2, W + 2, C)."""
    return F.pad(features, (0, 0, 1, 1, 1, 1))


def inside_border(rois: Tensor, features: Tensor) -> Tensor:
    """Give RoIs on the map alone as RoIs on the map and its border.

    Args:
        rois: (B, N, 4) corners as fractions of the map without its border.
        features: (B, H + 2, W + 2, C) with it.

    Returns:
        (B, N, 4) corners of the same regions as fractions of the whole, float32 at least.
    """
    rois = to_geometry(rois)
    height, width = features.shape[1:3]
    x = (rois[..., 0::2] * (width - 2) + 1) / width
    y = (rois[..., 1::2] * (height - 2) + 1) / height
    return torch.stack([x, y], dim=-1).flatten(-2)
