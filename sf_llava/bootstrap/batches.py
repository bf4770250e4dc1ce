"""Training batches: which images a process sees at which step, in micro-batches, from any step on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.data.bootstrap_images import BootstrapImages, collate
from sf_llava.data.loading import wait_of, watch
from sf_llava.data.sampler import BootstrapSampler


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
        LoadingError: (from the iterator) data loading processes died or stand still.
    """
    processes = accelerator.num_processes
    if batch_size % (processes * parts):
        raise ValueError(
            f"{batch_size} images or questions a step have no {processes} x {parts} equal parts (processes and "
            "micro-batches): change `batch_size`, `micro_batch_size` or `llm_batch_size`"
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
        timeout=wait_of(config.workers),
    )
    return watch(loader)
