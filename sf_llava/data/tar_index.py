"""What lies in a tar shard: its pictures and classes by webdataset's rule, and whether the file is whole.

Python's tarfile takes a damaged header in the middle, or a file that ends early, for the end; here both are errors.
"""

import tarfile
from collections import defaultdict
from collections.abc import Iterator

from sf_llava.data.images import EXTENSIONS

BLOCK = 512
TAIL = 2**20  # bytes after the end mark that are looked at


def list_pictures(shard: str) -> tuple[list[tuple[str, tuple[int, int, int, int]]], list[str]]:
    """List the pictures of an uncompressed tar file.

    Returns:
        Name, and offset and size of the picture and of its ``.cls`` (size 0: none), of every picture, sample by sample;
        and the names of members that may be pictures but are passed by: links, and others beside a sample's own.

    Raises:
        ValueError: the file is damaged, cut short or compressed.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)  # key -> name -> place
    classes: dict[str, tuple[int, int]] = {}
    passed_by: list[str] = []
    for member in _members(shard):
        base = member.name.rpartition("/")[2]
        if member.isdir() or base.startswith("."):
            continue
        if is_picture(member.name):
            sample = samples[key_of(member.name)]
            if member.isfile() and not member.issparse() and member.name not in sample:
                sample[member.name] = (member.offset_data, member.size)
            else:
                passed_by.append(member.name)
        elif base.lower().endswith(".cls") and member.isfile():
            classes[member.name[: -len(".cls")]] = (member.offset_data, member.size)
    pictures = []
    for key, sample in samples.items():
        chosen = own_pictures(key, list(sample))
        passed_by += [name for name in sample if name not in chosen]
        for name in chosen:
            own = classes.get(name.rpartition(".")[0]) or classes.get(key) or (0, 0)
            pictures.append((name, (*sample[name], *own)))
    return pictures, passed_by


def key_of(name: str) -> str:
    """Give the key of the sample that a member belongs to: what stands before the first dot of its name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def is_picture(name: str) -> bool:
    """Whether a member's name is a picture's; hidden ones, with nothing before the dot, are not."""
    base = name.rpartition("/")[2]
    return not base.startswith(".") and base.lower().endswith(EXTENSIONS)


def own_pictures(key: str, names: list[str]) -> list[str]:
    """Choose a sample's own among its pictures: the one without further dots, or else all."""
    plain = [name for name in names if name.count(".", len(key)) == 1]
    return plain[:1] or names


def _members(shard: str) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(shard, "r:") as tar:
            end = 0
            while (member := tar.next()) is not None:
                # tarfile would keep every header; typeshed does not list this attribute, which every version has.
                tar.members = []  # type: ignore[attr-defined]
                if tar.offset <= end:
                    raise tarfile.ReadError(f"the member at byte {end:,} ends before it begins")
                end = tar.offset
                yield member
        _check_end(shard, end)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:  # crafted headers raise the others
        raise ValueError(
            f"{shard} is not a complete, uncompressed tar file ({error}); fetch it again, or unpack it if compressed"
        ) from error


def _check_end(shard: str, end: int) -> None:
    """See that tar's end mark, a block of zeros, stands behind the last member, and nothing behind it."""
    with open(shard, "rb") as file:
        file.seek(end)
        tail = file.read(TAIL)
    if len(tail) < BLOCK:
        raise tarfile.ReadError(f"it ends at byte {end + len(tail):,} without an end mark")
    if any(tail[:BLOCK]):
        raise tarfile.ReadError(f"the header at byte {end:,} is damaged")
    if any(tail):
        raise tarfile.ReadError(f"data follow its end mark at byte {end:,}")
