"""The ops in plain PyTorch, for any device and dtype, differentiable: what every faster path is compared with.

Letters: B images, N latents, P points, Q mixing points, H x W x C feature map (channels last).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.ops.geometry import place_points


def sample_points(features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
    """Read features (B, H, W, C) at the points of RoIs (B, N, 4) and offsets (B, N, P, 2): (B, N, P, C).

    A point that is not a number gives samples that are none; ``grid_sample`` never sees it, as on a CPU it would read
    and write outside the map.
    """
    points = place_points(rois, offsets)
    missing = torch.where(points.isnan(), points, 0.0).sum(dim=-1)[..., None]  # [B, N, P, 1], 0 or not a number
    # Beyond the border the map goes on unchanged, so that points may be pulled near to it.
    grid = points.nan_to_num(nan=0.5, posinf=2.0, neginf=-1.0).clamp(-1, 2) * 2 - 1
    maps = features.permute(0, 3, 1, 2).to(grid.dtype)  # [B, C, H, W], a view where dtypes agree
    samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (samples.permute(0, 2, 3, 1) + missing).to(features.dtype)


def mix(samples: Tensor, parameters: Tensor) -> Tensor:
    """Mix samples (B, N, P, C) over channels, then over points, with matrices from parameters (B, N, C C + Q P).

    Returns:
        (B, N, Q C) after the GELU, in the dtype of ``parameters``.
    """
    batch, latents, points, channels = samples.shape
    sizes = [channels**2, parameters.shape[2] - channels**2]
    mixing_points = sizes[1] // points
    channel_mixing, point_mixing = parameters.flatten(0, 1).split(sizes, dim=1)
    mixed = samples.flatten(0, 1).to(parameters.dtype) @ channel_mixing.unflatten(1, (channels, channels))
    mixed = point_mixing.unflatten(1, (mixing_points, points)) @ mixed  # [B N, Q, C]
    return F.gelu(mixed).view(batch, latents, mixing_points * channels)


def sample_and_mix(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor) -> Tensor:
    """Sample, then mix: (B, N, Q C)."""
    return mix(sample_points(features, rois, offsets), parameters)
