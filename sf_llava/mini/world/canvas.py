"""What pictures of the drawn world are made with: a stream of random numbers, a canvas, a description."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sf_llava.mini.world.shapes import CLASS_NAMES, COLOUR_NAMES, COLOURS, SHAPES

IMAGE_SIZE = 64
LATTICE = 4  # pixels between possible centres: a shape meets the patches of a small ViT in few ways, so it learns fast

T = TypeVar("T")
_AXIS = np.arange(IMAGE_SIZE, dtype=np.float32)


@dataclass(frozen=True)
class DrawnObject:
    """One thing in a picture.

    Attributes:
        shape: one of SHAPES, or ``bar`` (charts) or ``region`` (maps).
        colour: one of COLOUR_NAMES.
        size: ``small`` or ``large``; empty for bars and regions.
        box: ``x0, y0, x1, y1`` in pixels, x1 and y1 exclusive.
        value: a bar's height in units of the chart's grid, otherwise 0.
        place: a region's compass name (``south west``), otherwise empty.
        region: index of the map region a marker stands in, otherwise None.
    """

    shape: str
    colour: str
    size: str
    box: tuple[int, int, int, int]
    value: int = 0
    place: str = ""
    region: int | None = None

    @property
    def center(self) -> tuple[float, float]:
        """Middle of the box, x before y, as image fractions."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / (2 * IMAGE_SIZE), (y0 + y1) / (2 * IMAGE_SIZE)


@dataclass(frozen=True)
class Scene:
    """A picture and everything there is to know about it.

    Attributes:
        image: (64, 64, 3) uint8.
        owner: (64, 64) int8, index of the object that owns a pixel, -1 for the ground.
        objects: in reading order of creation; ``owner`` counts along them.
        domain: ``scene`` or ``diagram``.
        kind: ``scene``, or in diagrams ``shapes``, ``chart`` or ``map``.
        arrow: indices (from, to) of the two objects an arrow joins, or None.
    """

    image: np.ndarray
    owner: np.ndarray
    objects: tuple[DrawnObject, ...]
    domain: str
    kind: str
    arrow: tuple[int, int] | None = None

    def region_of(self, marker: DrawnObject) -> DrawnObject:
        """The region of a map that a marker stands in."""
        assert marker.region is not None, "only a map's markers stand in a region"
        return self.objects[marker.region]


class Draws:
    """A stream of random numbers for one picture: cheap scalars from one block of uniforms."""

    def __init__(self, *key: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        self._block: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        if not self._block:
            self._block = self.generator.random(96).tolist()
        return low + (high - low) * self._block.pop()

    def integer(self, count: int) -> int:
        """One of 0 .. count - 1."""
        return int(self.uniform() * count)

    def choice(self, items: Sequence[T]) -> T:
        return items[self.integer(len(items))]

    def chance(self, probability: float) -> bool:
        return self.uniform() < probability

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """``count`` different items in random order."""
        left = list(items)
        return [left.pop(self.integer(len(left))) for _ in range(count)]


class Canvas:
    """A float picture under construction, with the map of who owns which pixel."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image  # [64, 64, 3] float32, 0 .. 255
        self.owner = np.full((IMAGE_SIZE, IMAGE_SIZE), -1, dtype=np.int8)

    def blend(self, mask: np.ndarray, x: int, y: int, colour: np.ndarray) -> None:
        """Paint ``colour`` (3,) or (h, w, 3) through ``mask`` (h, w), top left corner at (x, y)."""
        window = self.image[y : y + mask.shape[0], x : x + mask.shape[1]]
        window += mask[:, :, None] * (colour - window)

    def own(self, mask: np.ndarray, x: int, y: int, index: int) -> tuple[int, int, int, int]:
        """Give the pixels at least half covered by ``mask`` to object ``index``; its tight box comes back."""
        covered = mask >= 0.5
        self.owner[y : y + mask.shape[0], x : x + mask.shape[1]][covered] = index
        rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
        return int(x + columns[0]), int(y + rows[0]), int(x + columns[-1]) + 1, int(y + rows[-1]) + 1

    def line(self, start: tuple[float, float], end: tuple[float, float], width: float, colour: np.ndarray) -> None:
        """An anti-aliased segment between two points in pixels, drawn in its own window only."""
        (x0, y0), (x1, y1) = start, end
        left, right = max(int(min(x0, x1) - width), 0), min(int(max(x0, x1) + width) + 2, IMAGE_SIZE)
        top, bottom = max(int(min(y0, y1) - width), 0), min(int(max(y0, y1) + width) + 2, IMAGE_SIZE)
        dx, dy = x1 - x0, y1 - y0
        length = math.hypot(dx, dy) or 1.0
        x, y = _AXIS[None, left:right] - x0, _AXIS[top:bottom, None] - y0
        along = (x * dx + y * dy) / length
        outside = np.maximum(np.maximum(-along, along - length), np.abs(x * dy - y * dx) / length)
        self.blend(np.clip(width / 2 + 0.5 - outside, 0, 1), left, top, colour)

    def finish(self) -> np.ndarray:
        return np.clip(self.image, 0, 255).astype(np.uint8)


def tint(name: str, draws: Draws, jitter: float) -> np.ndarray:
    """The named colour, each channel off by at most ``jitter``. (3,) float32."""
    return np.array([channel + draws.uniform(-jitter, jitter) for channel in COLOURS[name]], dtype=np.float32)


def lattice_range(radius: int) -> tuple[int, int]:
    """First and last multiple of LATTICE at which a disc of ``radius`` lies inside the picture."""
    return -(-radius // LATTICE), (IMAGE_SIZE - 1 - radius) // LATTICE


def find_room(draws: Draws, radius: int, taken: list[tuple[int, int, int]], margin: int = 1) -> tuple[int, int] | None:
    """A centre at which a disc of ``radius`` touches none of ``taken`` (x, y, radius), or None when luck runs out."""
    first, last = lattice_range(radius)
    places = last - first + 1
    for _ in range(24):
        x, y = (LATTICE * (first + draws.integer(places)) for _ in range(2))
        if all((x - a) ** 2 + (y - b) ** 2 > (radius + r + margin) ** 2 for a, b, r in taken):
            return x, y
    return None


def pick_shapes(draws: Draws, label: int | None, maximum: int) -> list[tuple[str, str, str]]:
    """Shape, colour and size of a picture's objects: one of the labelled class, or 1 .. ``maximum`` at will.

    Every fourth picture of several objects repeats a shape or a whole object, so that there is something to count.
    """
    if label is not None:
        colour, shape = CLASS_NAMES[label].split()
        return [(shape, colour, draws.choice(("small", "large")))]
    count = 1 if draws.chance(0.4) else 2 + draws.integer(maximum - 1)
    chosen = [(draws.choice(SHAPES), draws.choice(COLOUR_NAMES), draws.choice(("small", "large")))]
    for _ in range(count - 1):
        shape, colour = draws.choice(SHAPES), draws.choice(COLOUR_NAMES)
        if draws.chance(0.25):
            shape = chosen[0][0]
        if draws.chance(0.15):
            colour = chosen[0][1]
        chosen.append((shape, colour, draws.choice(("small", "large"))))
    return chosen
