"""Digests of a directory's files, in a file of their own: a bit that flips on the disk is found when they are read."""

import hashlib
from pathlib import Path

from sf_llava.files import write_bytes

DIGESTS_NAME = "SHA256SUMS"


def write_digests(directory: str | Path) -> None:
    """Write the SHA-256 of every file below ``directory`` into it, in the form that ``sha256sum -c`` reads."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(_digests(Path(directory)).items())]
    write_bytes(Path(directory) / DIGESTS_NAME, "".join(lines).encode())


def changed_files(directory: str | Path) -> list[str]:
    """Name the files that are not as they were when :func:`write_digests` ran; none where it never did."""
    path = Path(directory) / DIGESTS_NAME
    if not path.exists():
        return []
    lines = path.read_bytes().decode(errors="replace").splitlines()
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = _digests(Path(directory))
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def _digests(directory: Path) -> dict[str, str]:
    found = {}
    for path in directory.rglob("*"):
        if path.is_file() and path.name != DIGESTS_NAME:
            with open(path, "rb") as file:
                found[path.relative_to(directory).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
