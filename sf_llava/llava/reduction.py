"""Training-free rivals: a LLaVA that reads fewer of its own tower's tokens.

What a reduction looks at besides the tokens is taken from the tower as it runs: a hook on the projections of queries
and keys in the block that gave the tokens, and in the one behind it, which reads them.

Letters: B pictures, M patches on a square grid in raster order, C tokens before them (CLS), N tokens that stay, D
width, A heads, W width of the LLM.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.llava.host import find_llava, refuse_tiles
from sf_llava.llava.reading import boxes_of, reading_of, strategy_of
from sf_llava.llava.tokens import check_processor, count_extra_tokens, count_patches, keep_fields, show_nothing
from sf_llava.reduction import Reduced
from sf_llava.reduction.grids import average_cells, pick_at_random, pick_evenly
from sf_llava.reduction.reduced import check_count
from sf_llava.reduction.selection import pick_diverse, prune_and_merge, zip_tokens
from sf_llava.reduction.tome import merge_behind

Projected = dict[str, Tensor]
PROJECTIONS = ("q_proj", "k_proj")


@dataclass(frozen=True)
class View:
    """What a reduction may look at.

    Attributes:
        patches: (B, M, D) of the hidden state that the LLaVA reads.
        num_first: C.
        num_heads: A.
        giving, behind: ``q_proj`` and ``k_proj``, (B, C + M, D), of the block that gave this state and of the one that
            reads it.
        projector: of the LLaVA.
    """

    patches: Tensor
    num_first: int
    num_heads: int
    giving: Projected
    behind: Projected
    projector: nn.Module

    @property
    def keys(self) -> Tensor:
        """(B, M, D / A) averaged over heads, of the block that gave the state."""
        return self.giving["k_proj"][:, self.num_first :].unflatten(-1, (self.num_heads, -1)).mean(dim=2)

    @property
    def attention(self) -> Tensor:
        """(B, M) float32, from CLS in the block that gave the state, or from all patches where there is no CLS."""
        return _attention(self.giving, self.num_first, self.num_heads)

    @property
    def keys_behind(self) -> Tensor:
        """(B, M, D), all heads beside each other, of the block that reads the state."""
        return self.behind["k_proj"][:, self.num_first :]

    @property
    def cls_attention_behind(self) -> Tensor:
        """(B, M) float32, from CLS in the block that reads the state, all heads as one.

        Raises:
            ValueError: the tower has no CLS.
        """
        if not self.num_first:
            raise ValueError("prumerge follows what CLS attends to, and this LLaVA's tower has no CLS: take visionzip")
        return _attention(self.behind, self.num_first, 1)

    @property
    def features(self) -> Tensor:
        """(B, M, W) behind the LLaVA's projector."""
        return self.projector(self.patches)


def _attention(projected: Projected, num_first: int, num_heads: int) -> Tensor:
    """Average attention to the patches over heads, and over patches where no CLS asks: (B, M)."""
    queries, keys = (projected[name].float().unflatten(-1, (num_heads, -1)).transpose(1, 2) for name in PROJECTIONS)
    queries = queries[:, :, :1] if num_first else queries
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5  # [B, A, 1 or M, C + M]
    return scores.softmax(dim=-1).mean(dim=(1, 2))[:, num_first:]


REDUCERS: dict[str, Callable[[View, int], Reduced]] = {
    "pooled": lambda view, count: average_cells(view.patches, count),
    "uniform": lambda view, count: pick_evenly(view.patches, count),
    "random": lambda view, count: pick_at_random(view.patches, count),
    "tome": lambda view, count: merge_behind(view.patches, view.keys, count),
    "visionzip": lambda view, count: zip_tokens(view.patches, view.keys, view.attention, count),
    "divprune": lambda view, count: pick_diverse(view.patches, view.features, count),
    "prumerge": lambda view, count: prune_and_merge(view.patches, view.keys_behind, view.cls_attention_behind, count),
}
"""By the name of the tower that reads through each."""


