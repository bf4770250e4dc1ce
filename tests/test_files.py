"""Files and directories: one writer at a time, and what cannot be written is said in a sentence."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sf_llava.files import LOCK_NAME, locked, make_directory

HOLD = """
import os, sys, time
from sf_llava.files import locked
with locked(sys.argv[1]):
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(20)
"""


def test_a_directory_has_one_writer_until_it_ends_or_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RuntimeError, match=f"written by process {holder.pid} on"), locked(tmp_path / "run"):
            pass
        holder.kill()  # what it forked lives on
        holder.wait()
        with locked(tmp_path / "run"):
            pass
        assert not (tmp_path / "run" / LOCK_NAME).exists()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_process_holds_a_directory_once_and_can_take_it_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with locked("run"):
        Path("run/kept").touch()
        with pytest.raises(RuntimeError, match="already writes"), locked(tmp_path / "run"):
            pass
    with locked("run"):
        pass
    assert os.listdir("run") == ["kept"]


def test_a_lock_leaves_no_empty_directory(tmp_path):
    with locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_is_no_place_for_results(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be a directory of results"):
        make_directory(tmp_path / place)
