"""Questions of the drawn world that need no picture: their hint, or common knowledge, answers them."""

from sf_llava.mini.questions.pictures import Draft
from sf_llava.mini.world.canvas import Draws
from sf_llava.mini.world.shapes import COLOUR_NAMES

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix")
THINGS = ("ball", "kite", "book", "cup", "hat", "bag")
ANIMALS = ("dog", "cat", "horse", "bird", "fish", "cow")
WORD_CLASSES = {
    "an animal": ANIMALS,
    "a fruit": ("apple", "pear", "plum", "cherry", "lemon", "grape"),
    "a tool": ("hammer", "saw", "drill", "axe", "spade", "rake"),
    "a colour": COLOUR_NAMES[:6],
    "a person": NAMES,
}
OPPOSITES = (
    ("hot", "cold"),
    ("big", "little"),
    ("fast", "slow"),
    ("old", "young"),
    ("wet", "dry"),
    ("hard", "soft"),
    ("full", "empty"),
    ("light", "dark"),
)
_LARGEST = 20


def text_draft(draws: Draws) -> Draft:
    """A question of a random kind."""
    return draws.choice((_owner, _compare, _sequence, _word_class, _opposite))(draws)


def _owner(draws: Draws) -> Draft:
    """Who has what, and of which colour, told in the hint."""
    names, things, colours = draws.sample(NAMES, 3), draws.sample(THINGS, 3), draws.sample(COLOUR_NAMES, 3)
    rows = list(zip(names, colours, things, strict=True))
    hint = " ".join(f"{name} has a {colour} {thing}." for name, colour, thing in rows)
    name, colour, thing = draws.choice(rows)
    question, solution, answer, choices = draws.choice(
        (
            (f"Who has the {thing}?", f"The {thing} is with {name}.", name, names),
            (f"What is the colour of the {thing}?", f"The {thing} of {name} is {colour}.", colour, colours),
            (f"What does {name} have?", f"{name} has a {colour} {thing}.", thing, things),
        )
    )
    return Draft(
        kind="owner",
        subject="social science",
        grade=3,
        question=question,
        answer=answer,
        distractors=tuple(choice for choice in choices if choice != answer),
        solution=solution,
        hint=hint,
    )


def _compare(draws: Draws) -> Draft:
    """Which of two or three animals is the heaviest or lightest."""
    count = 2 + draws.integer(2)
    animals, weights = draws.sample(ANIMALS, count), draws.sample(range(1, 10), count)
    word, best = draws.choice((("most", max), ("least", min)))
    weight, animal = best(zip(weights, animals, strict=True))
    return Draft(
        kind="compare",
        subject="natural science",
        grade=6,
        question=f"Which animal weighs {word}?",
        answer=animal,
        distractors=tuple(other for other in animals if other != animal),
        solution=f"The {'largest' if best is max else 'smallest'} number is {weight}, that of the {animal}.",
        hint=" ".join(f"The {animal} weighs {weight}." for animal, weight in zip(animals, weights, strict=True)),
        lecture="Numbers measure weight.",
    )


def _sequence(draws: Draws) -> Draft:
    """The next number of an arithmetic sequence."""
    step, start = 1 + draws.integer(3), 1 + draws.integer(9)
    shown = [start + step * index for index in range(3)]
    answer = start + 3 * step
    near = [number for number in range(max(1, answer - 4), _LARGEST + 1) if number != answer]
    return Draft(
        kind="sequence",
        subject="natural science",
        grade=8,
        question=f"Which number comes next: {', '.join(map(str, shown))}?",
        answer=str(answer),
        distractors=tuple(map(str, draws.sample(near, 3))),
        solution=f"The numbers grow by {step}, so next comes {answer}.",
    )


def _word_class(draws: Draws) -> Draft:
    """Which word names an animal, a fruit ..."""
    (name, words), *others = draws.sample(list(WORD_CLASSES.items()), 4)
    answer = draws.choice(words)
    return Draft(
        kind="word",
        subject="language science",
        grade=2,
        question=f"Which word names {name}?",
        answer=answer,
        distractors=tuple(draws.choice(wrong) for _, wrong in others),
        solution=f"The name of {name} is {answer}.",
        lecture="Words name things.",
    )


def _opposite(draws: Draws) -> Draft:
    """The word with the opposite meaning."""
    pair, *others = draws.sample(OPPOSITES, 4)
    word, answer = draws.sample(pair, 2)
    return Draft(
        kind="opposite",
        subject="language science",
        grade=9,
        question=f"Which word is the opposite of {word}?",
        answer=answer,
        distractors=tuple(draws.choice(wrong) for wrong in others),
        solution=f"The opposite of {word} is {answer}.",
        lecture="Words have opposites.",
    )
