"""The drawn world's questions: true to picture or text, the same every time, and no gift to a blind guesser."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from sf_llava.mini.questions.pictures import NUMBERS
from sf_llava.mini.questions.sets import draw_picture, draw_problem, picture_problems, text_problem
from sf_llava.mini.questions.texts import OPPOSITES, WORD_CLASSES
from sf_llava.scienceqa.data import ask, explain, open_scienceqa
from sf_llava.scienceqa.problems import kind_of
from sf_llava.scienceqa.scoring import GROUPS, score

PICTURE_KINDS = {
    *("colour", "shape", "size", "count", "where", "relation", "arrow"),
    *("extreme", "height", "order", "region", "marker"),
}
TEXT_KINDS = {"owner", "compare", "sequence", "word", "opposite"}


@pytest.fixture(scope="module")
def on_pictures():
    """(scene, question) pairs: all that 600 pictures offer."""
    scenes = ((index, draw_picture(index, "test")) for index in range(600))
    return [(scene, problem) for index, scene in scenes for problem in picture_problems(scene, index, "test")]


@pytest.fixture(scope="module")
def on_texts():
    return [text_problem(index, "test") for index in range(1000)]


def the(scene, **wanted):
    """The only object with these attributes."""
    (found,) = (o for o in scene.objects if all(getattr(o, name) == value for name, value in wanted.items()))
    return found


def look(scene, kind, words):
    """Answer a question from the scene's description; ``words`` are the question's."""
    if kind == "colour":
        return the(scene, shape=words[-1]).colour
    if kind == "shape":
        return next(o.shape for o in scene.objects if o.shape not in ("bar", "region") and o.colour == words[-1])
    if kind == "size":
        return the(scene, shape=words[-1]).size
    if kind == "count":
        noun = words[2].removesuffix("s")
        return NUMBERS[sum(noun in ("shape", o.shape) for o in scene.objects)]
    if kind == "where":
        x, y = the(scene, shape=words[-1]).center
        return f"{'top' if y < 0.5 else 'bottom'}-{'left' if x < 0.5 else 'right'}"
    if kind == "relation":
        dx, dy = np.subtract(the(scene, shape=words[3]).center, the(scene, shape=words[-1]).center)
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "below" if dy > 0 else "above"
    if kind == "arrow":
        return scene.objects[scene.arrow[words[-1] == "to"]].shape
    if kind == "extreme":
        return sorted(scene.objects, key=lambda bar: bar.value)[-1 if words[-1] == "tallest" else 0].colour
    if kind == "height":
        return NUMBERS[the(scene, colour=words[4]).value]
    if kind == "order":
        return min(scene.objects, key=lambda bar: bar.box[0] * (1 if words[-2] == "first" else -1)).colour
    if kind == "region":
        return next(o.colour for o in scene.objects if o.place.replace(" ", "") == words[-1])
    marker = the(scene, shape=words[-1])
    x, y = (int(64 * c) for c in marker.center)
    assert scene.owner[y, x] in (marker.region, scene.objects.index(marker))
    return scene.objects[marker.region].place.replace(" ", "")


def test_answers_are_what_the_picture_shows(on_pictures):
    assert {kind_of(problem.id) for _, problem in on_pictures} == PICTURE_KINDS
    for scene, problem in on_pictures:
        seen = look(scene, kind_of(problem.id), problem.question.rstrip("?").split())
        assert problem.choices[problem.answer] == seen, problem
        assert problem.has_image


def test_answers_follow_from_the_text(on_texts):
    assert {kind_of(problem.id) for problem in on_texts} == TEXT_KINDS
    for problem in on_texts:
        kind, words = kind_of(problem.id), problem.question.rstrip("?").replace(",", "").replace(":", "").split()
        answer = problem.choices[problem.answer]
        facts = [sentence.split() for sentence in problem.hint.split(".") if sentence]
        if kind == "owner":  # Anna has a red ball
            (fact,) = (fact for fact in facts if words[-1] in fact or words[2] in fact)
            assert answer == fact[{"Who": 0, "What": 3 if "colour" in words else 4}[words[0]]]
        elif kind == "compare":  # The dog weighs 7
            weights = {fact[1]: int(fact[3]) for fact in facts}
            assert answer == (max if words[-1] == "most" else min)(weights, key=weights.get)
        elif kind == "sequence":
            a, b, c = map(int, words[-3:])
            assert b - a == c - b and int(answer) == 2 * c - b
        elif kind == "word":
            named = [choice for choice in problem.choices if choice in WORD_CLASSES[" ".join(words[3:])]]
            assert named == [answer]
        else:
            assert {words[-1], answer} in map(set, OPPOSITES)


def test_choices_differ_and_every_published_group_has_questions(on_pictures, on_texts):
    problems = [problem for _, problem in on_pictures] + on_texts
    for problem in problems:
        assert 2 <= len(set(problem.choices)) == len(problem.choices) <= 5
        assert problem.solution.endswith(f" {problem.choices[problem.answer]}.")
        assert problem.subject and 1 <= problem.grade <= 12
    assert all(any(map(belongs, problems)) for belongs in GROUPS.values())


def test_who_guesses_the_most_frequent_answer_is_right_in_less_than_half():
    training = [draw_problem(index, "train") for index in range(0, 6000, 2)]
    test = [draw_problem(index, "test") for index in range(0, 1600, 2)]
    frequencies = defaultdict(Counter)
    for problem in training:
        frequencies[kind_of(problem.id)][problem.choices[problem.answer]] += 1
        frequencies[problem.question][problem.choices[problem.answer]] += 1

    def guess(problem):
        counts = frequencies[problem.question] or frequencies[kind_of(problem.id)]
        return max(problem.choices, key=lambda choice: counts[choice])

    right = np.mean([guess(problem) == problem.choices[problem.answer] for problem in test])
    assert right < 0.45
    letters = Counter(problem.answer for problem in test if len(problem.choices) == 4)
    assert max(letters.values()) < 0.33 * letters.total()


def test_questions_are_the_same_every_time_and_do_not_depend_on_their_number():
    few, many = open_scienceqa("mini:6"), open_scienceqa("mini:12")
    assert few.problems == many.problems[:6] and few.name == "mini" and len(open_scienceqa("mini").problems) == 600
    assert [problem.has_image for problem in few.problems] == [True, False] * 3
    picture = np.asarray(few.load_image(few.problems[2]))
    assert (picture == draw_picture(2, "test").image).all() and picture.shape == (64, 64, 3)


def test_splits_share_no_question():
    splits = {split: open_scienceqa("mini:300", split) for split in ("train", "validation", "test")}
    for first, second in itertools.combinations(splits.values(), 2):
        texts = [{ask(problem) for problem in data.problems if not problem.has_image} for data in (first, second)]
        assert not texts[0] & texts[1]
        pictures = [
            {data.load_image(problem).tobytes() for problem in data.problems[:60:2]} for data in (first, second)
        ]
        assert not pictures[0] & pictures[1]


def test_another_visit_words_a_picture_anew():
    scene = draw_picture(0, "train")
    first, second = (list(picture_problems(scene, 0, "train", visit)) for visit in (0, 1))
    assert first != second and first == list(picture_problems(scene, 0, "train", 0))


def test_unknown_splits_and_sizes_are_refused():
    with pytest.raises(ValueError, match="unknown split 'dev'; the drawn world has train, validation, test"):
        open_scienceqa("mini", "dev")
    with pytest.raises(ValueError, match="no data set 'mini:many': expected mini or mini:N"):
        open_scienceqa("mini:many")
    for size in ("0", "1000001", "9" * 5000):
        with pytest.raises(ValueError, match="1 to 1,000,000"):
            open_scienceqa(f"mini:{size}")


def test_every_second_picture_is_to_be_described_where_that_is_asked_for():
    plain, described = (open_scienceqa(f"{name}:40", "train") for name in ("mini", "mini-described"))
    requests = [problem for problem in described.problems if not problem.choices]
    assert [problem.id for problem in requests] == [f"mini-train-{index}-described" for index in range(0, 40, 4)]
    assert [p for p in described.problems if p.choices] == [p for i, p in enumerate(plain.problems) if i % 4]
    for problem in requests:
        assert ask(problem) == "Describe the picture." and explain(problem) == problem.solution.strip()
        scene = draw_picture(int(problem.id.split("-")[2]), "train")
        assert all(f"{thing.colour}." in problem.solution for thing in scene.objects)
        assert np.array_equal(described.load_image(problem), scene.image)
    with pytest.raises(ValueError, match="mini-train-0-described has no choices: these data are for training"):
        score(described.problems, {problem.id: "A" for problem in described.problems})
