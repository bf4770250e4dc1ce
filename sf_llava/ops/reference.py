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
    grid, missing = _grid(rois, offsets)
    maps = features.permute(0, 3, 1, 2).to(grid.dtype)  # [B, C, H, W], a view where dtypes agree
    samples = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (samples.permute(0, 2, 3, 1) + missing).to(features.dtype)


def sample_clips(features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
    """Read feature maps of clips trilinearly at the points of RoIs in space and time; outside a clip all is zero.

    Args:
        features: (B, F, H, W, C) of F frames, channels last.
        rois: (B, N, 6) corners ``x0, y0, t0, x1, y1, t1`` as fractions of picture and clip.
        offsets: (B, N, P, 3) raw offsets, x, y, time.

    Returns:
        (B, N, P, C) in the dtype of ``features``; not a number where a point is none.
    """
    grid, missing = _grid(rois, offsets)
    maps = features.permute(0, 4, 1, 2, 3).to(grid.dtype)  # [B, C, F, H, W]
    samples = F.grid_sample(maps, grid[:, None], mode="bilinear", padding_mode="zeros", align_corners=False)
    return (samples[:, :, 0].permute(0, 2, 3, 1) + missing).to(features.dtype)


def _grid(rois: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Place points as ``grid_sample`` counts them, from -1 to 1; beside them (B, N, P, 1), 0 or not a number."""
    points = place_points(rois, offsets)
    missing = torch.where(points.isnan(), points, 0.0).sum(dim=-1)[..., None]
    # Beyond the border the map goes on unchanged, so that points may be pulled near to it.
    return points.nan_to_num(nan=0.5, posinf=2.0, neginf=-1.0).clamp(-1, 2) * 2 - 1, missing


def mix(samples: Tensor, parameters: Tensor) -> Tensor:
    """Mix samples (B, N, P, C) over channels, then over points, with matrices from parameters (B, N, C C + Q P).

    Returns:
        (B, N, Q C) after the GELU, in the dtype of ``parameters``.
    """
    channel_mixing, point_mixing = _split(parameters, *samples.shape[2:])
    mixed = samples.flatten(0, 1).to(parameters.dtype) @ channel_mixing
    mixed = point_mixing @ mixed  # [B N, Q, C]
    return F.gelu(mixed).view(*samples.shape[:2], mixed.shape[1] * mixed.shape[2])


def mix_with_biases(samples: Tensor, parameters: Tensor, channel_bias: Tensor, point_bias: Tensor) -> Tensor:
    """Mix as SparseFormer v1 does: a bias on each product, a GELU behind each.

    Args:
        samples: (B, N, P, C).
        parameters: (B, N, C C + Q P) channel mixing (C, C), then point mixing (Q, P), flattened.
        channel_bias: (C,).
        point_bias: (Q,).

    Returns:
        (B, N, Q C) in the dtype of ``parameters``.
    """
    channel_mixing, point_mixing = _split(parameters, *samples.shape[2:])
    mixed = F.gelu(torch.baddbmm(channel_bias, samples.flatten(0, 1).to(parameters.dtype), channel_mixing))
    mixed = F.gelu(torch.baddbmm(point_bias[:, None], point_mixing, mixed))  # [B N, Q, C]
    return mixed.view(*samples.shape[:2], mixed.shape[1] * mixed.shape[2])


def _split(parameters: Tensor, points: int, channels: int) -> tuple[Tensor, Tensor]:
    """View parameters (B, N, C C + Q P) as channel mixing (B N, C, C) and point mixing (B N, Q, P)."""
    sizes = [channels**2, parameters.shape[2] - channels**2]
    channel_mixing, point_mixing = parameters.flatten(0, 1).split(sizes, dim=1)
    return channel_mixing.unflatten(1, (channels, channels)), point_mixing.unflatten(1, (sizes[1] // points, points))


def sample_and_mix(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor) -> Tensor:
    """Sample, then mix: (B, N, Q C)."""
    return mix(sample_points(features, rois, offsets), parameters)
