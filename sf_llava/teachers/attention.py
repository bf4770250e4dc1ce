"""What CLS attends to in a transformer block, or attention pooling to its tokens, of teachers and students alike.

``sf_llava.visualize`` draws it. Letters: B images, T tokens (CLS first where there is one), D width, A heads.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def cls_attention(tokens: Tensor, block: Mapping[str, Tensor], num_heads: int, eps: float) -> Tensor:
    """Say how much CLS attends to every other token in a transformer block, averaged over the heads.

    Args:
        tokens: (B, T, D) input of the block, CLS first.
        block: the block's weights under their canonical names (``norm1.weight``, ``attn.qkv.weight``, ...).
        num_heads: A.
        eps: of the block's layer norms.

    Returns:
        (B, T - 1), summing to 1 over the tokens.
    """
    tokens = torch.layer_norm(tokens, tokens.shape[-1:], block["norm1.weight"], block["norm1.bias"], eps)
    qkv = torch.nn.functional.linear(tokens, block["attn.qkv.weight"], block["attn.qkv.bias"])
    query, key, _ = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, A, T, D / A]
    scores = torch.einsum("bad,batd->bat", query[:, :, 0], key[:, :, 1:])
    return (scores.float() * query.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)


def pooling_attention(tokens: Tensor, head: Mapping[str, Tensor], num_heads: int, eps: float) -> Tensor:
    """Say how much attention pooling attends to every token, averaged over the heads.

    Args:
        tokens: (B, T, D) output of the last block.
        head: ``norm.*``, ``pool.query`` and ``pool.kv.*``, of a student's state dict or a teacher's head.
        num_heads: A.
        eps: of the norm.

    Returns:
        (B, T), summing to 1 over the tokens.
    """
    tokens = torch.layer_norm(tokens, tokens.shape[-1:], head["norm.weight"], head["norm.bias"], eps)
    keys, _ = torch.nn.functional.linear(tokens, head["pool.kv.weight"], head["pool.kv.bias"]).chunk(2, dim=-1)
    key, query = keys.unflatten(-1, (num_heads, -1)), head["pool.query"].unflatten(0, (num_heads, -1))
    scores = torch.einsum("ad,btad->bat", query, key)
    return (scores.float() * query.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
