"""Speed of the encoders of an evaluation, in turn on one batch: what ``zero-shot`` shows beside accuracy on demand."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from sf_llava.benchmark.timing import interleave
from sf_llava.measure.encoders import Candidate

REPEATS = 20


def time_candidates(candidates: Sequence[Candidate], batch_sizes: Sequence[int], repeats: int = REPEATS) -> list[Any]:
    """Time the forward pass of every encoder, logits included, on noise: round by round, so that all share slow spells.

    Args:
        candidates: on one device, with names that differ.
        batch_sizes: pictures of a pass.
        repeats: passes of each, after two that are not counted.

    Returns:
        For each encoder by batch size (as text): ``images_per_second`` by the median, ``seconds``, ``spread`` and
        ``repetitions`` as of :class:`sf_llava.benchmark.timing.Timing`.
    """
    found: list[Any] = [{} for _ in candidates]
    for batch_size in batch_sizes:
        with torch.inference_mode():
            passes: dict[str, Callable[[], object]] = {
                one.name: partial(one, _pixels(one, batch_size)) for one in candidates
            }
            timings = interleave(passes, _place(candidates[0]).device.type, repeats)
        for own, one in zip(found, candidates, strict=True):
            timing = timings[one.name]
            own[str(batch_size)] = {"images_per_second": batch_size / timing.median} | timing.to_dict()
    return found


def _place(candidate: Candidate) -> torch.Tensor:
    return next(candidate.module.parameters())


def _pixels(candidate: Candidate, batch_size: int) -> torch.Tensor:
    side, weight = candidate.preprocessing.image_size, _place(candidate)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, 3, side, side, generator=generator).to(weight.device, weight.dtype)
