"""Rows of bytes in one file, written in any order by any number of processes; each is whole, or it is not there.

row k = seal (16 bytes), data (as many bytes as every row's)       at k * (16 + row_bytes)

The seal is a digest of the file's key, of the view that the row is about, and of the data. A row that was half written
when its process was killed or the machine lost power, that lies on a damaged disk, or that is about another picture or
of another teacher, has another seal than is asked for, and is as good as absent: nothing has to reach the disk in any
order, and no process waits for another. What was never written is a hole, which takes no room.

Rows are read through the system's page cache, as a memory map is, but where a file has become shorter or a disk fails,
a row is absent, and no signal ends the process.
"""

import hashlib
import os
from pathlib import Path

from sf_llava import files

SEAL_BYTES = 16


class RowFile:
    """The rows of one file, which is made if it is not there.

    Args:
        path: of the file.
        row_bytes: of data in every row.
        key: what the file is about; rows that were written under another are not read.

    Attributes:
        damaged: how many rows were found that hold something else than what was asked for.

    Raises:
        OSError: the file cannot be made or opened; the message names it.
    """

    def __init__(self, path: Path, row_bytes: int, key: str) -> None:
        self.path, self.row_bytes, self.damaged = path, row_bytes, 0
        self._key = key.encode()
        with files.writing(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def read(self, row: int, view: bytes, into: memoryview) -> bool:
        """Read the data of a row, and say whether it is there.

        Args:
            row: its number.
            view: digest of what the row must be about.
            into: where the data go, ``row_bytes`` of them; not what was asked for where the row is not there.
        """
        seal = bytearray(SEAL_BYTES)
        try:
            count = os.preadv(self._file, [seal, into], self._place(row))
        except OSError:  # a bad sector, say
            self.damaged += 1
            return False
        if count == SEAL_BYTES + self.row_bytes and seal == self._seal(view, into):
            return True
        self.damaged += any(seal)
        return False

    def write(self, row: int, view: bytes, data: memoryview) -> None:
        """Write a row.

        Raises:
            OSError: it could not be written, as on a full disk; the message names the file.
        """
        left = memoryview(self._seal(view, data) + data)
        place = self._place(row)
        with files.writing(self.path):
            while left:
                count = os.pwrite(self._file, left, place)
                left, place = left[count:], place + count

    def close(self) -> None:
        """Close the file; rows are neither read nor written any more."""
        os.close(self._file)

    def _place(self, row: int) -> int:
        return row * (SEAL_BYTES + self.row_bytes)

    def _seal(self, view: bytes, data: memoryview) -> bytes:
        digest = hashlib.sha256(b"%d:%s" % (len(self._key), self._key))
        digest.update(view)
        digest.update(data)
        return digest.digest()[:SEAL_BYTES]
