"""Training-free rivals: a LLaVA that reads a quarter of its own tower's tokens.

Letters: B pictures, M patches on a square grid in raster order, C tokens before them (CLS), D width.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.llava.host import find_llava, refuse_tiles
from sf_llava.llava.reading import strategy_of
from sf_llava.llava.tokens import check_processor, count_extra_tokens, count_patches, keep_fields

SIDE = 2  # of the squares of patches that leave one token
SEED = 0


def average_squares(patches: Tensor) -> Tensor:
    """Average patch tokens (B, M, D) over squares of 2 x 2, (B, M / 4, D)."""
    return F.avg_pool2d(_grid(patches), SIDE).flatten(2).transpose(1, 2)


def pick_evenly(patches: Tensor) -> Tensor:
    """Take the first of every square of 2 x 2 patch tokens (B, M, D), (B, M / 4, D)."""
    return _grid(patches)[:, :, ::SIDE, ::SIDE].flatten(2).transpose(1, 2)


def pick_at_random(patches: Tensor) -> Tensor:
    """Take a quarter of the patch tokens (B, M, D), in raster order, (B, M / 4, D): one draw for all pictures."""
    count = patches.shape[1]
    places = torch.randperm(count, generator=torch.Generator().manual_seed(SEED))[: count // SIDE**2]
    return patches[:, places.sort().values.to(patches.device)]


def _grid(patches: Tensor) -> Tensor:
    rows = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).unflatten(-1, (rows, rows))  # [B, D, rows, rows]


REDUCERS: dict[str, Callable[[Tensor], Tensor]] = {
    "pooled": average_squares,
    "uniform": pick_evenly,
    "random": pick_at_random,
}
"""By the name of the tower that reads through each."""


class ReducedTower(nn.Module):
    """A vision tower that leaves a quarter of its patch tokens; CLS, where there is one, stays.

    Args:
        tower: a ViT, as LLaVA holds it.
        num_patches: M, a square number.
        reducer: one of :data:`REDUCERS`.
    """

    def __init__(self, tower: nn.Module, num_patches: int, reducer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tower, self.num_patches, self.reducer = tower, num_patches, reducer

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        """Run the tower; its ``hidden_states`` are (B, C + M / 4, D), None where LLaVA asked for none."""
        outputs = self.tower(pixel_values, **options)
        states = outputs["hidden_states"]
        outputs["hidden_states"] = tuple(None if tokens is None else self._reduce(tokens) for tokens in states)
        return outputs

    def _reduce(self, tokens: Tensor) -> Tensor:
        """Reduce the last M of (B, C + M, D) tokens."""
        first, patches = tokens.split([tokens.shape[1] - self.num_patches, self.num_patches], dim=1)
        return torch.cat([first, self.reducer(patches)], dim=1)


@contextmanager
def reduced(model: LlavaForConditionalGeneration, processor: LlavaProcessor, kind: str) -> Iterator[None]:
    """Let ``model`` read a quarter of its visual tokens while the context is open, by a kind of :data:`REDUCERS`.

    Raises:
        ValueError: the patches do not divide into squares of 2 x 2, or cannot be counted, or a LLaVA with tiles.
    """
    model = find_llava(model, to_change=True)
    refuse_tiles(model, f"a tower of the kind {kind}")
    check_processor(processor)
    num_patches = count_patches(model.config.vision_config)
    rows = math.isqrt(num_patches)
    if rows % SIDE:
        raise ValueError(f"{rows} x {rows} patches do not divide into squares of {SIDE} x {SIDE}")
    tower, before = model.model.vision_tower, keep_fields(processor)
    processor.patch_size = model.config.vision_config.patch_size * SIDE
    processor.num_additional_image_tokens = count_extra_tokens(model)
    processor.vision_feature_select_strategy = strategy_of(model.config)
    model.model.vision_tower = ReducedTower(tower, num_patches, REDUCERS[kind])
    try:
        yield
    finally:
        model.model.vision_tower = tower
        for name, value in before.items():
            setattr(processor, name, value)
