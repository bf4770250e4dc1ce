"""Words for the drawn world: captions of a picture, zero-shot templates, and the vocabulary they need."""

from sf_llava.mini.world.canvas import DrawnObject, Scene
from sf_llava.mini.world.shapes import COLOUR_NAMES, SHAPES

TEMPLATES = ("a {}", "a picture of a {}", "an image of a {}", "there is a {}")

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_ORIGINS = {"scene": ("a photo of", "a scene with"), "shapes": ("a diagram of", "a drawing of")}

_WORDS = """
a an the of and with is are in at to from on where there photo scene diagram drawing picture image
left right top bottom center above below small large shape shapes arrow
bar bars chart tallest shortest map region regions north south west east , .
"""


def plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


VOCABULARY = tuple(
    sorted(
        {
            *COLOUR_NAMES,
            *SHAPES,
            *map(plural, SHAPES),
            *_NUMBERS,
            *_WORDS.split(),
        }
    )
)


def place_of(thing: DrawnObject) -> str:
    """Where in the picture a thing is: ``top left`` .. ``center`` .. ``bottom right``, in thirds."""
    x, y = thing.center
    column = "left" if x < 0.38 else "right" if x > 0.62 else ""
    row = "top" if y < 0.38 else "bottom" if y > 0.62 else ""
    return f"{row} {column}".strip() or "center"


def relation_of(first: DrawnObject, second: DrawnObject) -> str:
    """How the first thing lies to the second, along the longer axis of their distance."""
    (x0, y0), (x1, y1) = first.center, second.center
    if abs(x0 - x1) >= abs(y0 - y1):
        return "to the left of" if x0 < x1 else "to the right of"
    return "above" if y0 < y1 else "below"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _name(thing: DrawnObject) -> str:
    return f"{thing.colour} {thing.shape}"


def _shape_captions(scene: Scene) -> list[str]:
    things = scene.objects
    full = _join([f"a {thing.size} {_name(thing)} at the {place_of(thing)}" for thing in things])
    first, second = _ORIGINS[scene.kind]
    if len(things) == 1:
        name = _name(things[0])
        return [f"{first} {full}", *(template.format(name) for template in TEMPLATES), f"{second} a {name}", full]
    plain = _join([f"a {_name(thing)}" for thing in things])
    counts = {shape: sum(thing.shape == shape for thing in things) for shape in SHAPES}
    counted = _join([f"{_NUMBERS[n]} {shape if n == 1 else plural(shape)}" for shape, n in counts.items() if n])
    one, other = things[0], things[-1]
    captions = [
        f"{first} {full}",
        full,
        f"{second} {plain}",
        f"{_NUMBERS[len(things)]} shapes, {plain}",
        f"{_NUMBERS[len(things)]} shapes, {counted}",
        f"a {_name(one)} {relation_of(one, other)} a {_name(other)}",
        f"there is a {_name(other)} {relation_of(other, one)} a {_name(one)}",
    ]
    if scene.arrow is not None:
        source, target = (things[index] for index in scene.arrow)
        captions += [f"an arrow from a {_name(source)} to a {_name(target)}"] * 2
    return captions


def _chart_captions(scene: Scene) -> list[str]:
    bars = scene.objects
    tallest, shortest = max(bars, key=lambda bar: bar.value), min(bars, key=lambda bar: bar.value)
    row = _join([f"a {bar.colour} bar" for bar in bars])
    values = _join([f"the {bar.colour} bar is {_NUMBERS[bar.value]}" for bar in bars])
    return [
        f"a bar chart where {values}",
        f"a chart with {_NUMBERS[len(bars)]} bars, {row} from left to right",
        f"a bar chart where the {tallest.colour} bar is the tallest",
        f"a chart with {_NUMBERS[len(bars)]} bars where the {shortest.colour} bar is the shortest",
    ]


def _map_captions(scene: Scene) -> list[str]:
    regions = [thing for thing in scene.objects if thing.shape == "region"]
    markers = [thing for thing in scene.objects if thing.shape != "region"]
    land = _join([f"a {region.colour} region in the {region.place}" for region in regions])
    marks = _join([f"a {_name(m)} in the {scene.region_of(m).colour} region" for m in markers])
    spots = _join([f"a {_name(m)} in the {scene.region_of(m).place}" for m in markers])
    return [
        f"a map with {land} and {marks}",
        f"a map of {_NUMBERS[len(regions)]} regions, {land}",
        f"a map with {marks}",
        f"a map with {spots}",
    ]


def captions(scene: Scene) -> list[str]:
    """True sentences about a picture, the fullest first; words are those of VOCABULARY."""
    return {"chart": _chart_captions, "map": _map_captions}.get(scene.kind, _shape_captions)(scene)