class ReducedTower(nn.Module):
    """A vision tower that leaves fewer of its patch tokens; CLS, where there is one, stays.

    Args:
        model: a LLaVA with a ViT.
        kind: one of :data:`REDUCERS`.
        num_tokens: N.

    Raises:
        ValueError: the patches cannot be counted or become so many, or the LLaVA reads several layers.
    """

    def __init__(self, model: LlavaForConditionalGeneration, kind: str, num_tokens: int) -> None:
        super().__init__()
        config = model.config.vision_config
        self.kind, self.num_tokens, self.num_patches = kind, num_tokens, count_patches(config)
        check_count(self.num_patches, num_tokens)
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        self.num_heads, blocks = config.num_attention_heads, config.num_hidden_layers
        self.layer = reading_of(model).layer % (blocks + 1)
        self.giving, self.behind = max(self.layer - 1, 0), min(self.layer, blocks - 1)

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        """Run the tower.

        Returns:
            Its outputs, with ``hidden_states`` (B, C + N, D) at the layer that the LLaVA reads, None at others, and
            ``rois`` (B, 1, N, 4), the patches that the tokens stand on, corners as image fractions.
        """
        options["output_hidden_states"] = True
        with ExitStack() as stack:
            giving, behind = (
                stack.enter_context(_projections(self.tower, index)) for index in (self.giving, self.behind)
            )
            outputs = self.tower(pixel_values, **options)
        state = outputs["hidden_states"][self.layer]
        first, patches = state.split([state.shape[1] - self.num_patches, self.num_patches], dim=1)
        view = View(patches, first.shape[1], self.num_heads, giving, behind, self.projector)
        tokens, places = REDUCERS[self.kind](view, self.num_tokens)
        states: list[Tensor | None] = [None] * len(outputs["hidden_states"])
        states[self.layer] = torch.cat([first, tokens], dim=1)
        outputs["hidden_states"] = tuple(states)
        outputs["rois"] = boxes_of(places, self.num_patches)[:, None]
        return outputs


class _Missing(dict[str, Tensor]):
    """Projections by name; says what is missing where the tower has none."""

    def __missing__(self, name: str) -> Tensor:
        raise ValueError(
            f"this reduction reads queries and keys, but the vision tower has no self_attn.{name} in its blocks: take "
            "pooled, uniform, random or divprune"
        )


@contextmanager
def _projections(tower: nn.Module, index: int) -> Iterator[Projected]:
    """Keep what the projections of queries and keys in one block of a tower of transformers give, while it runs."""
    taken = _Missing()

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: taken.update({name: output})

    handles = [
        module.register_forward_hook(keep(path.rpartition(".")[2]))
        for path, module in tower.named_modules()
        if path.endswith(tuple(f"layers.{index}.self_attn.{name}" for name in PROJECTIONS))
    ]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def reduced(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, kind: str, num_tokens: int | None = None
) -> Iterator[None]:
    """Let ``model`` read fewer of its visual tokens while the context is open.

    Args:
        model: a LLaVA with a ViT.
        processor: its processor.
        kind: one of :data:`REDUCERS`.
        num_tokens: N; default: a quarter.

    Raises:
        ValueError: the tower lacks what this kind looks at, its patches cannot be counted or become so many, or the
            LLaVA reads several layers or tiles.
    """
    model = find_llava(model, to_change=True)
    refuse_tiles(model, f"a tower of the kind {kind}")
    check_processor(processor)
    config, tower = model.config.vision_config, model.model.vision_tower
    num_tokens = max(count_patches(config) // 4, 1) if num_tokens is None else num_tokens
    fewer, extra = ReducedTower(model, kind, num_tokens), count_extra_tokens(model)
    before = keep_fields(processor)
    processor.patch_size = config.image_size  # one token, the others are additional ones (tokens.py)
    processor.num_additional_image_tokens = num_tokens + extra - 1
    processor.vision_feature_select_strategy = strategy_of(model.config)
    model.model.vision_tower = fewer
    try:
        show_nothing(model)  # or raise now, not at the first question
        yield
    finally:
        model.model.vision_tower = tower
        for name, value in before.items():
            setattr(processor, name, value)
