"""Atomic files: everything the project writes appears whole or not at all, and one process at a time writes.

A reader, or a run resumed after a kill, never sees a half-written file or directory under its final name. What a killed
writer leaves is called ``.NAME.sf-llava-PID.tmp`` (or ``.old``); the next writer of ``NAME`` removes it.
"""

import codecs
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

MAX_BYTES = 4 * 178_956_970
"""No file that is read whole is larger: as many bytes as the largest picture has before it is compressed."""
MAX_TEXT_BYTES = 2**29
LARGEST_JSON = 2**30  # bytes; parsed, it takes several times as much
LOCK_NAME = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # some network file systems
_held: set[Path] = set()  # a process is never refused a lock of its own: these it must refuse itself


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: a temporary neighbour, flushed to disk, then renamed.

    Raises:
        OSError: it cannot be written; the message names ``path``.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        temporary = _neighbour(path, "tmp")
        try:
            with open(temporary, "wb") as file:
                _hold(file.fileno())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_bytes(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """Read a regular file whole.

    Raises:
        OSError: it cannot be read, it is none (a pipe or a device has no end), or it is larger than ``limit``.
    """
    try:
        size = regular_size(path)
        if size > limit:
            raise OSError(errno.EFBIG, f"{size:,} bytes are more than the {limit:,} that are read")
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_text(path: str | Path) -> str:
    """Read a text: UTF-8, or UTF-16 with its byte order mark; the mark is dropped, and lines end in a line feed.

    Raises:
        ValueError: the file is no text; the message names it.
        OSError: as for :func:`read_bytes`.
    """
    data = read_bytes(path, MAX_TEXT_BYTES)
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeError as error:
        raise ValueError(f"{path} is no text file: expected UTF-8") from error


def read_json(path: str | Path) -> Any:
    """Read JSON from ``path``, in UTF-8, UTF-16 or UTF-32, with a byte order mark or without.

    Raises:
        ValueError: the file is not JSON (truncated, say); the message names it.
        OSError: as for :func:`read_bytes`.
    """
    data = read_bytes(path, LARGEST_JSON)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); it may be truncated") from error


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Read JSON whose outermost value must be an object; see :func:`read_json`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds the JSON {json.dumps(value)[:40]}, not an object ({{...}}) as it should")
    return value


def regular_size(path: str | Path) -> int:
    """Give the size of a regular file (or of what a link leads to) in bytes.

    Raises:
        OSError: nothing there, or a directory, pipe, socket or device, which could be read without end.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "pipe, socket or device"
        raise OSError(errno.EINVAL, f"a {kind}, not a file", str(path))
    return status.st_size


def write_directory(path: str | Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write files into a temporary neighbour of ``path``, then publish it as ``path``.

    Raises:
        OSError: it cannot be written; the message names ``path``.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        temporary = _neighbour(path, "tmp")
        temporary.mkdir()
        held = os.open(temporary, os.O_RDONLY)
        try:
            _hold(held)
            fill(temporary)
            publish(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(held)


def publish(temporary: str | Path, path: str | Path) -> None:
    """Flush a finished directory to disk and rename it to ``path``, replacing what is there.

    Whom the directory is open to, its files are: those that safetensors writes from 0.8 on are their owner's alone.
    """
    temporary, path = Path(temporary), Path(path)
    granted = temporary.stat().st_mode & 0o666
    for file in temporary.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if granted & ~mode:
                with suppress(OSError):  # a file system that changes no permissions still keeps the files
                    os.fchmod(descriptor, mode | granted)
            os.fsync(descriptor)
            os.close(descriptor)
    if path.exists():
        replaced = _neighbour(path, "old")
        os.replace(path, replaced)
        try:
            os.replace(temporary, path)
        except BaseException:
            os.replace(replaced, path)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        os.replace(temporary, path)


def make_directory(path: str | Path) -> Path:
    """Make sure that ``path`` is a directory that this process may write into; return it.

    Raises:
        OSError: it is something else, or cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OSError(f"{path} cannot be a directory of results: a file is there or above it; name another") from error
    except OSError as error:
        raise OSError(f"directory {path} cannot be made ({error.strerror}): name another") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise OSError(f"directory {path} cannot be written: change its permissions or name another")
    return path


