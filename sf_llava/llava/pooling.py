"""The training-free rival: a LLaVA that reads its own tower's tokens averaged over squares of patches."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.llava.host import find_llava
from sf_llava.llava.tokens import PROCESSOR_FIELDS, check_processor, count_extra_tokens, count_patches


class PooledTower(nn.Module):
    """A vision tower whose hidden states have their patch tokens averaged in squares; CLS, where there is one, stays.

    Args:
        tower: a ViT, as LLaVA holds it.
        num_patches: M, a square number.
        side: patches along a square's side (2 leaves a quarter of the tokens).
    """

    def __init__(self, tower: nn.Module, num_patches: int, side: int) -> None:
        super().__init__()
        self.tower, self.num_patches, self.side = tower, num_patches, side

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        """Run the tower; its ``hidden_states`` are (B, C + M / side^2, D), None where LLaVA asked for none."""
        outputs = self.tower(pixel_values, **options)
        states = outputs["hidden_states"]
        outputs["hidden_states"] = tuple(None if tokens is None else self._pool(tokens) for tokens in states)
        return outputs

    def _pool(self, tokens: Tensor) -> Tensor:
        """Pool the last M of (B, C + M, D) tokens."""
        first, patches = tokens.split([tokens.shape[1] - self.num_patches, self.num_patches], dim=1)
        rows = math.isqrt(self.num_patches)
        squares = F.avg_pool2d(patches.transpose(1, 2).unflatten(-1, (rows, rows)), self.side)
        return torch.cat([first, squares.flatten(2).transpose(1, 2)], dim=1)


@contextmanager
def pooled(model: LlavaForConditionalGeneration, processor: LlavaProcessor, side: int = 2) -> Iterator[None]:
    """Average ``model``'s visual tokens over ``side`` x ``side`` patches while the context is open.

    Raises:
        ValueError: the patches do not divide into such squares, or cannot be counted.
    """
    model = find_llava(model, to_change=True)
    check_processor(processor)
    num_patches = count_patches(model.config.vision_config)
    patches = math.isqrt(num_patches)
    if side < 1 or patches % side:
        raise ValueError(f"{patches} x {patches} patches do not divide into squares of {side} x {side}")
    tower, before = model.model.vision_tower, {name: getattr(processor, name) for name in PROCESSOR_FIELDS}
    processor.patch_size = model.config.vision_config.patch_size * side
    processor.num_additional_image_tokens = count_extra_tokens(model)
    processor.vision_feature_select_strategy = model.config.vision_feature_select_strategy
    model.model.vision_tower = PooledTower(tower, num_patches, side)
    try:
        yield
    finally:
        model.model.vision_tower = tower
        for name, value in before.items():
            setattr(processor, name, value)
