"""Files by pattern: a file, a folder, a glob, or brace lists like ``train-{0000..1023}.tar``."""

import fnmatch
import glob
import itertools
import math
import os
import re
from collections import deque
from collections.abc import Iterator

from sf_llava.data.images import split_of

MAX_FILES = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")


def find_files(where: str, extension: str) -> list[str]:
    """Return the files at ``where``: a folder's files with ``extension`` (sorted), a pattern's in its own order.

    Raises:
        ValueError: nothing found, part of a brace list is missing or is no regular file, a brace list of absurd length,
            or a folder mixes splits (train with validation).
    """
    where = os.path.expanduser(where)
    if os.path.isdir(where):
        names = sorted(path for path in walk(where)[0] if path.endswith(extension))
        splits = {split for name in names if (split := split_of(name)) is not None}
        if len(splits) > 1:
            raise ValueError(f"{where} mixes the splits {', '.join(sorted(splits))}: name the files of one with a glob")
        files = [os.path.join(where, name) for name in names]
    elif os.path.lexists(where):
        files = [where]
    else:
        files = [file for pattern in expand_braces(where) for file in _matches(pattern)]
    if not files:
        raise ValueError(f"no files found at {where!r}: expected a file, a folder or a pattern of {extension} files")
    if odd := [file for file in files if not os.path.isfile(file)]:
        raise ValueError(f"{odd[0]!r} is not a regular file but a pipe, a device, a folder or a link to nowhere")
    return files


def walk(root: str) -> tuple[list[str], list[tuple[str, str]]]:
    """List all files below ``root``, those in linked folders too; hidden files and folders are left out.

    Every folder is read once, however many links lead to it: by its own path, or else by the first link.

    Returns:
        Paths relative to ``root``, in no order, and (path, path that it was read by) of every link that was not
        followed because its folder had been read (both end in ``/``).

    Raises:
        ValueError: a folder that cannot be read.
    """
    files: list[str] = []
    repeated: list[tuple[str, str]] = []
    folders, links = [""], deque[str]()
    seen: dict[tuple[int, int], str] = {}
    while folders or links:
        prefix = folders.pop() if folders else links.popleft()
        folder = os.path.join(root, prefix)
        try:
            status = os.stat(folder)
            if (first := seen.setdefault((status.st_dev, status.st_ino), prefix)) != prefix:
                repeated.append((prefix, first))
                continue
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except OSError as error:
            raise ValueError(f"folder {folder!r} cannot be read ({error.strerror}), and would be missing") from error
        own: list[str] = []
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not _is_folder(entry):
                files.append(prefix + entry.name)
            elif entry.is_symlink():
                links.append(f"{prefix}{entry.name}/")
            else:
                own.append(f"{prefix}{entry.name}/")
        folders += reversed(own)
    return files, repeated


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to a place that may not be read
        return False


def expand_braces(pattern: str) -> list[str]:
    """Expand ``{a,b}`` and ``{000..123}`` as a shell does; zero padding is kept.

    Raises:
        ValueError: more than ``MAX_FILES`` names; none is made.
    """
    parts = _BRACES.split(pattern)  # literal, braces, literal, ...
    choices = [_choices(part) if place % 2 else [part] for place, part in enumerate(parts)]
    if (count := math.prod(len(choice) for choice in choices)) > MAX_FILES:
        raise ValueError(f"{pattern!r} names {count:,} files; more than {MAX_FILES:,} are not looked for")
    return ["".join(names) for names in itertools.product(*choices)]


def _choices(braces: str) -> "list[str] | _Numbers":
    if found := _RANGE.fullmatch(braces):
        return _Numbers(*found.groups())
    return braces.split(",")


class _Numbers:
    """The numbers from one to another, made one by one; padded like the first."""

    def __init__(self, first: str, last: str) -> None:
        start, stop = int(first), int(last)
        self.range = range(start, stop + 1) if start <= stop else range(start, stop - 1, -1)
        self.width = len(first)

    def __len__(self) -> int:
        return len(self.range)

    def __iter__(self) -> Iterator[str]:
        return (str(number).zfill(self.width) for number in self.range)


def _matches(pattern: str) -> list[str]:
    if os.path.isfile(pattern):
        return [pattern]
    if not glob.has_magic(pattern):
        raise ValueError(f"no file {pattern!r}")
    files = _glob_below(pattern) if "**" in pattern.split("/") else glob.glob(pattern)
    return sorted(file for file in files if not os.path.isdir(file))


def _glob_below(pattern: str) -> list[str]:
    """Find files by a pattern with ``**``; glob's own does not end where folders link to each other."""
    parts = pattern.split("/")
    start = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    root = "/".join(parts[:start]) + "/" * (start > 0)
    if not os.path.isdir(root or "."):
        return []
    return [root + path for path in walk(root or ".")[0] if _fits(path.split("/"), parts[start:])]


def _fits(path: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path fit those of a pattern, where ``**`` stands for any number of folders."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_fits(path[start:], pattern[1:]) for start in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])
