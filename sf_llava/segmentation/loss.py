"""Supervision on the dense map: cross-entropy of every counted pixel.

Letters: B images, h x w places of the map, H x W pixels, L classes.
"""

import torch.nn.functional as F
from torch import Tensor

from sf_llava.data.masks import IGNORED
from sf_llava.segmentation.inference import upsample


def dense_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Scale logits to the labels' size and average the cross-entropy over the pixels that count.

    Args:
        logits: (B, h, w, L).
        labels: (B, H, W) classes, 255 where a pixel does not count.

    Returns:
        float32; 0, with gradients of 0, where no pixel counts.
    """
    scaled = upsample(logits, labels.shape[-2:]).float()
    losses = F.cross_entropy(scaled, labels.long(), ignore_index=IGNORED, reduction="sum")
    return losses / (labels != IGNORED).sum().clamp(min=1)
