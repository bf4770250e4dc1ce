"""Batches from data loading processes: one that is stopped, killed or silent ends the wait with a sentence.

workers = choose_workers(asked)
loader = DataLoader(images, **processes_of(workers), ...)
for batch in watch(loader): ...
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

LOOK_EVERY = 10  # seconds, after stopped processes
PATIENCE = 900  # seconds without a batch
SHORTLY = 5  # seconds, for a signal to all processes of a run to reach this one too
MOST_WORKERS = 32
"""Chosen by default at most: each holds two batches in memory, and no GPU that we know needs more."""
CGROUPS = Path("/sys/fs/cgroup")
START = "fork" if sys.platform == "linux" else None
"""How processes begin: as ever on Linux, not by Python 3.14's server of processes. With that they outlive a killed
run, nobody hears that one of them has died or was stopped, and each gets a copy of all names of pictures."""


class LoadingError(RuntimeError):
    """The processes that load data have died, were stopped or give nothing."""


def choose_workers(asked: int | None) -> int:
    """Say how many data loading processes this process gets.

    Args:
        asked: what the user asked for; None: its share of the cores, but for one that it keeps, at least 1.
    """
    return min(max(1, share_of_cores() - 1), MOST_WORKERS) if asked is None else asked


def share_of_cores() -> int:
    """Count the cores for this process: those it may use, shared with torchrun's other processes on this machine."""
    return max(1, count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def count_cores() -> int:
    """Count the cores that this process may use: its affinity (SLURM, taskset) within its container's limit."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, int(min(cores, _quota())))


def _quota() -> float:
    """Cores' worth of time that a container's control group grants; infinite where it sets no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # of version 2, of version 1
        try:
            quota, period = " ".join((CGROUPS / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                return int(quota) / int(period)
        except (OSError, ValueError):
            continue
    return math.inf


def processes_of(workers: int) -> dict[str, Any]:
    """Give what a DataLoader that :func:`watch` looks after is told of its processes."""
    return dict(num_workers=workers, timeout=PATIENCE, multiprocessing_context=START) if workers else {}


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
                if (what := _explain(error, workers, killed)) is None:
                    raise  # not "from error", itself: whoever looks for causes would never come to an end
                time.sleep(SHORTLY)
                raise LoadingError(
                    f"{what}: see that the images can be read and memory suffices; fewer `workers` need less, and with "
                    "`workers` 0 this process reads them itself"
                ) from error
            yield batch
    finally:
        ended.set()


def _explain(error: Exception, workers: list[BaseProcess], killed: list[int]) -> str | None:
    """Say what has become of the processes; None where the error comes from the data itself."""
    if killed:
        return "data loading processes were stopped from outside"
    if "Original Traceback" in str(error):
        return None
    if "timed out" in str(error):
        return f"data loading processes have given nothing for {PATIENCE // 60} minutes"
    if not all(map(_is_there, workers)):
        return f"a data loading process ended ({error}), perhaps for want of memory"
    return None


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
