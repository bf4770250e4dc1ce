"""What a source of images is, and how encoded bytes become an RGB picture.

Every source (``folder``, ``parquet``, ``hub``, ``shards``, the drawn world) is map-style: it knows its length, loads
any item, and names it; all but the drawn world also give its encoded bytes (``read``). Sources hold names and offsets,
never open files or pictures, so they pickle and fork cheaply.
"""

import functools
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image

from sf_llava.data.rgb import reason, to_rgb

Read = TypeVar("Read")

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
# Raster formats only: Pillow would hand EPS files to an external interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
# Pillow's own bound against decompression bombs, checked here too because other libraries lift Pillow's.
MAX_PIXELS = 178_956_970
MAX_CLASSES = 1_000_000


class CorruptImageError(ValueError):
    """An item that cannot be read as a picture; the message names it and says why."""


class ImageSource(Protocol):
    """A fixed, ordered collection of pictures."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image:
        """Decode item ``index`` to an RGB picture, or raise ``CorruptImageError`` naming it."""
        ...

    def describe(self, index: int) -> str:
        """Name item ``index`` for a reader of the log."""
        ...


@dataclass
class LabelledImages:
    """An ``ImageSource`` with one class per picture; for evaluation only.

    Args:
        source: the pictures.
        labels: class index of every picture.
        class_names: name of every class; the numbers as text where the data set names none.
    """

    source: ImageSource
    labels: list[int]
    class_names: list[str]

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.source):
            raise ValueError(f"there are {len(self.labels)} labels but {len(self.source)} images")
        if blank := [number for number, name in enumerate(self.class_names) if not name.strip()]:
            raise ValueError(f"class {blank[0]} of {len(self.class_names)} has a blank name: give it one")
        if self.labels and not 0 <= min(self.labels) <= max(self.labels) < len(self.class_names):
            raise ValueError(
                f"labels run from {min(self.labels)} to {max(self.labels)} but there are {len(self.class_names)} "
                "classes; a split whose labels are withheld cannot be evaluated"
            )

    def __len__(self) -> int:
        return len(self.source)

    def load(self, index: int) -> Image.Image:
        return self.source.load(index)

    def describe(self, index: int) -> str:
        return self.source.describe(index)


def number_names(numbers: Iterable[int]) -> list[str]:
    """Name classes that a data set only numbers: ``0``, ``1``, ... up to the largest of ``numbers``.

    Raises:
        ValueError: a number that no data set's classes reach.
    """
    largest = max(numbers, default=-1)
    if largest >= MAX_CLASSES:
        raise ValueError(f"a picture has class {largest:,}; classes are numbered from 0 to {MAX_CLASSES - 1:,} at most")
    return [str(number) for number in range(largest + 1)]


def decode(data: bytes, name: str) -> Image.Image:
    """Decode one encoded picture to RGB.

    EXIF orientation is ignored and transparency dropped (not composited), as CLIP's and LLaVA's own pipelines do.

    Raises:
        CorruptImageError: empty, truncated, not an image, too large, or broken in any way the decoder notices.
    """
    return decode_as(to_rgb, data, name)


def decode_as(read: Callable[[Image.Image], Read], data: bytes, name: str) -> Read:
    """Open one encoded picture and give what ``read`` makes of it; errors as of :func:`decode`."""
    if not data:
        raise CorruptImageError(f"{name}: empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=known_formats())
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
        return read(image)
    except Exception as error:  # on broken bytes decoders raise OSError, SyntaxError, struct.error, EOFError and more
        raise CorruptImageError(f"{name}: {reason(error)}") from error


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Return the formats that this build of Pillow can read."""
    Image.init()
    return tuple(format for format in FORMATS if format in Image.OPEN)


class PackedStrings:
    """A list of strings in two flat buffers, so a million names pickle fast and stay shared between forked workers."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self.data = b"".join(encoded)
        self.ends = np.cumsum([len(item) for item in encoded], dtype=np.int64)

    @classmethod
    def from_arrays(cls, data: np.ndarray, ends: np.ndarray) -> "PackedStrings":
        """Restore from the bytes (uint8) and the end of every string (int64)."""
        strings = cls(())
        strings.data, strings.ends = data.tobytes(), ends
        return strings

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.data[start : self.ends[index]])


def printable(path: str) -> str:
    """Return a file name that any log can hold, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "replace")


_SPLIT = re.compile(r"(?<![a-z])(train|val|validation|valid|dev|test)(?![a-z])")


def split_of(path: str) -> str | None:
    """Return the split a file or folder name speaks of (``data/train-00001.tar`` -> ``train``), if any."""
    found = _SPLIT.search(path.lower())
    return found.group(1) if found else None
