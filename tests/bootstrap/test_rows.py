"""Rows of one file are whole or absent: killed writers, damaged bytes, other keys, other views, a full disk."""

import errno
import os
import random
import signal
import time
from pathlib import Path

import pytest

from sf_llava.bootstrap.rows import SEAL_BYTES, RowFile

VIEW = b"v" * 16


def write(file: RowFile, row: int, data: bytes, view: bytes = VIEW) -> None:
    file.write(row, view, memoryview(data))


def read(file: RowFile, row: int, view: bytes = VIEW) -> bytes | None:
    data = bytearray(file.row_bytes)
    return bytes(data) if file.read(row, view, memoryview(data)) else None


def test_rows_come_back_in_any_order_and_for_other_processes_and_the_rest_is_absent(tmp_path):
    file, other = (RowFile(tmp_path / "rows", 5, "key") for _ in range(2))
    for row in (3, 0, 1000):
        write(file, row, b"row%02d" % (row % 100))
    assert [read(other, row) for row in (0, 1, 3, 999, 1000, 1001)] == [b"row00", None, b"row03", None, b"row00", None]
    assert not other.damaged


@pytest.mark.parametrize("lost", [1, 2, 50, 100, 115])
@pytest.mark.parametrize("how", ["the file ends", "zeros", "older bytes"])
def test_a_half_written_row_is_absent(tmp_path, lost, how):
    whole, file = (RowFile(tmp_path / name, 100, "key") for name in ("whole", "half"))
    if how == "older bytes":
        write(file, 0, b"o" * 100, view=b"w" * 16)
    elif how == "zeros":
        write(file, 1, b"n" * 100)
    write(whole, 0, bytes(range(1, 101)))
    written = (tmp_path / "whole").read_bytes()[: SEAL_BYTES + 100 - lost]
    with open(tmp_path / "half", "r+b") as half:
        half.write(written)
    assert read(whole, 0) is not None and read(file, 0) is None


@pytest.mark.parametrize("place", [0, 15, 16, 115])
def test_a_flipped_bit_another_view_and_another_key_are_found_and_counted(tmp_path, place):
    file = RowFile(tmp_path / "rows", 100, "key")
    write(file, 0, b"d" * 100)
    assert read(file, 0, view=b"w" * 16) is None and file.damaged == 1
    assert read(RowFile(tmp_path / "rows", 100, "another"), 0) is None
    data = bytearray((tmp_path / "rows").read_bytes())
    data[place] ^= 1
    (tmp_path / "rows").write_bytes(data)
    assert read(file, 0) is None and file.damaged == 2
    write(file, 0, b"d" * 100)
    assert read(file, 0) == b"d" * 100


def test_of_writers_killed_at_random_moments_every_row_is_whole_or_absent(tmp_path):
    draws, size, found = random.Random(0), 300_000, 0
    for number in range(8):
        file = RowFile(tmp_path / f"rows-{number}", size, "key")
        writer = os.fork()
        if not writer:
            try:
                for row in range(10**6):
                    write(file, row % 50, bytes([row % 251]) * size)
            finally:
                os._exit(1)  # whatever happens here, the tests go on in one process
        time.sleep(draws.uniform(0, 0.03))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        rows = [data for row in range(50) if (data := read(file, row)) is not None]
        assert all(len(set(data)) == 1 for data in rows)
        found += len(rows)
        file.close()
    assert found


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = RowFile(tmp_path / "rows", 5, "key")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"rows could not be written: No space left"):
        write(file, 0, b"01234")


def test_a_disk_that_takes_a_part_is_given_the_rest(tmp_path, monkeypatch):
    some = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: some(file, data[:7], place))
    file = RowFile(tmp_path / "rows", 100, "key")
    write(file, 1, bytes(range(100)))
    assert read(file, 1) == bytes(range(100))


def test_what_is_no_file_is_named(tmp_path: Path):
    (tmp_path / "rows").mkdir()
    with pytest.raises(OSError, match="rows could not be written: Is a directory"):
        RowFile(tmp_path / "rows", 5, "key")