@contextmanager
def locked(directory: str | Path) -> Iterator[Path]:
    """Hold ``directory``, made if need be, for this process alone, by a lock of the operating system on a file in it.

    A kill releases the lock, and processes forked meanwhile do not hold it. The file goes at the end, as does the
    directory if it was made here and nothing was written.

    Raises:
        RuntimeError: another process holds it, or this one does already.
        OSError: the directory cannot be made or written.
    """
    existed = Path(directory).exists()
    path = make_directory(directory).resolve() / LOCK_NAME
    if path in _held:
        raise RuntimeError(f"this process already writes into {directory}")
    file = _lock(path)
    _held.add(path)
    try:
        yield Path(directory)
    finally:
        _held.remove(path)
        path.unlink(missing_ok=True)  # while it is locked: see _lock
        file.close()
        if not existed and not any(path.parent.iterdir()):
            path.parent.rmdir()


def _lock(path: Path) -> TextIO:
    """Open and lock ``path``; again if whoever held it removed it in between."""
    while True:
        try:
            file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
        except OSError as error:
            raise OSError(f"{path.parent} cannot be written ({error.strerror}): name another directory") from error
        try:
            # Not flock: data workers, which outlive a killed run by seconds, would inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                file.close()
                raise RuntimeError(
                    f"{path.parent} is being written by {holder}: wait for its end, or name another directory"
                ) from error
            warnings.warn(
                f"{path.parent} is on a file system without locks: start one run there at a time", stacklevel=4
            )
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.truncate(0)
            with suppress(OSError):  # on a full disk the lock still holds, without a name
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            return file
        file.close()


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Make a failure to write, of the system's or of a library's, an OSError that names ``path`` and the space left."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        free = shutil.disk_usage(_nearest_directory(path)).free
        raise OSError(f"{path} could not be written: {reason} ({free / 2**20:.0f} MiB are free there)") from error


def require_writable(path: str | Path) -> None:
    """Refuse a ``path`` under which nothing can be written, before work is done whose result should lie there.

    Raises:
        OSError: a part of it is a file, or the folder that would hold it may not be written to.
    """
    folder = _nearest_directory(path)
    rest = Path(os.path.abspath(path)).relative_to(folder).parts
    if len(rest) > 1 and os.path.lexists(folder / rest[0]):
        raise NotADirectoryError(f"{path} cannot be written: {folder / rest[0]} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "this folder may not be written to", str(folder))


def require_writable_file(path: str | Path) -> None:
    """Refuse a ``path`` at which no file can be written; see :func:`require_writable`.

    Raises:
        OSError: a folder or a device is there, or what :func:`require_writable` refuses.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} is no file but a folder or a device: name another")
    require_writable(path)


def remove_leftovers(path: str | Path) -> None:
    """Remove what killed writers of ``path`` left beside it; put back a directory that was being replaced."""
    path = Path(path)
    pattern = re.compile(re.escape(f".{path.name}.sf-llava-") + r"\d+\.(tmp|old)")
    for leftover in [entry for entry in os.scandir(path.parent) if pattern.fullmatch(entry.name)]:
        if leftover.name.endswith(".old") and not os.path.lexists(path):
            os.replace(leftover.path, path)
        elif not _is_held(leftover.path):
            if leftover.is_dir(follow_symlinks=False):
                shutil.rmtree(leftover.path, ignore_errors=True)
            else:
                Path(leftover.path).unlink(missing_ok=True)


def _hold(descriptor: int) -> None:
    """Mark what is being written as in use, where the file system can."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_held(path: str) -> bool:
    """Say whether a living process writes there: the kernel gives a dead one's lock back."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        return True
    finally:
        os.close(descriptor)
    return False


def _neighbour(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.sf-llava-{os.getpid()}.{kind}")


def _nearest_directory(path: str | Path) -> Path:
    """Find the folder that holds ``path``, or the nearest above it that is there."""
    return next(parent for parent in Path(os.path.abspath(path)).parents if parent.is_dir())
