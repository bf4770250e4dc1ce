"""The drawn world's first domain: photo-like scenes of one to three shapes on gradients, texture or stripes."""

import math

import numpy as np

from sf_llava.mini.world.canvas import IMAGE_SIZE, Canvas, DrawnObject, Draws, Scene, find_room, pick_shapes, tint
from sf_llava.mini.world.shapes import ANGLES, RADII, shape_mask

_RAMP = (np.arange(IMAGE_SIZE, dtype=np.float32) - IMAGE_SIZE / 2 + 0.5) / IMAGE_SIZE  # -0.5 .. 0.5


def draw_photo(draws: Draws, label: int | None) -> Scene:
    """A photo-like scene: ground, clutter, one to three lit shapes, noise."""
    canvas = Canvas(_ground(draws))
    for _ in range(draws.integer(4)):
        ends = [(draws.uniform(0, IMAGE_SIZE), draws.uniform(0, IMAGE_SIZE)) for _ in range(2)]
        canvas.line(ends[0], ends[1], draws.uniform(0.6, 1.6), _muted(draws, 0.3))
    objects: list[DrawnObject] = []
    taken: list[tuple[int, int, int]] = []
    for shape, colour, size in pick_shapes(draws, label, 3):
        radius = draws.choice(RADII[size])
        room = find_room(draws, radius, taken)
        if room is None:
            continue
        mask = shape_mask(shape, radius, draws.choice(ANGLES))
        x, y = room[0] - radius, room[1] - radius
        light = 1 + draws.uniform(-0.22, 0.22) * np.linspace(-1, 1, 2 * radius + 1, dtype=np.float32)
        canvas.blend(mask, x, y, light[:, None, None] * tint(colour, draws, 14))
        objects.append(DrawnObject(shape, colour, size, canvas.own(mask, x, y, len(objects))))
        taken.append((*room, radius))
    if draws.chance(0.6):
        noise = draws.generator.random((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
        canvas.image += (noise[:, :, None] - 0.5) * draws.uniform(8, 44)
    return Scene(canvas.finish(), canvas.owner, tuple(objects), "scene", "scene")


def _muted(draws: Draws, saturation: float = 0.22) -> np.ndarray:
    """A greyish colour of any lightness. (3,) float32"""
    light = draws.uniform(30, 225)
    return np.array([light * (1 + draws.uniform(-saturation, saturation)) for _ in range(3)], dtype=np.float32)


def _interpolation(cells: int) -> np.ndarray:
    """(64, cells) linear interpolation from ``cells`` samples to a row of pixels."""
    position = np.linspace(0, cells - 1, IMAGE_SIZE, dtype=np.float32)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells, dtype=np.float32)))


_UPSAMPLE = {cells: _interpolation(cells) for cells in (3, 5, 8)}


def _ground(draws: Draws) -> np.ndarray:
    """A ground of one of four kinds: plain, gradient, low-frequency texture, stripes. (64, 64, 3) float32"""
    first, second = _muted(draws), _muted(draws)
    kind, turn = draws.integer(4), draws.uniform(0, 2 * math.pi)
    weight: np.ndarray  # of the second colour, [64, 64]
    if kind == 0:
        weight = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    elif kind == 1:
        weight = 0.5 + _RAMP[None, :] * math.cos(turn) + _RAMP[:, None] * math.sin(turn)
    elif kind == 2:
        rows = _UPSAMPLE[draws.choice((3, 5, 8))]
        weight = rows @ draws.generator.random((rows.shape[1], rows.shape[1]), dtype=np.float32) @ rows.T
    else:
        waves = draws.uniform(3, 11) * 2 * math.pi
        # sin(a + b) from two rows of sines: no sine over the whole picture
        a, b = waves * math.cos(turn) * _RAMP[None, :], waves * math.sin(turn) * _RAMP[:, None]
        weight = (0.5 + 0.5 * (np.sin(a) * np.cos(b) + np.cos(a) * np.sin(b))) * draws.uniform(0.3, 0.8)
    return first + weight[:, :, None] * (second - first)
