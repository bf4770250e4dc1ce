"""Questions on diagrams of the drawn world; every answer is read off the scene's description.

One function a kind: it takes a scene and a stream of random numbers and returns a draft, or None where the picture
has no such question. Distractors are drawn from the words that answers are drawn from, so that words alone say
little. Answers are single words, and a solution ends in its answer: a small language model then finds the option's
letter sooner.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sf_llava.mini.world.canvas import DrawnObject, Draws, Scene
from sf_llava.mini.world.shapes import COLOUR_NAMES, SHAPES

DESCRIBE = "Describe the picture."
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
RELATIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
COMPASS = ("north", "south", "west", "east", "northwest", "northeast", "southwest", "southeast")
_UNCLEAR = 0.1  # nearer to a middle line than this, a corner is no clear answer
_ONE_SHAPE_COUNTED = 0.6  # share of single shapes whose number is asked, so that "one" is no more frequent than others


@dataclass(frozen=True)
class Draft:
    """A question before its choices are shuffled; ``solution`` and ``lecture`` are sentences, perhaps empty."""

    kind: str
    subject: str
    grade: int
    question: str
    answer: str
    distractors: tuple[str, ...]
    solution: str
    hint: str = ""
    lecture: str = ""


def picture_drafts(scene: Scene, draws: Draws) -> Iterator[Draft]:
    """The picture's questions, each kind once at most, in random order; there is always one."""
    makers = _MAKERS[scene.kind]
    for maker in draws.sample(makers, len(makers)):
        draft = maker(scene, draws)
        if draft is not None:
            yield draft


def describe(scene: Scene) -> str:
    """What the picture shows, in the words of solutions; training only, LLaVA's first stage in miniature."""
    sentences = []
    if scene.kind == "chart":
        ordered = sorted(scene.objects, key=lambda bar: bar.value)
        named = {"first": scene.objects[0], "last": scene.objects[-1], "shortest": ordered[0], "tallest": ordered[-1]}
        sentences += [f"The {name} bar is {bar.colour}." for name, bar in named.items()]
        sentences += [f"The {bar.colour} bar is {NUMBERS[bar.value]}." for bar in scene.objects]
    regions = [thing for thing in scene.objects if thing.shape == "region"]
    sentences += [f"The {_place(region)} is {region.colour}." for region in regions]
    for thing in _drawn(scene):
        where = f"in the {_place(scene.region_of(thing))}" if regions else f"at the {_corner(thing) or 'middle'}"
        sentences += [f"The {thing.shape} is {how}." for how in (thing.colour, thing.size, where)]
    if scene.arrow is not None:
        source, target = (scene.objects[index] for index in scene.arrow)
        sentences.append(f"An arrow points from the {source.shape} to the {target.shape}.")
    return " ".join(sentences)


def _others(draws: Draws, words: Sequence[str], answer: str, count: int, shown: Sequence[str] = ()) -> tuple[str, ...]:
    """``count`` wrong words of ``words``; half of the time words that the picture shows too come first."""
    first = [word for word in dict.fromkeys(shown) if word != answer] if draws.chance(0.5) else []
    rest = [word for word in words if word != answer and word not in first]
    return tuple((draws.sample(first, len(first)) + draws.sample(rest, len(rest)))[:count])


def _drawn(scene: Scene) -> list[DrawnObject]:
    """Shapes that lie in the picture; neither bars nor regions."""
    return [thing for thing in scene.objects if thing.shape in SHAPES]


def _unique(things: Sequence[DrawnObject], attribute: str) -> list[DrawnObject]:
    """Those whose shape (or colour) no other has."""
    values = [getattr(thing, attribute) for thing in things]
    return [thing for thing, value in zip(things, values, strict=True) if values.count(value) == 1]


