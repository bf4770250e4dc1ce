"""Files appear whole, directories have one writer at a time, and what cannot be written or read is named."""

import codecs
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sf_llava import files
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

WRITER = """
import sys, time
from sf_llava import files

def fill(directory):
    (directory / "part.bin").write_bytes(b"x")
    print("writing", flush=True)
    time.sleep(60)

files.write_directory(sys.argv[1], fill)
"""


def start_writer(path):
    child = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "writing\n"
    return child


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_the_next_writer_removes_what_a_killed_one_left_and_spares_a_living_one(tmp_path):
    killed, living = start_writer(tmp_path / "out"), start_writer(tmp_path / "out")
    killed.kill()
    killed.wait()
    files.write_directory(tmp_path / "out", lambda directory: (directory / "a").write_text("a"))
    assert names(tmp_path) == [f".out.sf-llava-{living.pid}.tmp", "out"]
    living.send_signal(signal.SIGKILL)
    living.wait()
    files.write_directory(tmp_path / "out", lambda directory: (directory / "a").write_text("b"))
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "a").read_text() == "b"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_all_files_of_a_directory_are_open_to_whom_the_directory_is(umask, mode, tmp_path):
    def fill(directory):
        save_file({"a": torch.zeros(1)}, directory / "weights.safetensors")  # for its owner alone, by itself
        (directory / "deeper").mkdir()
        (directory / "deeper" / "text").write_text("a")

    before = os.umask(umask)
    try:
        files.write_directory(tmp_path / "out", fill)
    finally:
        os.umask(before)
    for name in ("weights.safetensors", "deeper/text"):
        assert stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) == mode


def test_leftovers_of_a_file_are_removed_and_others_of_similar_names_are_not(tmp_path):
    for name in (".a.json.sf-llava-1.tmp", ".b.json.sf-llava-1.tmp", ".a.json.1.tmp", "a.json.tmp", ".a.json.tmp"):
        (tmp_path / name).write_text("x")
    files.write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == sorted([".b.json.sf-llava-1.tmp", ".a.json.1.tmp", "a.json.tmp", ".a.json.tmp", "a.json"])


def test_a_directory_that_was_being_replaced_comes_back(tmp_path):
    (tmp_path / ".out.sf-llava-1.old").mkdir()
    (tmp_path / ".out.sf-llava-1.old" / "a").write_text("old")
    with pytest.raises(ValueError, match="no"):
        files.write_directory(tmp_path / "out", lambda directory: (_ for _ in ()).throw(ValueError("no")))
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "a").read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")],
)
def test_a_full_disk_names_what_was_written_and_the_space_left(tmp_path, error):
    def fill(directory):
        (directory / "part.bin").write_bytes(b"x")
        raise error

    with pytest.raises(OSError, match=r"out could not be written: .*No space left on device \(\d+ MiB are free"):
        files.write_directory(tmp_path / "out", fill)
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_file_that_does_not_fit_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_neighbour", lambda path, kind: type(path)("/dev/full"))
    monkeypatch.setattr(type(tmp_path), "unlink", lambda path, missing_ok=False: None)
    with pytest.raises(OSError, match=r"results.json could not be written: No space left on device"):
        files.write_json(tmp_path / "results.json", {})


def test_a_place_that_cannot_be_written_is_refused_beforehand(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in ("file/out", "file/a/b"):
        with pytest.raises(NotADirectoryError, match="file is not a folder"):
            files.require_writable(tmp_path / place)
    files.require_writable(tmp_path / "a" / "b" / "out")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_with_any_byte_order_mark_and_line_end(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{\r\n  "a": "é"\r\n}\r\n'.encode(encoding))
    assert files.read_json_object(tmp_path / "a.json") == {"a": "é"}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000, b"1" * 5000, codecs.BOM_UTF8])
def test_what_is_no_json_is_a_sentence_that_names_the_file(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"a.json is not valid JSON"):
        files.read_json(tmp_path / "a.json")


def test_json_of_another_form_is_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"a.json holds the JSON \[1\], not an object"):
        files.read_json_object(tmp_path / "a.json")


def test_special_files_and_giants_are_no_json(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "giant").touch()
    os.truncate(tmp_path / "giant", 1 << 40)
    began = time.monotonic()
    for name in ("pipe", "zero", "giant"):
        with pytest.raises((OSError, ValueError), match=name):
            files.read_json(tmp_path / name)
    assert time.monotonic() - began < 1


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
