"""Inputs for the tests of the ops: odd sizes, RoIs in and out of the image, corners, no spread of offsets."""

import torch
from torch import Tensor


def draw(
    batch: int = 2,
    latents: int = 5,
    points: int = 16,
    channels: int = 64,
    height: int = 14,
    width: int = 14,
    mixing_points: int = 32,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw features, RoIs, offsets and mixing parameters; the first latents are the awkward ones."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features = normal(batch, height, width, channels)
    corners = torch.rand(batch, latents, 2, generator=generator, dtype=torch.float64)
    rois = torch.cat([corners - 0.1, corners + 0.3], dim=-1)
    awkward = [
        [-0.4, -0.3, 0.2, 0.1],  # partly outside
        [1.3, 1.2, 1.9, 1.5],  # wholly outside
        [0.0, 0.0, 0.0, 0.0],  # a corner, without extent
        [0.0, 0.0, 1.0, 1.0],
    ]
    rois[:, : len(awkward)] = torch.tensor(awkward, dtype=torch.float64)[:latents]
    offsets = normal(batch, latents, points, 2)
    offsets[:, -1:] = 0.25  # no spread
    parameters = 0.2 * normal(batch, latents, channels**2 + mixing_points * points)
    return features.to(dtype), rois, offsets, parameters.to(dtype)
