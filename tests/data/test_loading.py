"""Data loading processes that are stopped or killed end the wait with a sentence; one that goes on loses nothing."""

import multiprocessing
import os
import signal
import threading
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from sf_llava.data import loading


class Slow(Dataset):
    def __len__(self) -> int:
        return 120

    def __getitem__(self, index: int) -> int:
        if index == self.broken:
            raise RuntimeError("this one is broken")
        time.sleep(3 if index == self.silent else 0.01)
        return index

    def __init__(self, broken: int = -1, silent: int = -1) -> None:
        self.broken, self.silent = broken, silent


def read(workers: int = 2, number: int | None = None, resume_after: float = 0, **odd: int) -> list[int]:
    """Read all numbers; after the third batch send a signal to one of the processes."""
    seen: list[int] = []
    loader = DataLoader(Slow(**odd), 4, **loading.processes_of(workers))
    for count, batch in enumerate(loading.watch(loader)):
        seen += batch.tolist()
        if count == 2 and number is not None:
            child = multiprocessing.active_children()[0].pid
            os.kill(child, number)
            if resume_after:
                threading.Timer(resume_after, os.kill, (child, signal.SIGCONT)).start()
    return seen


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(loading, "LOOK_EVERY", 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order(workers):
    assert read(workers) == list(range(120))


def test_a_stopped_process_is_told_and_removed():
    with pytest.raises(RuntimeError, match=r"data loading processes were stopped from outside: see .* `workers` 0"):
        read(number=signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()  # or this process would not end


@pytest.fixture
def as_in_python_3_14(monkeypatch):
    """Processes begin by a server of them where nobody asks for another way, as from Python 3.14 on."""
    monkeypatch.setattr(loading, "PATIENCE", 20)  # no more is heard of the server's where they stop or end
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_a_stopped_process_is_told_whatever_way_python_starts_processes(as_in_python_3_14):
    test_a_stopped_process_is_told_and_removed()


def test_a_killed_process_is_told():
    with pytest.raises(RuntimeError, match=r"a data loading process ended .*memory.*fewer `workers`"):
        read(number=signal.SIGKILL)


def test_a_process_that_goes_on_in_time_loses_nothing():
    assert read(number=signal.SIGSTOP, resume_after=0.5) == list(range(120))


def test_processes_that_give_nothing_are_given_up(monkeypatch):
    monkeypatch.setattr(loading, "PATIENCE", 1)
    with pytest.raises(loading.LoadingError, match="data loading processes have given nothing for 0 minutes"):
        read(silent=9)


def test_an_error_of_the_data_set_stays_its_own():
    with pytest.raises(RuntimeError, match="this one is broken") as error:
        read(broken=5)
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("cores", "processes", "limit", "workers"),
    [
        (16, None, None, 15),
        (16, "1", "max 100000", 15),
        (96, "8", None, 11),
        (2, None, None, 1),
        (1, None, None, 1),
        (2, "2", None, 1),
        (64, None, "400000 100000", 3),
        (64, None, "50000 100000", 1),
        (256, None, None, 32),
    ],
)  # fmt: skip
def test_as_many_processes_as_there_are_cores_for_them(cores, processes, limit, workers, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(loading, "CGROUPS", tmp_path)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    if limit:
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert loading.choose_workers(None) == workers
    assert [loading.choose_workers(asked) for asked in (0, 1, 40)] == [0, 1, 40]


def test_a_limit_of_the_older_control_groups_counts_too(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(loading, "CGROUPS", tmp_path)
    (tmp_path / "cpu").mkdir()
    for quota, cores in (("-1", 8), ("250000", 2)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
        assert loading.count_cores() == cores
