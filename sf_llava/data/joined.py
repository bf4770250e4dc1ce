"""Several sources of images as one, the pictures of one behind those of the other."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from PIL import Image

from sf_llava.data.images import ImageSource


@dataclass(frozen=True)
class Joined:
    """The pictures of ``sources`` in their order."""

    sources: Sequence[ImageSource]
    _ends: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", list(accumulate(map(len, self.sources))))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def load(self, index: int) -> Image.Image:
        source, place = self.find(index)
        return source.load(place)

    def describe(self, index: int) -> str:
        source, place = self.find(index)
        return source.describe(place)

    def find(self, index: int) -> tuple[ImageSource, int]:
        """Say which source holds picture ``index``, and where.

        Raises:
            IndexError: there is none.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        return self.sources[number], index - (self._ends[number - 1] if number else 0)
