"""``webdataset:PATTERN``: pictures inside local tar shards, read at random through an index of the tar members.

The index is built once from the tar headers and kept in the cache folder (``XDG_CACHE_HOME``, else ``~/.cache``), so
that shards behave like any other source: fixed order, exact shuffling, exact resuming. A sample's picture is its member
with a picture's extension (``jpg`` before ``depth.png``); its class, for evaluation only, the number in ``.cls``.
"""

import contextlib
import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from sf_llava.data.images import EXTENSIONS, CorruptImageError, LabelledImages, PackedStrings, decode, printable
from sf_llava.data.paths import find_files
from sf_llava.files import write_bytes


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

    def load(self, index: int) -> Image.Image:
        shard, offset, size = self.members[index, :3].tolist()
        try:
            data = _read(self.shards[shard], offset, size)
        except OSError as error:
            raise CorruptImageError(f"{self.describe(index)}: {error.strerror}") from error
        return decode(data, self.describe(index))

    def describe(self, index: int) -> str:
        return printable(f"{os.path.basename(self.shards[self.members[index, 0]])}:{self.names[index]}")


def open_images(where: str) -> ShardImages:
    """Open the tar shards at ``where``: a file, a folder, a glob, or a brace list like ``train-{0000..1023}.tar``.

    Raises:
        ValueError: no shards, a shard that is damaged or compressed, or no picture in any of them.
    """
    shards = [os.path.abspath(shard) for shard in find_files(where, ".tar")]
    names, members = _load_index(shards)
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
        text = _read(images.shards[shard], offset, size).decode("ascii", "replace").strip()
        if not text.isdigit():
            raise ValueError(f"{images.describe(index)} has no class: expected a number in a .cls member, got {text!r}")
        labels.append(int(text))
    folder = Path(images.shards[0]).parent
    for names_file in (folder / "classnames.txt", folder.parent / "classnames.txt"):
        if names_file.is_file():
            return LabelledImages(images, labels, names_file.read_text(encoding="utf-8").splitlines())
    return LabelledImages(images, labels, [str(number) for number in range(max(labels) + 1)])


def _read(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def _load_index(shards: list[str]) -> tuple[PackedStrings, np.ndarray]:
    """Return member names and places, from the cache unless a shard's path, size or time has changed."""
    states = [(shard, os.stat(shard)) for shard in shards]
    key = hashlib.sha256(repr([(shard, state.st_size, state.st_mtime_ns) for shard, state in states]).encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sf_llava"
    cache = folder / f"shards-{key.hexdigest()}.npz"
    if cache.is_file():
        with np.load(cache, allow_pickle=False) as stored:
            return PackedStrings.from_arrays(stored["data"], stored["ends"]), stored["members"]
    names: list[str] = []
    members: list[tuple[int, int, int, int, int]] = []
    for number, shard in enumerate(shards):
        for name, place in _index_shard(shard):
            names.append(name)
            members.append((number, *place))
    packed, table = PackedStrings(names), np.array(members, dtype=np.int64).reshape(-1, 5)
    buffer = io.BytesIO()
    np.savez(buffer, data=np.frombuffer(packed.data, dtype=np.uint8), ends=packed.ends, members=table)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs the next start its time
        write_bytes(cache, buffer.getvalue())
    return packed, table


def _index_shard(shard: str) -> list[tuple[str, tuple[int, int, int, int]]]:
    """List the pictures of one tar file: name, and offset and size of the picture and of its ``.cls``."""
    pictures: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # or tarfile would keep every header
                folder, slash, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not member.isfile() or not stem:
                    continue
                sample = folder + slash + stem
                if extension.lower() == "cls":
                    classes[sample] = (member.offset_data, member.size)
                elif base.lower().endswith(EXTENSIONS):
                    known = pictures.get(sample)
                    if known is None or member.name.count(".") < known[0].count("."):
                        pictures[sample] = (member.name, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(
            f"{shard} is not a complete, uncompressed tar file ({error}); fetch it again, or unpack it if compressed"
        ) from error
    return [(name, (offset, size, *classes.get(sample, (0, 0)))) for sample, (name, offset, size) in pictures.items()]
