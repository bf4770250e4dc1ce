"""Training batches: which images a process sees at which step, in micro-batches, from any step on."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.data.bootstrap_images import BootstrapImages, collate
from sf_llava.data.sampler import BootstrapSampler

LOOK_EVERY = 10  # seconds, after stopped processes
PATIENCE = 900  # seconds without a batch


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
        timeout=PATIENCE if config.workers else 0,
    )
    return _watch(loader)


def _watch(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Give a loader's batches, and say in a sentence when its processes die or stand still."""
    others = multiprocessing.active_children()
    batches = iter(loader)
    workers = [child for child in multiprocessing.active_children() if child not in others]
    ended = threading.Event()
    threading.Thread(target=_end_stopped, args=(workers, ended), daemon=True).start()
    try:
        while True:
            batch = next(batches)
            yield batch
    except (RuntimeError, EOFError, OSError) as error:
        what = "has died or was stopped" if not all(map(_is_there, workers)) else f"gave nothing for {PATIENCE} s"
        if what.startswith("gave") and "timed out" not in str(error):
            raise
        raise RuntimeError(
            f"a data loading process {what}: see that memory suffices and images can be read, and go on with --resume "
            "(--workers 0 reads them in the training process itself)"
        ) from error
    finally:
        ended.set()


def _end_stopped(workers: list[multiprocessing.Process], ended: threading.Event) -> None:
    """Kill workers that are found stopped twice: whoever reads from such a one waits without end."""
    before: set[int] = set()
    while not ended.wait(LOOK_EVERY):
        stopped = {worker.pid for worker in workers if _is_there(worker, os.WSTOPPED)}
        for pid in stopped & before:
            os.kill(pid, signal.SIGKILL)
        before = stopped


def _is_there(worker: multiprocessing.Process, state: int = 0) -> bool:
    """Whether a process has not ended, or is in ``state``; whoever else waits for it is not disturbed."""
    try:
        found = os.waitid(os.P_PID, worker.pid, (state or os.WEXITED) | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return (found is not None) == bool(state)
