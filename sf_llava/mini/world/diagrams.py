"""The drawn world's second domain: diagrams on plain grounds - shapes with arrows, bar charts, small maps."""

import math

import numpy as np

from sf_llava.mini.world.canvas import (
    IMAGE_SIZE,
    LATTICE,
    Canvas,
    DrawnObject,
    Draws,
    Scene,
    find_room,
    lattice_range,
    pick_shapes,
    tint,
)
from sf_llava.mini.world.shapes import ANGLES, COLOUR_NAMES, RADII, SHAPES, shape_mask

_PAPERS = ((255, 255, 255), (250, 246, 232), (236, 240, 246), (240, 248, 238), (225, 225, 225))
_INK = np.array((35, 35, 40), dtype=np.float32)
_WHITE = np.array((255, 255, 255), dtype=np.float32)

# Where a map's regions lie: compass name and middle as image fractions.
_MAP_LAYOUTS = (
    (("west", 0.25, 0.5), ("east", 0.75, 0.5)),
    (("north", 0.5, 0.25), ("south", 0.5, 0.75)),
    (("north", 0.5, 0.2), ("south west", 0.25, 0.75), ("south east", 0.75, 0.75)),
    (("north west", 0.25, 0.25), ("north east", 0.75, 0.25), ("south", 0.5, 0.8)),
    (("north west", 0.25, 0.25), ("north east", 0.75, 0.25), ("south west", 0.25, 0.75), ("south east", 0.75, 0.75)),
)
_Y, _X = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32)


def draw_diagram(draws: Draws, label: int | None) -> Scene:
    """A diagram: half of them shapes (perhaps joined by an arrow), a quarter charts, a quarter maps."""
    paper = np.array(draws.choice(_PAPERS), dtype=np.float32)
    canvas = Canvas(np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32))
    canvas.image[:] = paper
    kind = "shapes" if label is not None else draws.choice(("shapes", "shapes", "chart", "map"))
    arrow = None
    if kind == "shapes":
        objects = _shapes(canvas, draws, label)
        if len(objects) >= 2 and draws.chance(0.5):
            arrow = (0, 1)
            _arrow(canvas, objects[0], objects[1])
    elif kind == "chart":
        objects = _chart(canvas, draws)
    else:
        objects = _map(canvas, draws)
    return Scene(canvas.finish(), canvas.owner, tuple(objects), "diagram", kind, arrow)


