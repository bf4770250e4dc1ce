"""Captions of the drawn world say true things in known words."""

import re

from sf_llava.mini.world.canvas import DrawnObject
from sf_llava.mini.world.captions import TEMPLATES, VOCABULARY, captions, place_of, relation_of
from sf_llava.mini.world.scenes import DOMAINS, draw_scene
from sf_llava.mini.world.shapes import CLASS_NAMES, COLOUR_NAMES, SHAPES


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def test_all_captions_and_prompts_use_the_vocabulary():
    texts = [template.format(name) for template in TEMPLATES for name in CLASS_NAMES]
    for domain in DOMAINS:
        for index in range(500):
            texts += captions(draw_scene(0, index, domain))
    assert {word for text in texts for word in words(text)} <= set(VOCABULARY)


def test_captions_name_no_colour_or_shape_the_picture_lacks():
    singular = {("crosses" if shape == "cross" else f"{shape}s"): shape for shape in SHAPES}
    for domain in DOMAINS:
        for index in range(500):
            scene = draw_scene(0, index, domain)
            for caption in captions(scene):
                said = {singular.get(word, word) for word in words(caption)}
                assert said & set(COLOUR_NAMES) <= {thing.colour for thing in scene.objects}
                assert said & set(SHAPES) <= {thing.shape for thing in scene.objects}


def test_the_first_caption_names_every_object():
    for domain in DOMAINS:
        for index in range(300):
            scene = draw_scene(0, index, domain)
            full = captions(scene)[0]
            for thing in scene.objects:
                assert f"{thing.colour} {thing.shape}" in full


def test_places_and_relations_follow_the_boxes():
    left = DrawnObject("star", "red", "small", (2, 4, 14, 16))
    right = DrawnObject("moon", "blue", "small", (46, 20, 58, 32))
    assert place_of(left) == "top left" and place_of(right) == "right"
    assert relation_of(left, right) == "to the left of" and relation_of(right, left) == "to the right of"
    below = DrawnObject("heart", "pink", "small", (8, 50, 20, 62))
    assert relation_of(below, left) == "below" and relation_of(left, below) == "above"


def test_a_known_picture_has_known_captions():
    scene = draw_scene(0, 0)
    (thing,) = scene.objects
    assert captions(scene)[1] == f"a {thing.colour} {thing.shape}"
