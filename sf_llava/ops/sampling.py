"""Sparse feature sampling: points from RoIs and offsets, features read at the points.

Letters: B images, N latents, P points, H x W x C feature map (channels last).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

OFFSET_EPS = 1e-5


def place_points(rois: Tensor, offsets: Tensor) -> Tensor:
    """Place every latent's sampling points in its RoI: normalise the offsets per token, scale by the RoI's size.

    The offsets of a token are centred and divided by three times their unbiased standard deviation, so that most of
    them fall inside the RoI; points may leave the RoI and the image, and are never clamped.

    Args:
        rois: (B, N, 4) corners ``x0, y0, x1, y1`` as image fractions.
        offsets: (B, N, P, 2) raw offsets, x before y.

    Returns:
        (B, N, P, 2) points as image fractions, x before y, float32 (float64 where ``rois`` are).
    """
    rois, offsets = _geometry(rois), _geometry(offsets)
    centre = offsets.mean(dim=-2, keepdim=True)
    spread = offsets.std(dim=-2, keepdim=True) + OFFSET_EPS
    offsets = (offsets - centre) / (3 * spread)
    centres = (rois[..., :2] + rois[..., 2:]) / 2  # [B, N, 2]
    sizes = rois[..., 2:] - rois[..., :2]
    return centres[:, :, None] + offsets * sizes[:, :, None]


def sample_points(features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
    """Read the feature map bilinearly at every latent's sampling points; the border is repeated outside the image.

    Args:
        features: (B, H, W, C) feature map, channels last, any float dtype.
        rois: (B, N, 4) corners as image fractions, see :func:`place_points`.
        offsets: (B, N, P, 2) raw sampling offsets.

    Returns:
        (B, N, P, C) samples in the dtype of ``features``; the geometry is computed in float32 at least.
    """
    if features.shape[0] != rois.shape[0]:
        raise ValueError(f"rois hold {rois.shape[0]} images but features hold {features.shape[0]}")
    points = place_points(rois, offsets)
    grid = points * 2 - 1
    maps = features.permute(0, 3, 1, 2).to(grid.dtype)  # [B, C, H, W], a view where dtypes agree
    samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return samples.permute(0, 2, 3, 1).to(features.dtype)  # [B, N, P, C]


def _geometry(x: Tensor) -> Tensor:
    """Promote half precision to float32; float32 and float64 stay."""
    return x if x.dtype == torch.float64 else x.float()
