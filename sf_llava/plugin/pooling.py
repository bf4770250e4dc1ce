"""The training-free rival: a LLaVA that reads its own tower's tokens averaged over squares of patches."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor


class PooledTower(nn.Module):
    """A vision tower whose hidden states have their patch tokens averaged in squares; CLS stays.

    Args:
        tower: a CLIP vision model, as LLaVA holds it.
        side: patches along a square's side (2 leaves a quarter of the tokens).
    """

    def __init__(self, tower: nn.Module, side: int) -> None:
        super().__init__()
        self.tower, self.side = tower, side

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        """Run the tower; its ``hidden_states`` are (B, 1 + M / side^2, D), None where LLaVA asked for none."""
        outputs = self.tower(pixel_values, **options)
        states = outputs["hidden_states"]
        outputs["hidden_states"] = tuple(None if tokens is None else self._pool(tokens) for tokens in states)
        return outputs

    def _pool(self, tokens: Tensor) -> Tensor:
        """Pool (B, 1 + M, D) tokens."""
        cls, patches = tokens.split([1, tokens.shape[1] - 1], dim=1)
        rows = math.isqrt(patches.shape[1])
        squares = F.avg_pool2d(patches.transpose(1, 2).unflatten(-1, (rows, rows)), self.side)
        return torch.cat([cls, squares.flatten(2).transpose(1, 2)], dim=1)


@contextmanager
def pooled(model: LlavaForConditionalGeneration, processor: LlavaProcessor, side: int = 2) -> Iterator[None]:
    """Average ``model``'s visual tokens over ``side`` x ``side`` patches while the context is open.

    Raises:
        ValueError: the patches do not divide into such squares.
    """
    tower, config = model.model.vision_tower, model.config.vision_config
    patches = config.image_size // config.patch_size
    if side < 1 or patches % side:
        raise ValueError(f"{patches} x {patches} patches do not divide into squares of {side} x {side}")
    patch_size, processor.patch_size = processor.patch_size, processor.patch_size * side
    model.model.vision_tower = PooledTower(tower, side)
    try:
        yield
    finally:
        model.model.vision_tower, processor.patch_size = tower, patch_size
