"""The segmentation head: latents classify themselves, dense attention carries their logits to the pixels (Eq. 6-7).

tokens -> width 256 -> two encoder blocks -> class logits, keys, importance
features of the early convolution -> dense queries; both meet in ``dense_attention``

Letters: B images, N latents, H x W places of the map, C channels, D width of tokens, d width of the head, L classes.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from sf_llava.configuration import SparseFormerConfig
from sf_llava.model.cortex import TransformerBlock
from sf_llava.segmentation.attention import dense_attention


@dataclass(frozen=True)
class HeadConfig:
    """Numbers of a head.

    The paper gives ``width`` and ``num_blocks``. With its one convolution for the queries the whole costs 26 G
    multiply-adds for SF-B at 512 px, where Table 5 prints 36: two convolutions and a projection, and blocks as wide as
    PyTorch's encoder layers are by default, cost what the table says (SF-B and SF-L, parameters and multiply-adds).

    Attributes:
        width: d.
        num_blocks: encoder blocks on the latents.
        num_heads: of these blocks.
        mlp_width: hidden width of these blocks.
        num_convolutions: 3x3 convolutions that make queries of the map; after more than one a linear layer follows.
    """

    width: int = 256
    num_blocks: int = 2
    num_heads: int = 8
    mlp_width: int = 2048
    num_convolutions: int = 2

    def __post_init__(self) -> None:
        if min(self.width, self.num_heads, self.mlp_width, self.num_convolutions) < 1 or self.num_blocks < 0:
            raise ValueError(f"a head needs positive numbers (`num_blocks` may be 0), not {self}")
        if self.width % self.num_heads:
            raise ValueError(f"`width` {self.width} of the head is no multiple of its {self.num_heads} heads")


class DenseQueries(nn.Module):
    """Queries of all places, by 3x3 convolutions of the early convolution's map."""

    def __init__(self, channels: int, config: HeadConfig) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, config.width, 3, padding=1)
        self.others = nn.ModuleList(
            [nn.Conv2d(config.width, config.width, 3, padding=1) for _ in range(config.num_convolutions - 1)]
        )
        self.projection = nn.Linear(config.width, config.width) if self.others else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, H, W, C) to queries (B, H, W, d)."""
        queries = self.first(features.permute(0, 3, 1, 2))
        for convolution in self.others:
            queries = convolution(nn.functional.gelu(queries))
        queries = queries.permute(0, 2, 3, 1)
        return self.projection(nn.functional.gelu(queries) if self.others else queries)


class SegmentationHead(nn.Module):
    """Class logits of every place of the map, from latents with RoIs.

    Args:
        num_classes: L.
        token_width: D.
        channels: C.
        config: the numbers.
    """

    def __init__(self, num_classes: int, token_width: int, channels: int, config: HeadConfig) -> None:
        super().__init__()
        attention = SparseFormerConfig(attn_implementation="eager")  # of a few hundred tokens
        shape = (config.width, config.num_heads, config.mlp_width, "gelu", 1e-5)
        self.reduce = nn.Linear(token_width, config.width)
        self.blocks = nn.ModuleList([TransformerBlock(attention, *shape) for _ in range(config.num_blocks)])
        self.norm = nn.LayerNorm(config.width)
        self.classifier = nn.Linear(config.width, num_classes)
        self.key = nn.Linear(config.width, config.width)
        self.importance = nn.Linear(config.width, 1)
        self.queries = DenseQueries(channels, config)

    def forward(self, features: Tensor, tokens: Tensor, rois: Tensor) -> Tensor:
        """Predict.

        Args:
            features: (B, H, W, C) of the early convolution.
            tokens: (B, N, D) latents.
            rois: (B, N, 4) their last RoIs, corners as image fractions.

        Returns:
            (B, H, W, L) logits.
        """
        latents = self.reduce(tokens)
        for block in self.blocks:
            latents = block(latents)
        latents = self.norm(latents)
        importance = self.importance(latents).squeeze(-1)
        return dense_attention(self.queries(features), self.key(latents), self.classifier(latents), rois, importance)
