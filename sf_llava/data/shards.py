"""``webdataset:PATTERN``: pictures inside local tar shards, read at random through an index of the tar members.
(Those at an address are streamed: ``streaming``.)

The index is built once from the tar headers and kept in the cache folder (``XDG_CACHE_HOME``, else ``~/.cache``), so
that shards behave like any other source: fixed order, exact shuffling, exact resuming. As in webdataset, the first dot
of a name ends the sample's key. A sample's picture is its member with a picture's extension (``0.jpg``; ``0.depth.png``
beside it is passed by, and told); where there is none, names hold dots of their own, and every picture counts
(``v1.0_0.jpg``, ``v1.0_1.jpg``). Its class, for evaluation only, is the number in ``.cls``.
"""

import contextlib
import hashlib
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sf_llava.data.images import (
    EXTENSIONS,
    CorruptImageError,
    LabelledImages,
    PackedStrings,
    decode,
    number_names,
    printable,
)
from sf_llava.data.paths import find_files
from sf_llava.data.remote import is_remote
from sf_llava.data.tar_index import list_pictures
from sf_llava.files import MAX_BYTES, read_text, write_bytes

INDEX_VERSION = 2  # of the rules by which pictures are found: an index of other rules is not taken up


class ShardImages:
    """Pictures inside tar files.

    Args:
        shards: paths of the tar files.
        names: of every picture's tar member.
        members: (N, 5) int64: shard, offset and size of the picture, offset and size of its ``.cls`` (size 0: none).
    """

    def __init__(self, shards: list[str], names: PackedStrings, members: np.ndarray) -> None:
        self.shards = shards
        self.names = names
        self.members = members

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        shard, offset, size = self.members[index, :3].tolist()
        if size > MAX_BYTES:
            raise CorruptImageError(f"{self.describe(index)}: {size:,} bytes are more than the {MAX_BYTES:,} read")
        try:
            return _read(self.shards[shard], offset, size)
        except OSError as error:
            raise CorruptImageError(f"{self.describe(index)}: {error.strerror}") from error

    def load(self, index: int) -> Image.Image:
        return decode(self.read(index), self.describe(index))

    def describe(self, index: int) -> str:
        return printable(f"{os.path.basename(self.shards[self.members[index, 0]])}:{self.names[index]}")


def open_images(where: str) -> ShardImages:
    """Open the tar shards at ``where``: a file, a folder, a glob, or a brace list like ``train-{0000..1023}.tar``.

    Raises:
        ValueError: no shards, shards at an address, one that is damaged or compressed, or no picture in any of them.
    """
    if is_remote(where):
        raise ValueError(
            f"webdataset:{where} is read from front to end, which serves a bootstrap's training images alone; labels, "
            "validation and evaluation need local files"
        )
    shards = [os.path.abspath(shard) for shard in find_files(where, ".tar")]
    names, members, passed_by = _load_index(shards)
    if passed_by["count"]:
        examples = ", ".join(passed_by["first"])
        warnings.warn(
            f"webdataset:{where}: {passed_by['count']:,} members that are links, or pictures beside the picture of "
            f"their sample, are passed by: {examples}{' ...' if passed_by['count'] > len(passed_by['first']) else ''}",
            stacklevel=3,
        )
    if not len(names):
        raise ValueError(
            f"no images in {where!r}: looked in {len(shards)} tar files for members ending in {' '.join(EXTENSIONS)}"
        )
    return ShardImages(shards, names, members)


def open_labelled(where: str) -> LabelledImages:
    """Open shards with classes in ``.cls`` members and names in ``classnames.txt``, beside or above the shards."""
    images = open_images(where)
    labels = []
    for index, (shard, _, _, offset, size) in enumerate(images.members.tolist()):
        text = _read(images.shards[shard], offset, min(size, 100)).decode("ascii", "replace").strip()
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise ValueError(f"{images.describe(index)} has no class: expected a number in a .cls member, got {text!r}")
        labels.append(int(text))
    folder = Path(images.shards[0]).parent
    for names_file in (folder / "classnames.txt", folder.parent / "classnames.txt"):
        if os.path.lexists(names_file):
            return LabelledImages(images, labels, [name.strip() for name in read_text(names_file).rstrip().split("\n")])
    return LabelledImages(images, labels, number_names(labels))


def _read(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def _load_index(shards: list[str]) -> tuple[PackedStrings, np.ndarray, dict[str, Any]]:
    """Return member names, places and what was passed by, from the cache unless a path, size or time has changed."""
    states = [(shard, os.stat(shard)) for shard in shards]
    key = [INDEX_VERSION, *((shard, state.st_size, state.st_mtime_ns) for shard, state in states)]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sf_llava"
    cache = folder / f"shards-{hashlib.sha256(repr(key).encode()).hexdigest()}.npz"
    # None there, or a damaged one (npz has checksums): it is built anew.
    with contextlib.suppress(Exception), np.load(cache, allow_pickle=False) as stored:
        known = PackedStrings.from_arrays(stored["data"], stored["ends"])
        return known, stored["members"], json.loads(str(stored["passed_by"]))
    names: list[str] = []
    members: list[tuple[int, int, int, int, int]] = []
    count, first = 0, list[str]()
    for number, shard in enumerate(shards):
        pictures, others = list_pictures(shard)
        for name, place in pictures:
            names.append(name)
            members.append((number, *place))
        count += len(others)
        first += [printable(f"{os.path.basename(shard)}:{name}") for name in others[: 3 - len(first)]]
    passed_by = {"count": count, "first": first}
    packed, table = PackedStrings(names), np.array(members, dtype=np.int64).reshape(-1, 5)
    data, told = np.frombuffer(packed.data, dtype=np.uint8), json.dumps(passed_by)
    buffer = io.BytesIO()
    np.savez(buffer, data=data, ends=packed.ends, members=table, passed_by=told)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs the next start its time
        write_bytes(cache, buffer.getvalue())
    return packed, table, passed_by
