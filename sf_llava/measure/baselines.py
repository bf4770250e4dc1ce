"""Fewer tokens inside a teacher: average pooling, ToMe, DiffRate (sf_llava/reduction), all of which keep CLS.

Off the shelf, without training; ``tuned.py`` gives the latter two blocks of their own, to be trained.

Letters: B images, T tokens (CLS first), M patches, N tokens that stay (CLS not counted), D width, A heads.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from sf_llava.measure.encoders import Candidate
from sf_llava.reduction.diffrate import Schedule, constant_rates, prune_and_merge
from sf_llava.reduction.grids import average_cells
from sf_llava.reduction.tome import match, merge
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

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed (B, 3, S, S) pixels: (B, E), not normalised."""
        tokens = self.run_blocks(self.teacher.embed(pixel_values.to(self.teacher.dtype)))
        return self.teacher.embed_cls(tokens[:, 0].to(self.teacher.dtype))  # blocks of its own may be in another


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


class CompressedTeacher(ReducedTeacher):
    """Fewer tokens in every block, between attention and MLP, by attention that counts what each token stands for.

    Attributes:
        blocks: of its own, one for each of the teacher's, where they are to be tuned; None where it runs the teacher's.
    """

    def __init__(self, teacher: Teacher, num_tokens: int) -> None:
        super().__init__(teacher, num_tokens)
        self.blocks: nn.ModuleList | None = None

    def compress(self, index: int, tokens: Tensor, sizes: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Leave fewer tokens in one block; a subclass says which.

        Args:
            index: of the block.
            tokens: (B, T, D) behind its attention.
            sizes: (B, T).
            query, key: (B, A, T, D / A) of it.

        Returns:
            Fewer tokens, CLS first, and their sizes.
        """
        raise NotImplementedError

    def run_blocks(self, tokens: Tensor) -> Tensor:
        if self.blocks is not None:  # trained in float32, whatever the teacher is in
            tokens = tokens.to(next(self.blocks.parameters()).dtype)
        sizes = tokens.new_ones(tokens.shape[:2])
        for index in range(self.teacher.num_hidden_layers):
            tokens, sizes = self._run_block(index, tokens, sizes)
        return tokens

    def _weights(self, index: int) -> Mapping[str, Tensor]:
        """Give a block's weights under their canonical names."""
        if self.blocks is None:
            return self.teacher.block_state_dict(index)
        return dict(self.blocks[index].named_parameters())

    def _run_block(self, index: int, tokens: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        block = self._weights(index)

        def layer(name: str, x: Tensor) -> Tensor:
            weight, bias = block[f"{name}.weight"], block[f"{name}.bias"]
            if name.startswith("norm"):
                return F.layer_norm(x, x.shape[-1:], weight, bias, self.teacher.layer_norm_eps)
            return F.linear(x, weight, bias)

        heads = self.teacher.num_attention_heads
        qkv = layer("attn.qkv", layer("norm1", tokens)).unflatten(-1, (3, heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B, A, T, D / A]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=sizes.log()[:, None, None])
        tokens = tokens + layer("attn.proj", attended.transpose(1, 2).flatten(-2))
        tokens, sizes = self.compress(index, tokens, sizes, query, key)
        activation = ACT2FN[self.teacher.hidden_act]
        return tokens + layer("mlp.fc2", activation(layer("mlp.fc1", layer("norm2", tokens)))), sizes


class MergedTeacher(CompressedTeacher):
    """Merge the most similar tokens a little in every block, as ToMe does.

    Unlike ToMe's constant number, a constant share of the tokens is merged in every block, so that any N is reached.
    """

    def left(self, index: int) -> int:
        """How many tokens are left beside CLS behind a block."""
        share = (index + 1) / self.teacher.num_hidden_layers
        return round(self.teacher.num_patches * (self.num_tokens / self.teacher.num_patches) ** share)

    def compress(self, index: int, tokens: Tensor, sizes: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        num_merged = tokens.shape[1] - 1 - self.left(index)
        return (
            merge(match(key.mean(dim=1), num_merged, keep_first=True), tokens, sizes) if num_merged else (tokens, sizes)
        )


class ToMeTeacher(MergedTeacher):
    """Merge a constant number of tokens in every block, with proportional attention: ToMe as published (Sec. 3).

    Args:
        teacher: any teacher with CLS.
        num_merged: r, tokens merged in a block; where fewer than 2 r are left beside CLS, half of them.
    """

    def __init__(self, teacher: Teacher, num_merged: int) -> None:
        if num_merged < 1:
            raise ValueError(f"ToMe merges at least one token in a block, not {num_merged}")
        counts = [teacher.num_patches]
        for _ in range(teacher.num_hidden_layers):
            counts.append(counts[-1] - min(num_merged, counts[-1] // 2))
        super().__init__(teacher, counts[-1])
        self.counts = counts

    def left(self, index: int) -> int:
        return self.counts[index + 1]


class DiffRateTeacher(CompressedTeacher):
    """Prune and merge by class attention, with rates given for every block: DiffRate's inference.

    Args:
        teacher: any teacher with CLS.
        schedule: tokens kept in each of its blocks.
    """

    def __init__(self, teacher: Teacher, schedule: Schedule) -> None:
        depths = {len(schedule.pruned), len(schedule.merged), teacher.num_hidden_layers}
        if len(depths) > 1 or min(*schedule.pruned, *schedule.merged) < 2:
            raise ValueError(
                f"expected for each of {teacher.name}'s {teacher.num_hidden_layers} blocks how many tokens are kept, "
                f"CLS and at least one more, not {schedule}"
            )
        super().__init__(teacher, min(*schedule.pruned, *schedule.merged, teacher.num_tokens) - 1)
        self.schedule = schedule

    def compress(self, index: int, tokens: Tensor, sizes: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        scores = query[:, :, :1] @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + sizes.log()[:, None, None]
        attention = scores.softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)
        return prune_and_merge(tokens, sizes, attention, self.schedule.pruned[index], self.schedule.merged[index])


REDUCTIONS = ("tome", "diffrate")


def reduce_teacher(teacher: Teacher, name: str) -> CompressedTeacher:
    """Take R tokens away in every block of a teacher.

    Args:
        teacher: any teacher with CLS.
        name: ``tome:R``, or ``diffrate:R``, which prunes half of them and merges the other half; rates that were
            searched are for :class:`DiffRateTeacher`.

    Raises:
        ValueError: another name, or a teacher without CLS.
    """
    kind, _, count = name.partition(":")
    if kind not in REDUCTIONS or not count.isdecimal() or int(count) < 1:
        raise ValueError(f"unknown reduction {name!r}; expected tome:R or diffrate:R, R tokens fewer in every block")
    if kind == "tome":
        return ToMeTeacher(teacher, int(count))
    return DiffRateTeacher(teacher, constant_rates(teacher.num_tokens, teacher.num_hidden_layers, int(count)))


def pool_tokens(tokens: Tensor, num_tokens: int) -> Tensor:
    """Average (B, 1 + M, D) tokens, CLS apart, over the cells of the most square grid of N: (B, 1 + N, D)."""
    return torch.cat([tokens[:, :1], average_cells(tokens[:, 1:], num_tokens).tokens], dim=1)


def reduced_candidate(name: str, module: ReducedTeacher) -> Candidate:
    """Compare a reduced teacher with its students."""
    teacher = module.teacher

    def read(embeds: Tensor) -> tuple[Tensor, Tensor | None]:
        return embeds, teacher.classify(embeds) if teacher.num_classes else None

    about = module.num_tokens, teacher.num_parameters(), True, name.partition(":")[0]
    return Candidate(name, module, read, teacher.preprocessing, *about)
