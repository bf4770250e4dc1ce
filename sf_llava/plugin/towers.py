"""The towers that a LLaVA is compared through: its own, its own with fewer tokens, and SparseFormers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava.configuration import SparseFormerConfig
from sf_llava.plugin.pooling import pooled
from sf_llava.plugin.positions import count_patches
from sf_llava.plugin.swapping import restore, swap

ORIGINAL, POOLED, SWAPPED = "original", "pooled", "swapped"


@contextmanager
def tower_in_place(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, tower: str | Path
) -> Iterator[int | None]:
    """Let a model look through another tower while the context is open.

    Args:
        model: a LLaVA with its own tower.
        processor: its processor.
        tower: ``ORIGINAL``, ``POOLED`` (averaged over 2 x 2 patches), or the directory of an encoder or its run.

    Returns:
        Yields M, the patches of the model's own tower; None where that is a SparseFormer.

    Raises:
        ValueError: an encoder that does not fit, or a model whose own tower is a SparseFormer already.
    """
    if isinstance(model.config.vision_config, SparseFormerConfig):
        if tower != ORIGINAL:
            raise ValueError("this LLaVA has a SparseFormer for its own tower: it can only be asked through that one")
        yield None
        return
    num_patches = count_patches(model.config.vision_config)
    if tower == ORIGINAL:
        yield num_patches
    elif tower == POOLED:
        with pooled(model, processor):
            yield num_patches
    else:
        swapped = swap(model, processor, tower)
        try:
            yield num_patches
        finally:
            restore(swapped)
