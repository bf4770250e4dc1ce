"""Names of one's own beside the package's."""

import pytest
from PIL import Image

from sf_llava import catalogue
from sf_llava.data import LabelledImages, open_images, open_labelled


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
    for topic in (catalogue.IMAGES, catalogue.LABELLED):
        topic.find("mini")
        monkeypatch.setattr(topic, "_kinds", dict(topic._kinds))


def test_what_is_registered_is_opened_by_its_name(topics):
    catalogue.IMAGES.register("stars", Stars, "stars:COLOUR")
    catalogue.LABELLED.register("stars", lambda where: LabelledImages(Stars(where), [0, 1, 0], ["near", "far"]))
    assert open_images("stars:red").load(1).getpixel((0, 0)) == (255, 0, 0)
    assert open_labelled("stars:blue").class_names == ["near", "far"]
    with pytest.raises(
        ValueError, match=r"unknown data set 'moons:red': expected folder:PATH.*mini:both, stars:COLOUR"
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
