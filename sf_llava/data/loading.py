"""Batches from data loading processes: one that is stopped, killed or stuck ends the wait with a sentence.

loader = DataLoader(images, num_workers=workers, timeout=wait_of(workers), ...)
for batch in watch(loader): ...
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch.utils.data import DataLoader

LOOK_EVERY = 10  # seconds without a batch
LOOKS = 90  # before a wait is given up


def wait_of(workers: int) -> int:
    """Give the ``timeout`` of a DataLoader that :func:`watch` looks after."""
    return LOOK_EVERY if workers else 0


def watch(loader: DataLoader) -> Iterator[Any]:
    """Give a loader's batches; look after its processes whenever none has come for a while.

    Raises:
        RuntimeError: a process was killed, stands still, or none has given anything for a quarter of an hour.
    """
    batches = iter(loader)
    looks = 0
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "Original Traceback" in str(error):  # raised by the data set itself
                raise
            if "timed out" not in str(error):
                raise _stopped(f"a data loading process ended ({error}), perhaps for want of memory") from error
            looks += 1
            if stopped := _stopped_children():
                for child in stopped:
                    with suppress(RuntimeError):  # torch's own, when it sees one end
                        child.kill()  # or the end of this process would wait for it
                        child.join()
                raise _stopped("data loading processes were stopped from outside") from error
            if looks == LOOKS:
                minutes = looks * LOOK_EVERY // 60
                raise _stopped(f"data loading processes have given nothing for {minutes} minutes") from error
            continue
        looks = 0
        yield batch


def _stopped(what: str) -> RuntimeError:
    return RuntimeError(
        f"{what}: see that the images can be read and memory suffices; fewer --workers need less, and with --workers 0 "
        "this process reads them itself"
    )


def _stopped_children() -> list[multiprocessing.Process]:
    state = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
    return [child for child in multiprocessing.active_children() if os.waitid(os.P_PID, child.pid, state) is not None]
