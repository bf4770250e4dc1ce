"""Attention pooling: the head of a SigLIP, inherited and frozen, over the latents of a student without CLS.

Letters: B images, N latents, D width, A heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sf_llava.configuration import SparseFormerConfig
from sf_llava.model.cortex import Mlp


class AttentionPooling(nn.Module):
    """One learned query reads all tokens; a feed-forward network with its own norm follows.

    ``query`` is SigLIP's probe behind its query projection, both constants.
    """

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query = nn.Parameter(torch.empty(width))
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.cortex_layer_norm_eps)
        self.mlp = Mlp(width, config.intermediate_size, config.hidden_act)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool normalised tokens (B, N, D) into (B, D)."""
        pooled = self.proj(attend(self.query, self.kv(tokens), self.num_heads))
        return pooled + self.mlp(self.norm(pooled))


def attend(query: Tensor, keys_and_values: Tensor, num_heads: int) -> Tensor:
    """Read tokens by one query.

    Args:
        query: (D,).
        keys_and_values: (B, N, 2 D), keys first.
        num_heads: A.

    Returns:
        (B, D).
    """
    key, value = keys_and_values.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, A, N, D / A]
    asked = query.unflatten(0, (num_heads, 1, -1)).expand(key.shape[0], -1, -1, -1)  # [B, A, 1, D / A]
    return F.scaled_dot_product_attention(asked, key, value).flatten(1)
