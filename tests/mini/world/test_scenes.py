"""The drawn world: deterministic, disjoint splits, and pictures that show what their description says."""

import hashlib

import numpy as np
import pytest

from sf_llava.mini.world.canvas import IMAGE_SIZE
from sf_llava.mini.world.scenes import DOMAINS, SPLITS, MiniImages, MiniLabelledImages, draw_scene
from sf_llava.mini.world.shapes import CLASS_NAMES, COLOUR_NAMES, COLOURS, SHAPES, shape_mask


def digest(scene) -> str:
    return hashlib.sha1(scene.image.tobytes()).hexdigest()


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_picture_depends_on_nothing_but_its_arguments(domain):
    alone = draw_scene(3, 17, domain)
    for index in range(30):
        draw_scene(3, index, domain)
    again = draw_scene(3, 17, domain)
    assert np.array_equal(alone.image, again.image) and np.array_equal(alone.owner, again.owner)
    assert alone.objects == again.objects and alone.arrow == again.arrow


def test_the_world_of_the_shipped_models_is_pinned():
    world = hashlib.sha1()
    for domain in DOMAINS:
        for index in range(20):
            world.update(repr((draw_scene(0, index, domain).objects, draw_scene(0, index, domain).arrow)).encode())
    assert world.hexdigest() == "f75767c1999383a52c2b209cccd748c268679a00"


def test_pictures_differ_between_indices_seeds_splits_domains_and_labels():
    pictures = [
        digest(draw_scene(seed, index, domain, split, label))
        for seed in (0, 1)
        for index in range(40)
        for domain in DOMAINS
        for split in SPLITS
        for label in (None, 0)
    ]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("domain", DOMAINS)
def test_pixels_at_an_object_have_its_colour(domain):
    named = np.array([COLOURS[name] for name in COLOUR_NAMES], dtype=float)
    right = total = 0
    for index in range(300):
        scene = draw_scene(0, index, domain)
        for number, thing in enumerate(scene.objects):
            if thing.shape == "region":
                continue  # paled
            pixels = scene.image[scene.owner == number].astype(float)
            if domain == "diagram":  # an outline is filled with paper: its most colourful pixels are the ink
                pixels = pixels[np.argsort(np.ptp(pixels, axis=1))[-len(pixels) // 4 :]]
            nearest = np.abs(named - np.median(pixels, axis=0)).sum(axis=1).argmin()
            right += COLOUR_NAMES[nearest] == thing.colour
            total += 1
    assert right / total > 0.97


@pytest.mark.parametrize("domain", DOMAINS)
def test_boxes_and_owner_maps_agree(domain):
    for index in range(200):
        scene = draw_scene(1, index, domain)
        assert scene.image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3) and scene.image.dtype == np.uint8
        assert set(np.unique(scene.owner)) <= {-1, *range(len(scene.objects))}
        for number, thing in enumerate(scene.objects):
            rows, columns = (scene.owner == number).nonzero()
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 <= columns.min() and columns.max() < x1 <= IMAGE_SIZE
            assert 0 <= y0 <= rows.min() and rows.max() < y1 <= IMAGE_SIZE
            if thing.shape != "region":  # nothing covers shapes and bars
                assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_photos_hold_one_to_three_shapes_and_all_classes_occur():
    scenes = [draw_scene(0, index) for index in range(2000)]
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}
    assert {f"{thing.colour} {thing.shape}" for scene in scenes for thing in scene.objects} == set(CLASS_NAMES)


def test_charts_and_maps_keep_their_rules():
    kinds = set()
    for index in range(300):
        scene = draw_scene(0, index, "diagram")
        kinds.add(scene.kind)
        if scene.kind == "chart":
            values = [bar.value for bar in scene.objects]
            assert len(set(values)) == len(values) >= 2
            for bar in scene.objects:
                assert bar.box[3] - bar.box[1] == 6 * bar.value
        if scene.kind == "map":
            regions = [thing for thing in scene.objects if thing.shape == "region"]
            for number, marker in enumerate(scene.objects[len(regions) :], start=len(regions)):
                x0, y0, x1, y1 = marker.box
                around = scene.owner[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2]
                neighbours = around[(around != number)]
                assert np.bincount(neighbours).argmax() == marker.region
                assert marker.colour not in {region.colour for region in regions}
    assert kinds == {"shapes", "chart", "map"}


@pytest.mark.parametrize("domain", [*DOMAINS, "both"])
def test_labelled_pictures_show_one_shape_of_their_class(domain):
    labelled = MiniLabelledImages(domain, size=256)
    assert set(labelled.labels) == set(range(64))
    for index, label in enumerate(labelled.labels):
        (thing,) = labelled.scene(index).objects
        assert f"{thing.colour} {thing.shape}" == labelled.class_names[label]


def test_image_sources_load_and_describe():
    source = MiniImages("both", size=4)
    assert len(source) == 4
    picture = source.load(1)
    assert picture.size == (IMAGE_SIZE, IMAGE_SIZE) and picture.mode == "RGB"
    assert source.scene(0).domain == "scene" and source.scene(1).domain == "diagram"
    assert "both/train/3" in source.describe(3)
    with pytest.raises(IndexError):
        source.load(4)
    with pytest.raises(ValueError, match="domains: scene, diagram, both"):
        MiniImages("photo")


def test_unknown_domains_and_splits_are_named():
    with pytest.raises(ValueError, match="domains"):
        draw_scene(0, 0, "photo")
    with pytest.raises(ValueError, match="splits"):
        draw_scene(0, 0, "scene", "dev")


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_fit_their_window_and_outlines_lie_inside(shape):
    for angle in (0, 15, -30):
        full, border = shape_mask(shape, 12, angle), shape_mask(shape, 12, angle, outline=True)
        assert full.shape == (25, 25) and 0.12 < full.mean() < 0.75
        assert (full[0] > 0.5).sum() <= 4 and (full[:, 0] > 0.5).sum() <= 4  # touched at most, not cut off
        assert (border <= full).all() and border.mean() < 0.95 * full.mean()
