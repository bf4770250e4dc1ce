"""Where a conversion may be written: nothing that it did not write itself is ever replaced.

A converted directory holds ``conversion.json``: what was converted, and the size and time of every file written. It is
replaced only by a new conversion of the same source, and only while nobody has added or changed anything in it.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sf_llava.files import read_json_object, require_writable, write_directory, write_json

RECORD = "conversion.json"


def check_output(output: str | Path, sources: Iterable[str | Path]) -> None:
    """Refuse an output that would replace anything but an older conversion of the same sources.

    Args:
        output: the directory to write.
        sources: every file and directory that is read, the one that is converted first.

    Raises:
        ValueError: what lies at ``output``, or its place beside a source, forbids writing there.
        OSError: its folder may not be written to.
    """
    output, read = Path(output), [Path(source) for source in sources]
    place = output.resolve()
    for source in read:
        if source.exists() and (place == source.resolve() or place in source.resolve().parents):
            raise ValueError(f"{output} is, or holds, what is read ({source}): name another output")
        if source.is_dir() and source.resolve() in place.parents:
            raise ValueError(f"{output} lies inside what is read ({source}): name another output")
    if output.is_symlink():
        raise ValueError(f"{output} is a link: name the directory itself, or another output")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file, not a directory: name another output")
    if output.is_dir() and any(output.iterdir()) and (reason := _not_ours(output, read[0])):
        raise ValueError(f"{output} is kept, for {reason}: name another output, or remove it yourself")
    require_writable(output)


def write_conversion(output: str | Path, sources: Iterable[str | Path], fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write the files of a conversion, and publish them as ``output``; see :func:`check_output`."""
    output, sources = Path(output), list(sources)

    def fill_and_record(directory: Path) -> None:
        fill(directory)
        write_json(directory / RECORD, {"source": str(Path(sources[0]).resolve()), "files": _describe(directory)})
        check_output(output, sources)  # loading takes minutes, in which something may have come to lie there

    write_directory(output, fill_and_record)


def _not_ours(directory: Path, source: Path) -> str | None:
    """Say why a directory is not an untouched conversion of ``source``."""
    if not (directory / RECORD).is_file():
        return "convert.py did not write it"
    record = read_json_object(directory / RECORD)
    if record.get("source") != str(source.resolve()):
        return f"it was converted from {record.get('source')}, not from {source}"
    written, found = dict(record.get("files") or {}), _describe(directory)
    changed = sorted(name for name in written.keys() | found.keys() if written.get(name) != found.get(name))
    if changed:
        return f"files in it were added, changed or removed since it was written ({', '.join(changed[:3])})"
    return None


def _describe(directory: Path) -> dict[str, Any]:
    """Give size in bytes and time in nanoseconds of every file in a directory, the record left out."""
    described = {}
    for path in sorted(directory.rglob("*")):
        if (path.is_symlink() or not path.is_dir()) and path != directory / RECORD:
            status = path.lstat()
            described[str(path.relative_to(directory))] = [status.st_size, status.st_mtime_ns]
    return described