def _paint(
    canvas: Canvas, draws: Draws, index: int, shape: str, colour: str, radius: int, at: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Paint one shape as an outline, or filled with or without an inked border; its tight box comes back."""
    angle, style = draws.choice(ANGLES), draws.integer(3)
    x, y = at[0] - radius, at[1] - radius
    full, border = shape_mask(shape, radius, angle), shape_mask(shape, radius, angle, outline=True)
    ink = tint(colour, draws, 8)
    if style == 0:
        canvas.blend(border, x, y, ink)
    else:
        canvas.blend(full, x, y, ink)
        if style == 1:
            canvas.blend(0.5 * border, x, y, _INK)
    return canvas.own(full, x, y, index)


def _shapes(canvas: Canvas, draws: Draws, label: int | None) -> list[DrawnObject]:
    objects: list[DrawnObject] = []
    taken: list[tuple[int, int, int]] = []
    if draws.chance(0.15):  # a frame
        for a, b in ((1, 1), (62, 62)):
            for end in ((1, 62), (62, 1)):
                canvas.line((a, b), end, 1.0, _INK)
    for shape, colour, size in pick_shapes(draws, label, 4):
        radius = draws.choice(RADII[size])
        at = find_room(draws, radius, taken, margin=2)
        if at is None:
            continue
        box = _paint(canvas, draws, len(objects), shape, colour, radius, at)
        objects.append(DrawnObject(shape, colour, size, box))
        taken.append((*at, radius))
    return objects


def _arrow(canvas: Canvas, source: DrawnObject, target: DrawnObject) -> None:
    """An inked arrow from the border of one object's box to the other's."""
    (x0, y0), (x1, y1) = ((IMAGE_SIZE * c for c in thing.center) for thing in (source, target))
    length = math.hypot(x1 - x0, y1 - y0)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    leave, reach = (max(o.box[2] - o.box[0], o.box[3] - o.box[1]) / 2 for o in (source, target))
    if leave + reach > length - 4:  # too close for a gap: draw between the centres' inner thirds
        leave = reach = length / 3
    start, tip = (x0 + ux * leave, y0 + uy * leave), (x1 - ux * reach, y1 - uy * reach)
    canvas.line(start, tip, 1.2, _INK)
    for turn in (2.6, -2.6):
        wx, wy = ux * math.cos(turn) - uy * math.sin(turn), ux * math.sin(turn) + uy * math.cos(turn)
        canvas.line(tip, (tip[0] + 5 * wx, tip[1] + 5 * wy), 1.2, _INK)


def _chart(canvas: Canvas, draws: Draws) -> list[DrawnObject]:
    """Two to five bars of different colours and different heights (1 .. 8 grid units of 6 pixels)."""
    count = 2 + draws.integer(4)
    colours, values = draws.sample(COLOUR_NAMES, count), draws.sample(range(1, 9), count)
    base, left, right = 57, 7, 61
    if draws.chance(0.4):
        canvas.image[base - 48 : base : 12, left:right] *= 0.85
    pitch = (right - left) / count
    width = int(pitch * draws.uniform(0.55, 0.85))
    objects = []
    for index, (colour, value) in enumerate(zip(colours, values, strict=True)):
        x = left + int(pitch * (index + 0.5) - width / 2) + 1
        mask = np.ones((6 * value, width), dtype=np.float32)
        canvas.blend(mask, x, base - 6 * value, tint(colour, draws, 8))
        objects.append(DrawnObject("bar", colour, "", canvas.own(mask, x, base - 6 * value, index), value=value))
    canvas.image[6 : base + 1, left - 1] = _INK
    canvas.image[base, left - 1 : right] = _INK
    return objects


def _map(canvas: Canvas, draws: Draws) -> list[DrawnObject]:
    """Two to four pale regions with inked borders, and one or two small markers standing in them."""
    layout = draws.choice(_MAP_LAYOUTS)
    colours = draws.sample(COLOUR_NAMES, len(layout))
    a, b = draws.uniform(0, 6.3), draws.uniform(0, 6.3)
    wobble_x, wobble_y = 3 * np.sin(_Y[:, :1] / 7 + a), 3 * np.sin(_X[:1] / 7 + b)
    distance = np.stack(
        [(_X + wobble_x - IMAGE_SIZE * x) ** 2 + (_Y + wobble_y - IMAGE_SIZE * y) ** 2 for _, x, y in layout]
    )
    region = distance.argmin(axis=0).astype(np.int8)  # [64, 64]
    paints = np.stack([tint(colour, draws, 8) * 0.6 + _WHITE * 0.4 for colour in colours])
    canvas.image[:] = paints[region]
    canvas.owner[:] = region
    canvas.image[:, 1:][region[:, 1:] != region[:, :-1]] = _INK
    canvas.image[1:][region[1:] != region[:-1]] = _INK
    objects = []
    for index, ((place, _, _), colour) in enumerate(zip(layout, colours, strict=True)):
        rows, columns = (region == index).any(axis=1).nonzero()[0], (region == index).any(axis=0).nonzero()[0]
        box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        objects.append(DrawnObject("region", colour, "", box, place=place))
    for home in draws.sample(range(len(layout)), 1 + draws.integer(2)):
        radius = draws.choice(RADII["small"])
        _, x, y = layout[home]
        first, last = lattice_range(radius)
        wanted_x, wanted_y = IMAGE_SIZE * x + draws.uniform(-5, 5), IMAGE_SIZE * y + draws.uniform(-4, 4)
        at_x, at_y = (LATTICE * min(max(round(value / LATTICE), first), last) for value in (wanted_x, wanted_y))
        colour, shape = draws.choice([name for name in COLOUR_NAMES if name not in colours]), draws.choice(SHAPES)
        box = _paint(canvas, draws, len(objects), shape, colour, radius, (at_x, at_y))
        objects.append(DrawnObject(shape, colour, "small", box, region=home))
    return objects
