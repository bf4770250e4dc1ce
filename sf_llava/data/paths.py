"""Files by pattern: a file, a folder, a glob, or brace lists like ``train-{0000..1023}.tar``."""

import glob
import re
from pathlib import Path

from sf_llava.data.images import split_of

_BRACES = re.compile(r"\{([^{}]*)\}")


def find_files(where: str, extension: str) -> list[str]:
    """Return the files at ``where``: a folder's files with ``extension`` (sorted), a pattern's in its own order.

    Raises:
        ValueError: nothing found, part of a brace list is missing, or a folder mixes splits (train with validation).
    """
    where = str(Path(where).expanduser())
    if Path(where).is_dir():
        files = sorted(str(path) for path in Path(where).rglob(f"*{extension}") if not path.name.startswith("."))
        splits = {split_of(str(Path(file).relative_to(where))) for file in files} - {None}
        if len(splits) > 1:
            raise ValueError(f"{where} mixes the splits {', '.join(sorted(splits))}: name the files of one with a glob")
    else:
        files = [file for pattern in expand_braces(where) for file in _matches(pattern)]
    if not files:
        raise ValueError(f"no files found at {where!r}: expected a file, a folder or a pattern of {extension} files")
    return files


def expand_braces(pattern: str) -> list[str]:
    """Expand ``{a,b}`` and ``{000..123}`` as a shell does; zero padding is kept."""
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    first, dots, last = found.group(1).partition("..")
    if dots and first.isdigit() and last.isdigit():
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        choices = found.group(1).split(",")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [head + choice + rest for choice in choices for rest in expand_braces(tail)]


def _matches(pattern: str) -> list[str]:
    if Path(pattern).is_file():
        return [pattern]
    files = sorted(file for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
    if not files and not glob.has_magic(pattern):
        raise ValueError(f"no file {pattern!r}")
    return files
