"""Pictures with masks: what a data set for segmentation is, and how encoded masks become labels.

A mask gives every pixel the number of a class. Labels run from 0 to L - 1; 255 stands for pixels that count for nobody,
in the loss and in every score (mmsegmentation's ``ignore_index``).
Letters: L classes.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from sf_llava.data.images import CorruptImageError, ImageSource, decode_as
from sf_llava.weights.fit import some

IGNORED = 255
MAX_CLASSES = 255
INDEX_MODES = ("L", "P", "I", "1")
SAME_SHAPE = 0.03
"""A mask may be of another size than its picture; their aspect ratios differ by no more than this share."""


class MaskedSource(Protocol):
    """A fixed, ordered collection of pictures with masks; ``left_out`` names files that have no partner."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def left_out(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Decode pair ``index``: an RGB picture, and labels (H, W) uint8, of the mask's own size.

        Raises:
            CorruptImageError: one of them cannot be used; the message names it.
        """
        ...

    def describe(self, index: int) -> str:
        """Name pair ``index``."""
        ...


class MaskSource(Protocol):
    """Encoded masks, in the order of their pictures."""

    def read(self, index: int) -> bytes:
        """Give the bytes of mask ``index``, or raise ``CorruptImageError`` naming it."""
        ...

    def describe(self, index: int) -> str:
        """Name mask ``index``."""
        ...


@dataclass(frozen=True)
class Labels:
    """How the numbers in masks are read.

    Args:
        class_names: of classes 0 .. L - 1.
        first: number in the masks of class 0; lower ones are not counted (ADE20K: 1, ``reduce_zero_label``).
        ignored: further numbers in the masks that are not counted; 255 never is.
    """

    class_names: tuple[str, ...]
    first: int = 0
    ignored: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not 1 <= len(self.class_names) <= MAX_CLASSES:
            raise ValueError(f"{len(self.class_names)} classes: masks hold 1 to {MAX_CLASSES}")

    def __call__(self, numbers: np.ndarray, name: str) -> np.ndarray:
        """Turn the numbers of a mask (H, W) into labels (H, W) uint8.

        Raises:
            CorruptImageError: it holds numbers that are no class and not ignored.
        """
        found = np.unique(numbers)
        last = self.first + len(self.class_names) - 1
        ignored = {number for number in found.tolist() if self._is_ignored(number)}
        if wrong := [number for number in found.tolist() if number > last and number not in ignored]:
            raise CorruptImageError(
                f"{name}: labels {some(wrong)} are out of range: {len(self.class_names)} classes have "
                f"{self.first} to {last}, {IGNORED} is not counted (name others with `ignored`)"
            )
        labels = np.where(np.isin(numbers, list(ignored)), IGNORED, numbers.astype(np.int64) - self.first)
        return labels.astype(np.uint8)

    def _is_ignored(self, number: int) -> bool:
        return number < self.first or number == IGNORED or number in self.ignored


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """Decode one encoded mask to the numbers in it, (H, W).

    Raises:
        CorruptImageError: empty, truncated, no picture, too large, or one of colours instead of numbers.
    """
    return decode_as(_read_numbers, data, name)


def _read_numbers(image: Image.Image) -> np.ndarray:
    if image.mode not in INDEX_MODES and not image.mode.startswith("I;16"):
        raise ValueError(f"a mask of mode {image.mode} holds colours: expected the number of a class in each pixel")
    image.load()
    return np.asarray(image).astype(np.int64)


@dataclass(frozen=True)
class MaskedImages:
    """Pictures and their masks, from two sources: a :class:`MaskedSource`.

    Args:
        images: the pictures.
        masks: their masks, in the same order.
        labels: how the masks are read.
        left_out: names of pictures without mask, and of masks without picture.
    """

    images: ImageSource
    masks: MaskSource
    labels: Labels
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labels.class_names

    def describe(self, index: int) -> str:
        return self.images.describe(index)

    def load(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """See :class:`MaskedSource`; pictures and masks of different shapes are refused too."""
        image = self.images.load(index)
        name = self.masks.describe(index)
        numbers = decode_mask(self.masks.read(index), name)
        height, width = numbers.shape
        if abs(width * image.height / (height * image.width) - 1) > SAME_SHAPE:
            raise CorruptImageError(
                f"{name}: a mask of {width} x {height} pixels for a picture of {image.width} x {image.height}: "
                "expected the same size, or the same proportions"
            )
        return image, self.labels(numbers, name)
