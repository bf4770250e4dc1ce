"""What a source of images is, and how encoded bytes become an RGB picture.

Every source (``folder``, ``parquet``, ``hub``, ``shards``, the drawn world) is map-style: it knows its length, loads
any item, and names it; all but the drawn world also give its encoded bytes (``read``). Sources hold names and offsets,
never open files or pictures, so they pickle and fork cheaply.
"""

import functools
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
# Raster formats only: Pillow would hand EPS files to an external interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
# Pillow's own bound against decompression bombs, checked here too because other libraries lift Pillow's.
MAX_PIXELS = 178_956_970
MAX_CLASSES = 1_000_000
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF files


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
    if not data:
        raise CorruptImageError(f"{name}: empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
        return to_rgb(image)
    except Exception as error:  # on broken bytes decoders raise OSError, SyntaxError, struct.error, EOFError and more
        raise CorruptImageError(f"{name}: {_reason(error)}") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this build of Pillow can read."""
    Image.init()
    return tuple(format for format in FORMATS if format in Image.OPEN)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a known format"
    return str(error) or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of 8 or 16 bits a channel to RGB.

    Unlike ``image.convert("RGB")``, 16-bit greyscale keeps its high byte; Pillow turns every value above 255 white.

    Raises:
        TypeError: no Pillow picture.
        ValueError: it cannot be decoded, or its mode does not say which values are black and white (32-bit, float).
    """
    if not isinstance(image, Image.Image):
        kind = f"{type(image).__module__}.{type(image).__name__}"
        raise TypeError(f"expected a Pillow picture, got {kind}: Image.fromarray makes one of (H, W, 3) uint8")
    try:
        image.load()
    except Exception as error:  # see decode
        raise ValueError(f"the picture cannot be decoded: {_reason(error)}") from error
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = _high_byte(image)
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"a picture of mode {image.mode} (32 bits a pixel) does not say which values are black and white: convert "
            "it to 8 or 16 bits"
        )
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours as without this step, but without Pillow's warning
    elif image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())  # Pillow has no direct way
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"a picture of mode {image.mode} cannot be converted to RGB ({error})") from error


def _high_byte(image: Image.Image) -> Image.Image:
    """Take the upper 8 of a grey picture's 16 bits, or of the 12 that a TIFF file may have; there 0 may be white."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image).astype(np.uint16)
    values >>= tags.get(BITS_PER_SAMPLE, (16,))[0] - 8
    if tags.get(PHOTOMETRIC) == 0:
        values = 255 - values
    return Image.fromarray(values.astype(np.uint8))


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