def _corner(thing: DrawnObject) -> str | None:
    """The corner of the picture it lies in, None near a middle line."""
    x, y = thing.center
    if min(abs(x - 0.5), abs(y - 0.5)) < _UNCLEAR:
        return None
    return f"{'top' if y < 0.5 else 'bottom'}-{'left' if x < 0.5 else 'right'}"


def _place(region: DrawnObject) -> str:
    """Its compass name in one word."""
    return region.place.replace(" ", "")


def _colour(scene: Scene, draws: Draws) -> Draft | None:
    things = _drawn(scene)
    if not (named := _unique(things, "shape")):
        return None
    thing = draws.choice(named)
    return Draft(
        kind="colour",
        subject="natural science",
        grade=1,
        question=f"What is the colour of the {thing.shape}?",
        answer=thing.colour,
        distractors=_others(draws, COLOUR_NAMES, thing.colour, 3, [other.colour for other in scene.objects]),
        solution=f"The {thing.shape} is {thing.colour}.",
    )


def _shape(scene: Scene, draws: Draws) -> Draft | None:
    things = _drawn(scene)
    if not (named := _unique(things, "colour")):
        return None
    thing = draws.choice(named)
    return Draft(
        kind="shape",
        subject="natural science",
        grade=2,
        question=f"Which shape is {thing.colour}?",
        answer=thing.shape,
        distractors=_others(draws, SHAPES, thing.shape, 3, [other.shape for other in things]),
        solution=f"The {thing.colour} shape is the {thing.shape}.",
    )


def _size(scene: Scene, draws: Draws) -> Draft | None:
    if not (named := _unique(_drawn(scene), "shape")):
        return None
    thing = draws.choice(named)
    return Draft(
        kind="size",
        subject="natural science",
        grade=3,
        question=f"How large is the {thing.shape}?",
        answer=thing.size,
        distractors=("large" if thing.size == "small" else "small",),
        solution=f"The {thing.shape} is {thing.size}.",
    )


def _count(scene: Scene, draws: Draws) -> Draft | None:
    what, low, high = {"shapes": ("shapes", 1, 4), "chart": ("bars", 2, 5), "map": ("regions", 2, 4)}[scene.kind]
    number = sum(thing.shape == "region" for thing in scene.objects) if scene.kind == "map" else len(scene.objects)
    if number == 1 and not draws.chance(_ONE_SHAPE_COUNTED):
        return None
    return Draft(
        kind="count",
        subject="natural science",
        grade=4,
        question=f"How many {what} are there?",
        answer=NUMBERS[number],
        distractors=tuple(NUMBERS[other] for other in range(low, high + 1) if other != number),
        solution=f"The number of {what} is {NUMBERS[number]}.",
    )


def _where(scene: Scene, draws: Draws) -> Draft | None:
    named = [(thing, corner) for thing in _unique(_drawn(scene), "shape") if (corner := _corner(thing))]
    if not named:
        return None
    thing, answer = draws.choice(named)
    return Draft(
        kind="where",
        subject="natural science",
        grade=5,
        question=f"Where is the {thing.shape}?",
        answer=answer,
        distractors=tuple(corner for corner in CORNERS if corner != answer),
        solution=f"The {thing.shape} is at the {answer}.",
    )


def _relation(scene: Scene, draws: Draws) -> Draft | None:
    things = _drawn(scene)
    named = _unique(things, "shape")
    if len(named) < 2:
        return None
    first, second = draws.sample(named, 2)
    dx, dy = (a - b for a, b in zip(first.center, second.center, strict=True))
    if max(abs(dx), abs(dy)) < 1.6 * min(abs(dx), abs(dy)):  # on a diagonal: no clear answer
        return None
    step = (0 if abs(dx) < abs(dy) else 1 if dx > 0 else -1), (0 if abs(dx) > abs(dy) else 1 if dy > 0 else -1)
    answer = next(word for word, direction in RELATIONS.items() if direction == step)
    return Draft(
        kind="relation",
        subject="natural science",
        grade=6,
        question=f"Where is the {first.shape} from the {second.shape}?",
        answer=answer,
        distractors=tuple(word for word in RELATIONS if word != answer),
        solution=f"From the {second.shape}, the {first.shape} is {answer}.",
    )


