"""The towers that a LLaVA is compared through: its own, its own with fewer tokens, and SparseFormers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.configuration import SparseFormerConfig
from sf_llava.llava.host import find_llava
from sf_llava.llava.reduction import REDUCERS, reduced
from sf_llava.llava.swapping import swapped
from sf_llava.llava.tokens import complete_processor, count_patches

ORIGINAL, POOLED, SWAPPED = "original", "pooled", "swapped"
KINDS = (ORIGINAL, *REDUCERS, SWAPPED)
"""Of towers: its own, its own with fewer tokens (see reduction.py), a SparseFormer."""


@dataclass(frozen=True)
class Tower:
    """A tower to ask a LLaVA through.

    Attributes:
        kind: one of ``KINDS``.
        encoder: where a ``SWAPPED`` tower lies: the directory of an encoder or of its run.
        positions_and_bias: whether the LLM reads what takes the place of its tower's patches by RoI centre and with
            the attention bias; not for ``ORIGINAL``.
        num_tokens: N of a ``SWAPPED`` tower that is elastic, or of one with fewer tokens; None for its own latents,
            or a quarter of the patches.
    """

    kind: str
    encoder: Path | None = None
    positions_and_bias: bool = False
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown tower {self.kind!r}; known: {', '.join(KINDS)}")
        if (self.encoder is None) == (self.kind == SWAPPED):
            raise ValueError(f"an encoder is for a {SWAPPED} tower, which needs one")
        if self.kind == ORIGINAL and (self.positions_and_bias or self.num_tokens is not None):
            raise ValueError(
                f"the {ORIGINAL} tower has all its tokens in their places: positions_and_bias and num_tokens are for "
                "the others"
            )

    @property
    def where(self) -> str:
        """What names it in settings: the encoder's directory, or the kind, with N where it is not a quarter."""
        if self.encoder is not None:
            return str(self.encoder)
        return self.kind if self.num_tokens is None else f"{self.kind}-{self.num_tokens}"


@contextmanager
def tower_in_place(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, tower: Tower | str | Path
) -> Iterator[int | None]:
    """Let a model look through another tower while the context is open.

    Args:
        model: a LLaVA with its own tower.
        processor: its processor; what an old one lacks is filled in.
        tower: a tower, or for short a kind of one, or the directory of an encoder or its run.

    Returns:
        Yields M, the patches of the model's own tower; None where that is a SparseFormer.

    Raises:
        ValueError: an encoder that does not fit, a model whose own tower is a SparseFormer already, or a LLaVA that
            cuts pictures into tiles for a tower with a quarter of its own tokens.
    """
    if not isinstance(tower, Tower):
        tower = Tower(tower) if tower in (ORIGINAL, *REDUCERS) else Tower(SWAPPED, Path(tower))
    model = find_llava(model)
    if isinstance(model.config.vision_config, SparseFormerConfig):
        if tower.kind != ORIGINAL:
            raise ValueError("this LLaVA has a SparseFormer for its own tower: it can only be asked through that one")
        complete_processor(model, processor)
        yield None
        return
    num_patches = count_patches(model.config.vision_config)
    if tower.kind == ORIGINAL:
        complete_processor(model, processor)
        yield num_patches
    elif tower.kind in REDUCERS:
        with reduced(model, processor, tower.kind, tower.num_tokens):
            yield num_patches
    else:
        assert tower.encoder is not None, "a swapped tower has an encoder"
        with swapped(model, processor, tower.encoder, tower.num_tokens):
            yield num_patches
