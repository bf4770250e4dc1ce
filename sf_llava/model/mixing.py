"""Adaptive mixing: every latent generates the matrices that decode its own samples.

Letters: B images, N latents, P points, Q mixing points, C feature channels, d token width.
"""

from torch import Tensor, nn

from sf_llava.configuration import SparseFormerConfig
from sf_llava.ops import sample_and_mix


class AdaptiveMixing(nn.Module):
    """Mix a latent's samples over channels (C x C), then over points (Q x P), with matrices generated from its token.

    One GELU after both products, none in between, no mixing bias: those belong to SparseFormer v1.
    """

    def __init__(self, config: SparseFormerConfig, width: int) -> None:
        super().__init__()
        channels, mixing_points = config.conv_channels, config.mixing_points
        num_parameters = channels**2 + mixing_points * config.num_sampling_points
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.reduce = nn.Linear(width, config.mixing_size)
        self.generate = nn.Linear(config.mixing_size, num_parameters)
        self.proj = nn.Linear(mixing_points * channels, width)

    def forward(self, tokens: Tensor, features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
        """Decode what lies under the RoIs, under the guidance of the tokens.

        Args:
            tokens: (B, N, d), or (1, N, d) that stand for those of all images.
            features: (B, H, W, C), channels last.
            rois: (B, N, 4) corners as image fractions.
            offsets: (B, N, P, 2) raw sampling offsets.

        Returns:
            (B, N, d) update of the tokens.
        """
        parameters = self.generate(self.reduce(self.norm(tokens))).expand(rois.shape[0], -1, -1)  # [B, N, C C + Q P]
        return self.proj(sample_and_mix(features, rois, offsets, parameters))
