"""Forward and backward of the ops by hand, in plain tensor operations: the CPU's kernels, and any other device's.

A bilinear read is a weighted sum of four rows of the flattened map, which ``embedding_bag`` gathers in one pass. Its
transpose is the same operation with samples and pixels exchanged, so nothing is scattered and nothing depends on the
order of threads. Letters: B images, N latents, P points, M = B N P samples, Q mixing points, H x W x C feature map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.ops.geometry import place_points, place_points_backward, to_geometry


def sample_forward(features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
    """See :func:`sf_llava.ops.sample_points`."""
    rows, weights, _, _ = _corners(features, rois, offsets)
    table = features.to(weights.dtype).flatten(0, 2)  # [B H W, C]
    samples = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)  # [M, C]
    return samples.to(features.dtype).view(*offsets.shape[:3], features.shape[3])


def sample_backward(grad: Tensor, features: Tensor, rois: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features, RoIs and offsets from those of the samples, (B, N, P, C)."""
    rows, weights, fractions, pixels = _corners(features, rois, offsets)
    size = _map_size(features, weights.dtype)
    inside = (pixels > 0) & (pixels < size - 1)  # where a coordinate is clipped at the border its gradient is 0
    grad = grad.to(weights.dtype).flatten(0, 2)  # [M, C]
    table = features.to(weights.dtype).flatten(0, 2)  # [B H W, C]

    # Forward, a sample is a bag of four pixels; for the map's gradient, a pixel is a bag of the samples that read it.
    flat = rows.flatten()
    order = flat.argsort(stable=True)
    counts = torch.zeros(table.shape[0], dtype=flat.dtype, device=flat.device)
    counts.index_add_(0, flat, torch.ones_like(flat))
    starts = counts.cumsum(0, dtype=flat.dtype) - counts
    readers = (order >> 2).to(flat.dtype)
    d_table = F.embedding_bag(readers, grad, starts, mode="sum", per_sample_weights=weights.flatten()[order])

    sample_of_row = torch.arange(flat.shape[0], dtype=flat.dtype, device=flat.device) >> 2
    bags = torch.arange(0, flat.shape[0], 4, dtype=flat.dtype, device=flat.device)
    d_weights = torch.ops.aten._embedding_bag_per_sample_weights_backward(grad, table, flat, bags, sample_of_row, 0)
    top_left, top_right, bottom_left, bottom_right = d_weights.view(*offsets.shape[:3], 4).unbind(-1)
    x, y = fractions.unbind(-1)
    d_x = (top_right - top_left) * (1 - y) + (bottom_right - bottom_left) * y
    d_y = (bottom_left - top_left) * (1 - x) + (bottom_right - top_right) * x
    d_points = torch.stack([d_x, d_y], dim=-1) * inside * size  # [B, N, P, 2]
    d_rois, d_offsets = place_points_backward(d_points, to_geometry(rois), to_geometry(offsets))
    return d_table.view_as(features).to(features.dtype), d_rois.to(rois.dtype), d_offsets.to(offsets.dtype)


def mix_forward(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor) -> Tensor:
    """See :func:`sf_llava.ops.sample_and_mix`."""
    _, _, _, _, mixed = _mix(features, rois, offsets, parameters)
    return F.gelu(mixed).view(*parameters.shape[:2], mixed.shape[1] * mixed.shape[2])


def mix_backward(
    grad: Tensor, features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features, RoIs, offsets and parameters; the samples are read again, nothing was kept."""
    samples, channel_mixing, point_mixing, channels_mixed, mixed = _mix(features, rois, offsets, parameters)
    d_mixed = torch.ops.aten.gelu_backward(grad.reshape(mixed.shape).to(mixed.dtype), mixed)  # [B N, Q, C]
    d_channels_mixed = point_mixing.mT @ d_mixed  # [B N, P, C]
    d_matrices = (samples.mT @ d_channels_mixed, d_mixed @ channels_mixed.mT)  # [B N, C, C], [B N, Q, P]
    d_parameters = torch.cat([matrix.flatten(1) for matrix in d_matrices], dim=1).view(parameters.shape)
    d_samples = (d_channels_mixed @ channel_mixing.mT).view(*offsets.shape[:3], features.shape[3])
    return *sample_backward(d_samples, features, rois, offsets), d_parameters


def _mix(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor) -> tuple[Tensor, ...]:
    """Give the samples, both mixing matrices, and the samples after the first and the second product."""
    samples = sample_forward(features, rois, offsets).flatten(0, 1).to(parameters.dtype)  # [B N, P, C]
    channel_mixing, point_mixing = _split(parameters, samples.shape[-1], samples.shape[-2])
    channels_mixed = samples @ channel_mixing
    return samples, channel_mixing, point_mixing, channels_mixed, point_mixing @ channels_mixed


def _split(parameters: Tensor, channels: int, points: int) -> tuple[Tensor, Tensor]:
    """View parameters (B, N, C C + Q P) as channel mixing (B N, C, C) and point mixing (B N, Q, P)."""
    parameters = parameters.flatten(0, 1)
    mixing_points = (parameters.shape[1] - channels**2) // points
    channel_mixing = parameters[:, : channels**2].unflatten(1, (channels, channels))
    return channel_mixing, parameters[:, channels**2 :].unflatten(1, (mixing_points, points))


def _corners(features: Tensor, rois: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the four pixels around every point, in reading order, and their weights.

    Returns:
        rows (M, 4) of the flattened map; weights (M, 4); fractions (B, N, P, 2), the point's position between its
        pixels; pixels (B, N, P, 2), where the point lies in units of the map's pixels, not clipped.
    """
    batch, height, width, _ = features.shape
    points = place_points(rois, offsets)
    last = _map_size(features, points.dtype) - 1
    pixels = points * (last + 1) - 0.5
    clipped = torch.minimum(pixels.clamp(min=0), last)
    whole = clipped.floor()
    fractions = clipped - whole
    index = torch.int32 if batch * height * width < 2**31 else torch.int64
    # Not a number survives in the weights, but must not become a wild index.
    x0, y0 = whole.to(index).clamp(min=0).unbind(-1)
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)
    first = torch.arange(batch, dtype=index, device=features.device)[:, None, None] * (height * width)
    top, bottom = first + y0 * width, first + y1 * width
    rows = torch.stack([top + x0, top + x1, bottom + x0, bottom + x1], dim=-1)
    x, y = fractions.unbind(-1)
    weights = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], dim=-1)
    return rows.view(-1, 4), weights.view(-1, 4), fractions, pixels


def _map_size(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Give (W, H), x before y, without waiting for the device."""
    size = torch.full((2,), features.shape[2], dtype=dtype, device=features.device)
    size[1:].fill_(features.shape[1])
    return size