def _arrow(scene: Scene, draws: Draws) -> Draft | None:
    if scene.arrow is None:
        return None
    source, target = (scene.objects[index].shape for index in scene.arrow)
    if source == target:
        return None
    (there, answer), (here, other) = draws.sample((("point to", target), ("come from", source)), 2)
    return Draft(
        kind="arrow",
        subject="natural science",
        grade=7,
        question=f"Which shape does the arrow {there}?",
        answer=answer,
        distractors=_others(draws, SHAPES, answer, 3, [source, target]),
        solution=f"The arrow does {here} the {other} and {there} the {answer}.",
    )


def _extreme(scene: Scene, draws: Draws) -> Draft:
    word, best = draws.choice((("tallest", max), ("shortest", min)))
    bar = best(scene.objects, key=lambda bar: bar.value)
    return Draft(
        kind="extreme",
        subject="natural science",
        grade=8,
        question=f"Which bar is the {word}?",
        answer=bar.colour,
        distractors=_others(draws, COLOUR_NAMES, bar.colour, 3, [other.colour for other in scene.objects]),
        solution=f"The {word} bar is {bar.colour}.",
        lecture="A chart shows numbers.",
    )


def _height(scene: Scene, draws: Draws) -> Draft:
    bar = draws.choice(scene.objects)
    far = [number for number in range(1, 9) if abs(number - bar.value) >= 3]
    return Draft(
        kind="height",
        subject="natural science",
        grade=9,
        question=f"How tall is the {bar.colour} bar?",
        answer=NUMBERS[bar.value],
        distractors=tuple(NUMBERS[number] for number in draws.sample(far, 2)),
        solution=f"The {bar.colour} bar is {NUMBERS[bar.value]}.",
        lecture="A chart shows numbers.",
    )


def _order(scene: Scene, draws: Draws) -> Draft:
    word, index = draws.choice((("first", 0), ("last", -1)))
    bar = scene.objects[index]
    return Draft(
        kind="order",
        subject="natural science",
        grade=10,
        question=f"What is the colour of the {word} bar?",
        answer=bar.colour,
        distractors=_others(draws, COLOUR_NAMES, bar.colour, 3, [other.colour for other in scene.objects]),
        solution=f"The {word} bar is {bar.colour}.",
        lecture="A chart shows numbers.",
    )


def _region(scene: Scene, draws: Draws) -> Draft:
    region = draws.choice([thing for thing in scene.objects if thing.shape == "region"])
    return Draft(
        kind="region",
        subject="social science",
        grade=11,
        question=f"What is the colour of the {_place(region)}?",
        answer=region.colour,
        distractors=_others(draws, COLOUR_NAMES, region.colour, 3, [other.colour for other in scene.objects]),
        solution=f"The {_place(region)} is {region.colour}.",
        lecture="A map shows regions.",
    )


def _marker(scene: Scene, draws: Draws) -> Draft | None:
    if not (named := _unique(_drawn(scene), "shape")):
        return None
    thing = draws.choice(named)
    regions = [other for other in scene.objects if other.shape == "region"]
    place = _place(scene.region_of(thing))
    return Draft(
        kind="marker",
        subject="social science",
        grade=12,
        question=f"In which part of the map is the {thing.shape}?",
        answer=place,
        distractors=_others(draws, COMPASS, place, 3, [_place(region) for region in regions]),
        solution=f"The {thing.shape} is in the {place}.",
        lecture="A map shows regions.",
    )


_MAKERS: dict[str, tuple[Callable[[Scene, Draws], Draft | None], ...]] = {
    "shapes": (_colour, _shape, _size, _count, _where, _relation, _arrow),
    "chart": (_count, _extreme, _height, _order),
    "map": (_colour, _count, _region, _marker),
}
