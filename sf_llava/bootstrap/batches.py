"""Training batches: which images a process sees at which step, in micro-batches, from any step on."""

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.data.bootstrap_images import BootstrapImages, collate
from sf_llava.data.sampler import BootstrapSampler

LOOK_EVERY = 10  # seconds without a batch
LOOKS = 90  # before a wait is given up


@dataclass(frozen=True)
class MicroBatches:
    """A batch sampler that hands out every batch of another one in equal parts."""

    sampler: BootstrapSampler
    size: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.sampler:
            yield from (batch[start : start + self.size] for start in range(0, len(batch), self.size))


def micro_batches(
    images: BootstrapImages, config: BootstrapConfig, accelerator: Accelerator, batch_size: int, parts: int, step: int
) -> Iterator[dict[str, Any]]:
    """Give this process's endless micro-batches from ``step`` on: ``batch_size`` images a step over all processes.

    Args:
        images: training images.
        config: gives seed and workers.
        accelerator: gives this process's place.
        batch_size: images of one optimiser step.
        parts: micro-batches of one optimiser step.
        step: where to start.

    Raises:
        ValueError: the batch has no equal parts.
        RuntimeError: (from the iterator) data loading processes stand still.
    """
    processes = accelerator.num_processes
    if batch_size % (processes * parts):
        raise ValueError(
            f"{batch_size} images or questions a step have no {processes} x {parts} equal parts (processes and "
            "micro-batches): change --batch-size, --micro-batch-size or --llm-batch-size"
        )
    share = batch_size // processes
    sampler = BootstrapSampler(len(images), share, config.seed, accelerator.process_index, processes, start_step=step)
    loader = DataLoader(
        images,
        batch_sampler=MicroBatches(sampler, share // parts),
        collate_fn=collate,
        num_workers=config.workers,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=config.workers > 0,
        timeout=LOOK_EVERY if config.workers else 0,
    )
    return _watch(loader)


def _watch(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Give a loader's batches; look after its processes whenever none has come for a while."""
    batches = iter(loader)
    looks, still = 0, set()
    while True:
        try:
            yield next(batches)
            looks, still = 0, set()
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            looks, before, still = looks + 1, still, _stopped_children()
            if not still & before and looks < LOOKS:
                continue
            for child in still:
                child.kill()  # or the end of this process would wait for it
            what = "are stopped" if still else f"have given nothing for {looks * LOOK_EVERY // 60} minutes"
            raise RuntimeError(
                f"data loading processes {what}: see that the images can be read, and go on with --resume "
                "(--workers 0 reads them in the training process itself)"
            ) from error


def _stopped_children() -> set[multiprocessing.Process]:
    children = multiprocessing.active_children()
    stopped = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
    return {child for child in children if os.waitid(os.P_PID, child.pid, stopped) is not None}
