"""The blocks of SparseFormer v1: attention first, then the RoIs move, and only then they are read.

Letters: B images, N latents, P points, Q mixing points, C channels, A axes (2; 3 in clips), d width.
"""

import torch
from torch import Tensor, nn

from sf_llava.model.cortex import Attention, Mlp
from sf_llava.model.precision import KeepsFloat32, empty_float32
from sf_llava.model.rois import adjust_rois
from sf_llava.model.v1.configuration import MIXING_RATIO, MLP_RATIO, SparseFormerV1Config
from sf_llava.ops import inside_border, mix_with_biases, sample_clips, sample_points

MIXING_NORM_EPS = 1e-5
"""Of the norm before the mixing parameters: the released package has PyTorch's default there, and 1e-6 elsewhere."""


class AdaptiveMixing(nn.Module):
    """Mix a latent's samples over channels (C x C), then over points (Q x P), with matrices generated from its token.

    A learned bias and a GELU follow each of the two products.
    """

    def __init__(self, config: SparseFormerV1Config, width: int) -> None:
        super().__init__()
        channels, mixing_points = config.conv_channels, config.mixing_points
        num_parameters = channels**2 + mixing_points * config.num_sampling_points
        self.norm = nn.LayerNorm(width, eps=MIXING_NORM_EPS)
        self.reduce = nn.Linear(width, width // MIXING_RATIO)
        self.generate = nn.Linear(width // MIXING_RATIO, num_parameters)
        self.channel_bias = nn.Parameter(torch.empty(channels))
        self.point_bias = nn.Parameter(torch.empty(mixing_points))
        self.proj = nn.Linear(mixing_points * channels, width)

    def forward(self, tokens: Tensor, samples: Tensor) -> Tensor:
        """Decode samples (B, N, P, C) under the guidance of tokens, (B, N, d) or (1, N, d) for all: (B, N, d)."""
        parameters = self.generate(self.reduce(self.norm(tokens))).expand(len(samples), -1, -1)  # [B, N, C C + Q P]
        return self.proj(mix_with_biases(samples, parameters, self.channel_bias, self.point_bias))


class ReadingBlock(KeepsFloat32):
    """Self-attention, RoI adjustment, sampling and mixing, feed-forward."""

    def __init__(self, config: SparseFormerV1Config, width: int) -> None:
        super().__init__()
        eps, self.num_axes = config.layer_norm_eps, config.num_axes
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(config, width, config.num_attention_heads)
        self.roi_norm = nn.LayerNorm(width, eps=eps)
        self.roi_deltas = nn.Linear(width, 2 * self.num_axes, bias=False)
        self.offset_norm = nn.LayerNorm(width, eps=eps)
        self.offsets = nn.Linear(width, self.num_axes * config.num_sampling_points, bias=False)
        self.offset_bias = empty_float32(self.num_axes * config.num_sampling_points)
        self.mixing = AdaptiveMixing(config, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, MLP_RATIO * width, "gelu")

    def forward(self, tokens: Tensor, features: Tensor, rois: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Update tokens from what lies under their RoIs.

        Args:
            tokens: (B, N, d), or (1, N, d) that stand for those of all images.
            features: (B, H + 2, W + 2, C) with a border of zeros; of clips (B, F, H, W, C).
            rois: (B, N, 2 A) or (1, N, 2 A) corners as fractions of the map without its border, and of the clip.

        Returns:
            Tokens (B, N, d); the RoIs that they were read under, (B, N, 2 A); the raw offsets (B, N, P, A).
        """
        tokens = tokens + self.attn(self.norm1(tokens))
        rois = adjust_rois(rois, self.roi_deltas(self.roi_norm(tokens)))
        offsets = self.offsets(self.offset_norm(tokens)).to(rois.dtype) + self.offset_bias
        offsets = offsets.unflatten(-1, (-1, self.num_axes)).expand(len(features), -1, -1, -1)
        rois = rois.expand(len(features), -1, -1)
        if self.num_axes == 3:
            samples = sample_clips(features, rois, offsets)
        else:
            samples = sample_points(features, inside_border(rois, features), offsets)  # [B, N, P, C]
        tokens = tokens + self.mixing(tokens, samples)
        return tokens + self.mlp(self.norm2(tokens)), rois, offsets
