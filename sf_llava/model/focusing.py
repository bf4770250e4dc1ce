"""Focusing transformer: RoIs move to what matters, features are sampled under them.

Four iterations with shared weights at half width, a linear transition, and one sampling-only block at full width.
Letters: B images, N latents, P points, C channels, I iterations, d focusing width, D full width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sf_llava.configuration import SparseFormerConfig
from sf_llava.model.cortex import TransformerBlock
from sf_llava.model.mixing import AdaptiveMixing
from sf_llava.model.precision import KeepsFloat32, ShardedLayerNorm, ShardedLinear, empty_float32
from sf_llava.model.rois import adjust_rois, encode_positions, initial_rois
from sf_llava.ops import prepare_map
from sf_llava.ops.geometry import to_geometry


class Focus(NamedTuple):
    """What focusing gives.

    latents (B, N, D); rois (B, I + 1, N, 4), the initial ones first; offsets (B, N, P, 2), raw, of the last sampling.
    """

    latents: Tensor
    rois: Tensor
    offsets: Tensor


class SamplingBlock(KeepsFloat32, GradientCheckpointingLayer):
    """Sample features under every latent's RoI, mix them into the token, add the RoI's position encoding."""

    def __init__(self, config: SparseFormerConfig, width: int) -> None:
        super().__init__()
        self.offset_norm = ShardedLayerNorm(width, eps=config.layer_norm_eps)
        self.offsets = ShardedLinear(width, 2 * config.num_sampling_points, bias=False)
        self.offset_bias = empty_float32(2 * config.num_sampling_points)
        self.mixing = AdaptiveMixing(config, width)
        self.position_norm = ShardedLayerNorm(width, eps=config.layer_norm_eps)
        self.position = ShardedLinear(width, width)

    def forward(self, tokens: Tensor, features: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Update tokens (B, N, width) from features (B, H, W, C) under rois (B, N, 4); return the raw offsets too.

        One image's tokens (1, N, width) and RoIs (1, N, 4) may stand for those of all: what depends on them alone is
        then computed once.
        """
        rois = to_geometry(rois)
        batch = features.shape[0]
        offsets = self.offsets(self.offset_norm(tokens)).to(rois.dtype) + self.offset_bias
        offsets = offsets.unflatten(-1, (-1, 2)).expand(batch, -1, -1, -1)  # [B, N, P, 2]
        tokens = tokens + self.mixing(tokens, features, rois.expand(batch, -1, -1), offsets)
        encoding = encode_positions(rois, tokens.shape[-1]).to(tokens.dtype)
        return tokens + self.position(self.position_norm(encoding)), offsets


class FocusingBlock(GradientCheckpointingLayer):
    """One iteration: sample and mix, self-attention, feed-forward, adjust the RoIs (Eq. 1)."""

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__()
        width = config.focusing_size
        self.sampling = SamplingBlock(config, width)
        self.transformer = TransformerBlock(
            config, width, config.focusing_num_attention_heads, 4 * width, "gelu", config.layer_norm_eps
        )
        self.roi_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.roi_hidden = nn.Linear(width, width)
        self.roi_deltas = nn.Linear(width, 4, bias=False)

    def forward(self, tokens: Tensor, features: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Return updated tokens (B, N, d) and RoIs (B, N, 4); see :class:`SamplingBlock` for what may come in."""
        tokens, _ = self.sampling(tokens, features, rois)
        tokens = self.transformer(tokens)
        deltas = self.roi_deltas(nn.functional.gelu(self.roi_hidden(self.roi_norm(tokens))))
        return tokens, adjust_rois(rois, deltas)


class FocusingTransformer(KeepsFloat32):
    """Iterate from learnable RoIs and one shared embedding to latents that carry what lies under their RoIs."""

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__()
        width = config.focusing_size
        self.initial_rois = empty_float32(config.num_latents, 4)
        self.latent_embedding = empty_float32(width)
        self.stage_embedding = empty_float32(config.num_focusing_iterations, width)
        self.block = FocusingBlock(config)
        self.transition = ShardedLinear(width, config.hidden_size)
        self.last_sampling = SamplingBlock(config, config.hidden_size)

    def forward(self, features: Tensor, num_latents: int | None = None) -> Focus:
        """Focus on features (B, H, W, C), with ``num_latents`` that start on the balanced grid where they are named."""
        dtype = self.block.roi_norm.weight.dtype
        # All images start alike. So do all latents, but products with a single row depend on where its factors lie in
        # memory: the bits of a model would be others when it is loaded again.
        start: Tensor = self.initial_rois
        if num_latents not in (None, len(start)):
            start = initial_rois(num_latents).to(start.device)
        rois = to_geometry(start)[None]  # [1, N, 4]
        tokens = self.latent_embedding.to(dtype).expand(1, rois.shape[1], -1)
        features = prepare_map(features)
        history = [rois.expand(features.shape[0], -1, -1)]
        for stage in self.stage_embedding:
            tokens, rois = self.block(tokens + stage.to(dtype), features, rois)
            history.append(rois)
        latents, offsets = self.last_sampling(self.transition(tokens), features, rois)
        return Focus(latents, torch.stack(history, dim=1), offsets)
