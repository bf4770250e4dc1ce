"""The drawn world's eight shapes and eight colours, and the anti-aliased masks objects are painted with.

Masks are cached by (shape, radius, angle, outline): drawing an object is one blend in its own small window.
"""

import math
from functools import cache

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "moon", "oval")
COLOURS = {
    "red": (215, 40, 40),
    "green": (45, 160, 60),
    "blue": (40, 80, 215),
    "yellow": (242, 218, 50),
    "purple": (140, 50, 185),
    "pink": (250, 130, 195),
    "cyan": (50, 205, 215),
    "brown": (120, 70, 25),
}
COLOUR_NAMES = tuple(COLOURS)
CLASS_NAMES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOUR_NAMES)
RADII = {"small": (8,), "large": (12, 14)}  # pixels
ANGLES = (-20, 0, 20)  # degrees, clockwise

_SUPERSAMPLING = 4
_OUTLINE_WIDTH = 2.0  # pixels


def _inside_polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Even-odd rule."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < (x1 - x0) * (y - y0) / ((y1 - y0) or 1e-9) + x0)
    return inside


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points (x right, y down, unit radius) belong to the upright shape."""
    if shape == "circle":
        return x**2 + y**2 <= 0.9**2
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.78
    if shape == "triangle":
        return _inside_polygon(x, y, [(math.sin(a), -math.cos(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)])
    if shape == "star":
        spikes = [(1.0 if k % 2 == 0 else 0.42, k * math.pi / 5) for k in range(10)]
        return _inside_polygon(x, y, [(r * math.sin(a), -r * math.cos(a)) for r, a in spikes])
    if shape == "cross":
        return (np.maximum(abs(x), abs(y)) <= 0.92) & (np.minimum(abs(x), abs(y)) <= 0.27)
    if shape == "heart":
        u, v = 1.36 * x, 0.12 - 1.28 * y
        return (u**2 + v**2 - 1) ** 3 - u**2 * v**3 <= 0
    if shape == "moon":
        return (x**2 + y**2 <= 0.95**2) & ((x - 0.48) ** 2 + y**2 > 0.72**2)
    if shape == "oval":
        return x**2 + (y / 0.48) ** 2 <= 1
    raise ValueError(f"unknown shape {shape!r}; the drawn world has {', '.join(SHAPES)}")


@cache
def shape_mask(shape: str, radius: int, angle: int = 0, outline: bool = False) -> np.ndarray:
    """Coverage of every pixel of the shape's own window.

    Args:
        shape: one of SHAPES.
        radius: circumscribed radius in pixels.
        angle: rotation in degrees, clockwise.
        outline: only the border, two pixels wide inwards.

    Returns:
        (2 radius + 1, 2 radius + 1) float32 in [0, 1]; shared, do not write to it.
    """
    size = 2 * radius + 1
    axis = (np.arange(size * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING - size / 2
    x, y = np.meshgrid(axis / radius, axis / radius)
    turn = math.radians(angle)
    x, y = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    inside = _inside(shape, x, y)
    if outline:
        inside &= ~_erode(inside, int(_OUTLINE_WIDTH * _SUPERSAMPLING))
    return inside.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING).mean(axis=(1, 3)).astype(np.float32)


def _erode(inside: np.ndarray, width: int) -> np.ndarray:
    """Points whose whole disc of ``width`` samples is inside."""
    padded = np.pad(inside, width)
    eroded = np.ones_like(inside)
    height, breadth = inside.shape
    for dy in range(-width, width + 1):
        for dx in range(-width, width + 1):
            if dx * dx + dy * dy <= width * width:
                eroded &= padded[width + dy : width + dy + height, width + dx : width + dx + breadth]
    return eroded
