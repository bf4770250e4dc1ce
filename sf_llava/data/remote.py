"""Bytes from a server or a command, read from front to end: what breaks off is taken up again where it was.

    with RemoteFile("https://host/train-000000.tar") as file: file.read(512)

Addresses ``https://`` and ``http://``, ``s3://`` through ``aws s3 cp``, and ``pipe:COMMAND``, which the shell runs: a
command comes from the user's own command line alone, never from a file or an address.
"""

import http.client
import io
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from typing import IO, Any

SCHEMES = ("https://", "http://", "s3://", "pipe:")
ATTEMPTS = 5
FIRST_PAUSE = 1.0  # seconds before the second attempt; twice as long before each further one
TIMEOUT = 60  # seconds without an answer
WORTH_ANOTHER = (408, 425, 429, 500, 502, 503, 504)  # of a server's refusals: those that pass
CHUNK = 2**20


class RemoteError(OSError):
    """Something that lies elsewhere cannot be read; the message names it, whatever readers add to ``args``."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


def is_remote(where: str) -> bool:
    """Whether a pattern names files elsewhere."""
    return where.startswith(SCHEMES)


def public_name(url: str) -> str:
    """Name a remote file for a log: without what may be a password or a signature."""
    if url.startswith("pipe:"):
        return url
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


class RemoteFile(io.RawIOBase):
    """One remote file, opened at its first byte when that is asked for.

    Raises:
        RemoteError: (from reading) it is refused, or has broken off ``ATTEMPTS`` times without a byte between.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.offset = 0
        self.source: _Answer | _Command | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        for attempt in range(ATTEMPTS):
            try:
                if self.source is None:
                    self.source = _open(self.url, self.offset)
                count = self.source.readinto(buffer)
                self.offset += count
                return count
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                refused = isinstance(error, urllib.error.HTTPError) and error.code not in WORTH_ANOTHER
                if refused or attempt == ATTEMPTS - 1:
                    times = "" if refused else f" in {ATTEMPTS} attempts"
                    raise RemoteError(
                        f"{public_name(self.url)} cannot be read{times}, at byte {self.offset:,}: {error}. Check the "
                        "address, what it takes to be let in, and the connection"
                    ) from error
                time.sleep(FIRST_PAUSE * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self.source is not None:
            self.source.close()
            self.source = None


class _Answer:
    """A server's answer, from byte ``first`` on: the one asked for, or the beginning."""

    def __init__(self, url: str, offset: int) -> None:
        request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
        try:
            self.answer = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            raise
        length = self.answer.headers.get("Content-Length")
        self.left = None if length is None else int(length)
        self.first = offset if self.answer.status == 206 else 0  # a server that knows no ranges begins again

    def readinto(self, buffer: Any) -> int:
        count = self.answer.readinto(buffer)
        if self.left is not None:
            self.left -= count
            if not count and self.left > 0 and len(buffer):
                raise OSError(f"the connection ended {self.left:,} bytes early")
        return count

    def close(self) -> None:
        self.answer.close()


class _Command:
    """What a command of the shell writes."""

    first = 0

    def __init__(self, command: str) -> None:
        self.process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self.process.stdout is not None
        self.output: IO[bytes] = self.process.stdout

    def readinto(self, buffer: Any) -> int:
        count = self.output.readinto(buffer)  # type: ignore[attr-defined]
        if not count and len(buffer) and (status := self.process.wait()):
            raise OSError(f"the command ended with status {status}")
        return count

    def close(self) -> None:
        self.output.close()
        self.process.terminate()
        self.process.wait()


def _open(url: str, offset: int) -> _Answer | _Command:
    """Open a file and pass by what stands before byte ``offset``."""
    source: _Answer | _Command
    if url.startswith("pipe:"):
        source = _Command(url.removeprefix("pipe:"))
    elif url.startswith("s3://"):
        source = _Command(f"aws s3 cp {shlex.quote(url)} -")
    else:
        source = _Answer(url, offset)
    try:
        left = offset - source.first
        buffer = memoryview(bytearray(min(left, CHUNK)))
        while left:
            count = source.readinto(buffer[:left])
            if not count:
                raise OSError(f"it is {left:,} bytes shorter than before")
            left -= count
    except BaseException:
        source.close()
        raise
    return source
