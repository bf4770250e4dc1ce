"""Adaptive mixing: every latent generates the matrices that decode its own samples.

Letters: B images, N latents, P points, Q mixing points, C feature channels, d token width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sf_llava.configuration import SparseFormerConfig


class AdaptiveMixing(nn.Module):
    """Mix a latent's samples over channels (C x C), then over points (Q x P), with matrices generated from its token.

    One GELU after both products, none in between, no mixing bias: those belong to SparseFormer v1.
    """

    def __init__(self, config: SparseFormerConfig, width: int) -> None:
        super().__init__()
        self.channels = config.conv_channels
        self.num_points = config.num_sampling_points
        self.mixing_points = config.mixing_points
        num_parameters = self.channels**2 + self.mixing_points * self.num_points
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.reduce = nn.Linear(width, config.mixing_size)
        self.generate = nn.Linear(config.mixing_size, num_parameters)
        self.proj = nn.Linear(self.mixing_points * self.channels, width)

    def forward(self, tokens: Tensor, samples: Tensor) -> Tensor:
        """Decode samples (B, N, P, C) under the guidance of tokens (B, N, d) into an update (B, N, d)."""
        batch, latents, points, channels = samples.shape
        parameters = self.generate(self.reduce(self.norm(tokens))).flatten(0, 1)
        channel_mixing = parameters[:, : channels**2].unflatten(1, (channels, channels))
        point_mixing = parameters[:, channels**2 :].unflatten(1, (self.mixing_points, points))
        mixed = point_mixing @ (samples.flatten(0, 1) @ channel_mixing)  # [B N, Q, C]
        return self.proj(F.gelu(mixed).view(batch, latents, -1))
