"""Fewer tokens without training: average pooling of a teacher's tokens, and merging as in ToMe.

Token Merging: Your ViT But Faster (ICLR 2023). Both keep CLS, and end with as many tokens as a student has latents.
Letters: B images, T tokens (CLS first), M patches, N tokens that stay (CLS not counted), D width, A heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from sf_llava.measure.encoders import Candidate
from sf_llava.teachers.base import Teacher


class ReducedTeacher(nn.Module):
    """A teacher whose patch tokens become fewer on their way; a subclass says how.

    Args:
        teacher: any teacher.
        num_tokens: N.
    """

    def __init__(self, teacher: Teacher, num_tokens: int) -> None:
        super().__init__()
        if not teacher.use_cls or teacher.num_registers:
            raise ValueError(
                f"{teacher.name} cannot be given fewer tokens here: expected CLS and patches, no registers"
            )
        if not 1 <= num_tokens <= teacher.num_patches:
            raise ValueError(f"{teacher.name} has {teacher.num_patches} patches, which cannot become {num_tokens}")
        self.teacher = teacher
        self.num_tokens = num_tokens

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """Run all blocks on (B, 1 + M, D) tokens: (B, 1 + N, D)."""
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed (B, 3, S, S) pixels: (B, E), not normalised."""
        tokens = self.run_blocks(self.teacher.embed(pixel_values.to(self.teacher.dtype)))
        return self.teacher.embed_cls(tokens[:, 0])


class PooledTeacher(ReducedTeacher):
    """Average neighbouring patch tokens in front of one block.

    Args:
        teacher, num_tokens: as above.
        block: 0 pools what enters the first block; a third of the depth pools where a student's cortex begins.
    """

    def __init__(self, teacher: Teacher, num_tokens: int, block: int = 0) -> None:
        super().__init__(teacher, num_tokens)
        self.block = block

    def run_blocks(self, tokens: Tensor) -> Tensor:
        for index in range(self.teacher.num_hidden_layers):
            if index == self.block:
                tokens = pool_tokens(tokens, self.num_tokens)
            tokens = self.teacher.run_block(index, tokens)
        return tokens


class MergedTeacher(ReducedTeacher):
    """Merge the most similar tokens a little in every block, between attention and MLP (ToMe).

    Unlike ToMe's constant number, a constant share of the tokens is merged in every block, so that any N is reached.
    """

    def run_blocks(self, tokens: Tensor) -> Tensor:
        teacher, depth = self.teacher, self.teacher.num_hidden_layers
        sizes = tokens.new_ones(tokens.shape[:2])
        patches = tokens.shape[1] - 1
        for index in range(depth):
            left = round(patches * (self.num_tokens / patches) ** ((index + 1) / depth))
            tokens, sizes = self._run_block(teacher.block_state_dict(index), tokens, sizes, left)
        return tokens

    def _run_block(self, block: dict[str, Tensor], tokens: Tensor, sizes: Tensor, left: int) -> tuple[Tensor, Tensor]:
        def layer(name: str, x: Tensor) -> Tensor:
            weight, bias = block[f"{name}.weight"], block[f"{name}.bias"]
            if name.startswith("norm"):
                return F.layer_norm(x, x.shape[-1:], weight, bias, self.teacher.layer_norm_eps)
            return F.linear(x, weight, bias)

        heads = self.teacher.num_attention_heads
        qkv = layer("attn.qkv", layer("norm1", tokens)).unflatten(-1, (3, heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B, A, T, D / A]
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + sizes.log()[:, None, None]
        attended = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(-2)
        tokens = tokens + layer("attn.proj", attended)
        tokens, sizes = merge_tokens(tokens, sizes, key.mean(dim=1), left)
        activation = ACT2FN[self.teacher.hidden_act]
        return tokens + layer("mlp.fc2", activation(layer("mlp.fc1", layer("norm2", tokens)))), sizes


def pool_tokens(tokens: Tensor, num_tokens: int) -> Tensor:
    """Average (B, 1 + M, D) tokens, CLS apart, over the cells of the most square grid of N: (B, 1 + N, D)."""
    side = math.isqrt(tokens.shape[1] - 1)
    rows = max(rows for rows in range(1, math.isqrt(num_tokens) + 1) if num_tokens % rows == 0)
    grid = tokens[:, 1:].transpose(1, 2).unflatten(-1, (side, side))  # [B, D, side, side]
    pooled = F.adaptive_avg_pool2d(grid, (rows, num_tokens // rows)).flatten(2).transpose(1, 2)
    return torch.cat([tokens[:, :1], pooled], dim=1)


def merge_tokens(tokens: Tensor, sizes: Tensor, keys: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Merge tokens by bipartite soft matching until ``left`` are left beside CLS.

    Every second token looks for its most similar one among the others; the most similar pairs become one token, the
    average weighted by how many patches each stands for.

    Args:
        tokens: (B, T, D), CLS first; CLS is never merged.
        sizes: (B, T), patches that each token stands for.
        keys: (B, T, D / A), by whose cosine tokens are compared.
        left: tokens that stay; at least half of T.

    Returns:
        (B, 1 + left, D) tokens, CLS first, and their (B, 1 + left) sizes.
    """
    num_merged = tokens.shape[1] - 1 - left
    if num_merged == 0:
        return tokens, sizes
    keys = F.normalize(keys, dim=-1)
    scores = keys[:, ::2] @ keys[:, 1::2].transpose(-1, -2)  # [B, T / 2, T / 2]
    scores[:, 0] = -torch.inf  # CLS
    best, partner = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    merged, kept = order[:, :num_merged], order[:, num_merged:].sort(dim=-1).values
    partner = partner.gather(1, merged)  # [B, merged]
    weighted = torch.cat([tokens * sizes[..., None], sizes[..., None]], dim=-1)  # [B, T, D + 1]
    source, target = weighted[:, ::2], weighted[:, 1::2]
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    target = target.index_put((rows, partner), source[rows, merged], accumulate=True)
    both = torch.cat([source[rows, kept], target], dim=1)
    return both[..., :-1] / both[..., -1:], both[..., -1]


def reduced_candidate(name: str, module: ReducedTeacher) -> Candidate:
    """Compare a reduced teacher with its students."""
    teacher = module.teacher

    def read(embeds: Tensor) -> tuple[Tensor, Tensor | None]:
        return embeds, teacher.classify(embeds) if teacher.num_classes else None

    return Candidate(name, module, read, teacher.preprocessing, module.num_tokens, teacher.num_parameters())
