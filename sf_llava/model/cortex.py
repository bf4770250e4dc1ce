"""Cortex transformer: standard pre-norm ViT blocks, inherited from the teacher (Eq. 4).

Parameter names are the canonical block names that every teacher maps onto:
``norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2``. Letters: B images, T tokens, D width, A heads.
"""

from collections.abc import Callable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sf_llava.configuration import SparseFormerConfig
from sf_llava.model.precision import ShardedLinear

QUICK_GELU_SCALE = 1.702


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    """Attend with plain products: query, key, value (B, A, T, D / A) to ((B, T, A, D / A), weights (B, A, T, T))."""
    scores = (query * scaling) @ key.transpose(-1, -2)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class Attention(nn.Module):
    """Self-attention with one projection for query, key and value, through transformers' attention interface."""

    is_causal = False

    def __init__(self, config: PretrainedConfig, width: int, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.scaling = (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, num_queries: int | None = None) -> Tensor:
        """Attend among tokens (B, T, D); only the first ``num_queries`` of them ask, where that is given."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = query[:, :, :num_queries]  # [B, A, T, D / A]
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, _ = attend(self, query, key, value, None, scaling=self.scaling, dropout=0.0)  # [B, T, A, D / A]
        return self.proj(attended.flatten(-2))


class Mlp(nn.Module):
    """Feed-forward network with one hidden layer.

    QuickGELU, ``x sigmoid(1.702 x)``, is ``silu(1.702 x) / 1.702``: the factors ride on the matrix products, one pass
    over the hidden layer remains of three, and the weights stay as they are.
    """

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACT2FN[activation]
        self.fc2 = nn.Linear(hidden, width)
        self.is_quick_gelu = activation == "quick_gelu"

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, T, D) one by one."""
        if self.is_quick_gelu and is_plain(self.fc1) and is_plain(self.fc2):
            hidden = _scaled_linear(self.fc1, tokens.flatten(0, -2), QUICK_GELU_SCALE, QUICK_GELU_SCALE)
            hidden = F.silu(hidden, inplace=not hidden.requires_grad)
            return _scaled_linear(self.fc2, hidden, 1 / QUICK_GELU_SCALE, 1).view(tokens.shape)
        return self.fc2(self.act(self.fc1(tokens)))


def _scaled_linear(linear: nn.Linear, rows: Tensor, weight_scale: float, bias_scale: float) -> Tensor:
    """Apply a linear layer to rows (M, D) as if its weight and bias were multiplied."""
    bias = linear.bias * bias_scale if bias_scale != 1 else linear.bias
    return torch.addmm(bias, rows, linear.weight.t(), alpha=weight_scale)


def is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Tell whether a layer may be read past its ``forward``: not quantised, adapted, offloaded or hooked."""
    return (
        type(linear) in (nn.Linear, ShardedLinear)
        and type(linear.weight) is nn.Parameter
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
        and "forward" not in linear.__dict__
    )


class TransformerBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block."""

    def __init__(
        self, config: PretrainedConfig, width: int, num_heads: int, hidden: int, activation: str, eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(config, width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden, activation)

    def forward(self, tokens: Tensor, num_updated: int | None = None) -> Tensor:
        """Update tokens (B, T, D), or only the first ``num_updated`` of them, which come back alone."""
        tokens = tokens[:, :num_updated] + self.attn(self.norm1(tokens), num_updated)
        return tokens + self.mlp(self.norm2(tokens))


class CortexBlock(TransformerBlock):
    """A block of the cortex, shaped like the teacher's: width, heads, activation and epsilon are the teacher's."""

    def __init__(self, config: SparseFormerConfig) -> None:
        super().__init__(
            config,
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            config.hidden_act,
            config.cortex_layer_norm_eps,
        )
