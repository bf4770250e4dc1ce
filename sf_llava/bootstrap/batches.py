"""Training batches: which images a process sees at which step, in micro-batches, from any step on.

Letters: B images, K questions, S pixels a side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from sf_llava.bootstrap.views import View, ViewedImages, collate_views
from sf_llava.data.bootstrap_images import BootstrapImages, collate
from sf_llava.data.loading import processes_of, watch
from sf_llava.data.sampler import BootstrapSampler
from sf_llava.data.streaming import BootstrapStream


class Batch(NamedTuple):
    """What a process sees at once.

    Attributes:
        pixel_values: (B + K, 3, S, S) float32, the images, and behind them the pictures of questions.
        images: (B,) int64, which images.
        questions: (K,) int64, which questions; none where no LLM is asked.
        skipped: one line for every unreadable picture that another stands for.
        views: of the images, and of the pictures of questions where there are any; empty where nobody asks.
    """

    pixel_values: Tensor
    images: Tensor
    questions: Tensor
    skipped: list[str]
    views: Sequence[Sequence[View]] = ()


@dataclass(frozen=True)
class Loading:
    """How images are read: the seed of their order, processes that decode, parts of a step, and whether with views."""

    seed: int
    workers: int
    parts: int
    with_views: bool = False


@dataclass(frozen=True)
class MicroBatches:
    """A batch sampler that hands out every batch of another one in equal parts."""

    sampler: BootstrapSampler
    size: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.sampler:
            yield from (batch[start : start + self.size] for start in range(0, len(batch), self.size))


def batches(
    images: BootstrapImages | BootstrapStream,
    batch_size: int,
    asked: tuple[BootstrapImages, int] | None,
    loading: Loading,
    accelerator: Accelerator,
    step: int,
) -> Iterator[Batch]:
    """Give this process's endless micro-batches from ``step`` on, on the device.

    Args:
        images: training images.
        batch_size: of them in one optimiser step, over all processes.
        asked: pictures of questions, and how many of them in one step, where a LLM is asked.
        loading: how they are read.
        accelerator: gives this process's place and device.
        step: where to start.

    Raises:
        ValueError: a batch has no equal parts.
        LoadingError: (from the iterator) data loading processes died or stand still.
    """
    sets = [(images, batch_size), *([asked] if asked else [])]
    loaders = [_micro_batches(pictures, size, loading, accelerator, step) for pictures, size in sets]
    return _join(loaders, images, accelerator.device)


def _join(
    loaders: list[Iterator[dict[str, Any]]], images: BootstrapImages | BootstrapStream, device: torch.device
) -> Iterator[Batch]:
    for batch, *questions in zip(*loaders, strict=True):
        pixels = [part["pixels"].to(device, non_blocking=True) for part in (batch, *questions)]
        yield Batch(
            images.normalise(torch.cat(pixels) if questions else pixels[0]),
            batch["index"],
            questions[0]["index"] if questions else torch.empty(0, dtype=torch.int64),
            [line for part in (batch, *questions) for line in part["skipped"]],
            [part["views"] for part in (batch, *questions) if "views" in part],
        )


def _micro_batches(
    images: BootstrapImages | BootstrapStream, batch_size: int, loading: Loading, accelerator: Accelerator, step: int
) -> Iterator[dict[str, Any]]:
    """Give the micro-batches of one set of images; see :func:`batches`."""
    processes = accelerator.num_processes
    if batch_size % (processes * loading.parts):
        raise ValueError(
            f"{batch_size} images or questions a step have no {processes} x {loading.parts} equal parts (processes and "
            "micro-batches): change `batch_size`, `micro_batch_size` or `llm_batch_size`"
        )
    share, rank = batch_size // processes, accelerator.process_index
    options: dict[str, Any] = dict(pin_memory=accelerator.device.type == "cuda", **processes_of(loading.workers))
    if isinstance(images, BootstrapStream):  # whose first batch may lie far; it gives up waiting by itself
        stream = images.batches(share // loading.parts, rank, processes, step * loading.parts)
        return watch(DataLoader(stream, batch_size=None, **options | dict(timeout=0)))
    sampler = BootstrapSampler(len(images), share, loading.seed, rank, processes, start_step=step)
    micro = MicroBatches(sampler, share // loading.parts)
    options |= dict(persistent_workers=loading.workers > 0)
    shown, stack = (ViewedImages(images), collate_views) if loading.with_views else (images, collate)
    return watch(DataLoader(shown, batch_sampler=micro, collate_fn=stack, **options))
