"""Batches from data loading processes: one that is stopped, killed or silent ends the wait with a sentence.

loader = DataLoader(images, num_workers=workers, timeout=wait_of(workers), ...)
for batch in watch(loader): ...
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

LOOK_EVERY = 10  # seconds, after stopped processes
PATIENCE = 900  # seconds without a batch


class LoadingError(RuntimeError):
    """The processes that load data have died, were stopped or give nothing."""


def wait_of(workers: int) -> int:
    """Give the ``timeout`` of a DataLoader that :func:`watch` looks after."""
    return PATIENCE if workers else 0


def watch(loader: DataLoader) -> Iterator[Any]:
    """Give a loader's batches, and say in a sentence when its processes die or stand still.

    Raises:
        LoadingError: a process was killed or stopped, or none has given anything for a quarter of an hour.
    """
    others = multiprocessing.active_children()
    batches = iter(loader)
    workers = [child for child in multiprocessing.active_children() if child not in others]
    killed: list[int] = []
    ended = threading.Event()
    threading.Thread(target=_end_stopped, args=(workers, killed, ended), daemon=True).start()
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, EOFError, OSError) as error:
                raise _explain(error, workers, killed) from error
            yield batch
    finally:
        ended.set()


def _explain(error: Exception, workers: list[BaseProcess], killed: list[int]) -> Exception:
    """Say what has become of the processes; an error that comes from the data itself stays as it is."""
    if killed:
        what = "data loading processes were stopped from outside"
    elif "Original Traceback" in str(error):
        return error
    elif "timed out" in str(error):
        what = f"data loading processes have given nothing for {PATIENCE // 60} minutes"
    elif not all(map(_is_there, workers)):
        what = f"a data loading process ended ({error}), perhaps for want of memory"
    else:
        return error
    return LoadingError(
        f"{what}: see that the images can be read and memory suffices; fewer `workers` need less, and with `workers` 0 "
        "this process reads them itself"
    )


def _end_stopped(workers: list[BaseProcess], killed: list[int], ended: threading.Event) -> None:
    """Kill workers that are found stopped twice: whoever reads from such a one waits without end, timeout or not."""
    before: set[int] = set()
    while not ended.wait(LOOK_EVERY):
        stopped = {worker.pid for worker in workers if worker.pid and _is_there(worker, os.WSTOPPED)}
        killed += stopped & before
        for pid in stopped & before:
            os.kill(pid, signal.SIGKILL)
        before = stopped


def _is_there(worker: BaseProcess, state: int = 0) -> bool:
    """Whether a process has not ended, or is in ``state``; whoever else waits for it is not disturbed."""
    try:
        found = os.waitid(os.P_PID, worker.pid or 0, (state or os.WEXITED) | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return (found is not None) == bool(state)
