"""Names of one's own beside the package's."""

import subprocess
import sys

import pytest
from PIL import Image

from sf_llava import catalogue
from sf_llava.data import LabelledImages, open_images, open_labelled
from sf_llava.retrieval.captions import CaptionedImages, open_captions
from sf_llava.scienceqa.data import Problem, ScienceQA, open_scienceqa
from sf_llava.teachers import load_teacher
from sf_llava.zero_shot.class_names import ClassSet, class_set, class_sets


class Stars:
    """Three pictures of a colour."""

    def __init__(self, colour):
        self.colour = colour

    def __len__(self):
        return 3

    def load(self, index):
        return Image.new("RGB", (8 + index, 8), self.colour)

    def describe(self, index):
        return f"star {index}"


@pytest.fixture
def topics(monkeypatch):
    """Fresh copies of what is registered."""
    for topic in (value for value in vars(catalogue).values() if isinstance(value, catalogue.Topic)):
        topic.find("mini")
        monkeypatch.setattr(topic, "_kinds", dict(topic._kinds))


def test_what_is_registered_is_opened_by_its_name(topics):
    catalogue.IMAGES.register("stars", Stars, "stars:COLOUR")
    catalogue.LABELLED.register("stars", lambda where: LabelledImages(Stars(where), [0, 1, 0], ["near", "far"]))
    assert open_images("stars:red").load(1).getpixel((0, 0)) == (255, 0, 0)
    assert open_labelled("stars:blue").class_names == ["near", "far"]
    with pytest.raises(
        ValueError, match=r"unknown data set 'moons:red': expected folder:PATH.*mini:both, .*stars:COLOUR"
    ):
        open_images("moons:red")


def test_a_kind_that_gives_no_labels_says_so(topics):
    catalogue.IMAGES.register("stars", Stars)
    with pytest.raises(ValueError, match=r"stars:red cannot be opened as labelled images: expected folder:PATH"):
        open_labelled("stars:red")


def test_a_kind_is_a_word_that_is_not_taken(topics):
    with pytest.raises(ValueError, match="'mini' is registered as a kind of images already"):
        catalogue.IMAGES.register("mini", Stars)
    with pytest.raises(ValueError, match="a word without a colon"):
        catalogue.IMAGES.register("a:b", Stars)


def test_captions_questions_and_classes_are_registered_by_the_same_call(topics):
    def ask(where, split):
        problem = Problem(f"star-{where}", "Which colour?", ("red", "blue"), 0, has_image=True)
        return ScienceQA("stars", split, [problem], lambda problem: Stars(where).load(0))

    catalogue.CAPTIONS.register("stars", lambda where: CaptionedImages("stars", Stars(where), list("abc"), [0, 1, 2]))
    catalogue.QUESTIONS.register("stars", ask)
    catalogue.CLASSES.register("stars", lambda: ClassSet("stars", ("near", "far"), ("a star that is {}",)))
    assert len(open_captions("stars:red").captions) == 3
    questions = open_scienceqa("stars:blue", "train")
    assert questions.split == "train" and questions.load_image(questions.problems[0]).getpixel((0, 0)) == (0, 0, 255)
    assert class_set("stars").class_names == ("near", "far") and "stars" in [known.name for known in class_sets()]


def test_a_teachers_name_may_stand_for_another(topics, tmp_path):
    catalogue.TEACHERS.register("ours", lambda: f"transformers:{tmp_path / 'absent'}", "ours")
    with pytest.raises(ValueError, match="absent"):
        load_teacher("ours")


def test_looking_a_name_up_loads_nothing_heavy():
    code = """
import sys
from sf_llava import catalogue
found = [topic.find("mini") for topic in vars(catalogue).values() if isinstance(topic, catalogue.Topic)]
assert len(found) == 10 and all(found), found
sys.exit(", ".join({"torch", "numpy", "PIL", "transformers"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.stderr.strip(), done.stderr
