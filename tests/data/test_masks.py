"""Masks: which numbers are classes, which files are pairs, what cannot be used."""

import io

import numpy as np
import pytest
from PIL import Image

from sf_llava.data.images import CorruptImageError
from sf_llava.data.mask_transforms import MaskedTransform, MaskedViews, recolour, scale_to
from sf_llava.data.masked import open_masked, parse_labels
from sf_llava.data.masks import IGNORED, Labels, decode_mask
from sf_llava.data.sampler import generator_of
from sf_llava.data.transforms import Preprocessing
from sf_llava.mini.world.scenes import draw_scene


def encoded(array, mode=None):
    image = Image.fromarray(np.asarray(array))
    if mode == "P":
        image.putpalette([channel for value in range(256) for channel in (value, 0, 255 - value)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(array))


NUMBERS = np.array([[0, 1, 2], [3, 255, 1]], dtype=np.uint8)


@pytest.mark.parametrize(("array", "mode"), [(NUMBERS, "L"), (NUMBERS, "P"), (NUMBERS.astype(np.uint16), "I;16")])
def test_masks_of_numbers_are_read_whatever_their_palette(array, mode):
    assert decode_mask(encoded(array, mode), "mask").tolist() == NUMBERS.tolist()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "m: empty file"),
        (b"no picture", "m: not an image in a known format"),
        (encoded(np.arange(4096, dtype=np.uint8).reshape(64, 64))[:90], "m: "),
        (encoded(np.zeros((2, 2, 3), dtype=np.uint8)), "a mask of mode RGB holds colours"),
    ],
)
def test_a_mask_that_cannot_be_read_says_why(data, said):
    with pytest.raises(CorruptImageError, match=said):
        decode_mask(data, "m")


def test_numbers_become_labels():
    plain = Labels(("a", "b", "c", "d"))
    assert plain(NUMBERS, "m").tolist() == [[0, 1, 2], [3, 255, 1]]
    assert Labels(("a", "b", "c"), first=1)(NUMBERS, "m").tolist() == [[255, 0, 1], [2, 255, 0]]  # reduce_zero_label
    assert Labels(("a", "b", "c"), ignored=frozenset({3}))(NUMBERS, "m").tolist() == [[0, 1, 2], [255, 255, 1]]
    with pytest.raises(CorruptImageError, match="m: labels 2, 3 are out of range: 2 classes have 0 to 1"):
        Labels(("a", "b"))(NUMBERS, "m")
    with pytest.raises(ValueError, match="256 classes"):
        Labels(tuple(map(str, range(256))))


def test_ade20k_is_read_in_its_own_layout(tmp_path):
    for split, folder in (("train", "training"), ("validation", "validation")):
        for number in range(3):
            write(tmp_path / "images" / folder / f"ADE_{split}_{number}.png", np.zeros((4, 6, 3), dtype=np.uint8))
            write(
                tmp_path / "annotations" / folder / f"ADE_{split}_{number}.png",
                np.full((4, 6), 150 * (number > 0), np.uint8),
            )
    (tmp_path / "annotations" / "training" / "ADE_train_2.png").unlink()
    train = open_masked(f"ade20k:{tmp_path}", "train")
    assert len(train) == 2 and len(train.class_names) == 150 and train.left_out == ("ADE_train_2.png (no mask)",)
    assert [set(train.load(index)[1].flatten().tolist()) for index in range(2)] == [{IGNORED}, {149}]
    assert len(open_masked(f"ade20k:{tmp_path}", "validation")) == 3
    with pytest.raises(ValueError, match="brings its own classes"):
        open_masked(f"ade20k:{tmp_path}", "train", Labels(("a",)))


def test_folders_are_paired_by_name_and_what_is_alone_is_named(tmp_path):
    for name in ("a/1.png", "a/2.png", "3.png"):
        write(tmp_path / "images" / name, np.zeros((4, 6, 3), dtype=np.uint8))
    for name in ("a/1.png", "3.png", "4.png"):
        write(tmp_path / "masks" / name, np.ones((8, 12), dtype=np.uint8))  # twice the size: the same proportions
    with pytest.raises(ValueError, match=r"the classes have no names: write .*classes\.txt"):
        open_masked(f"folder:{tmp_path}", "train")
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    found = open_masked(f"folder:{tmp_path}", "train")
    assert found.class_names == ("sky", "road") and len(found) == 2
    assert found.left_out == ("a/2.png (no mask)", "4.png (no picture)")
    image, labels = found.load(0)
    assert image.size == (6, 4) and labels.shape == (8, 12)
    write(tmp_path / "masks" / "3.png", np.ones((8, 8), dtype=np.uint8))
    with pytest.raises(CorruptImageError, match=r"3\.png: a mask of 8 x 8 pixels for a picture of 6 x 4"):
        found.load(0)
    write(tmp_path / "masks" / "3.jpg", np.ones((8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"holds 3\..* and 3\..*: keep one"):
        open_masked(f"folder:{tmp_path}", "train")


def test_folders_without_a_pair_are_a_sentence(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="no folder with images/ and masks/"):
        open_masked(f"folder:{tmp_path}", "train")
    write(tmp_path / "images" / "1.png", np.zeros((4, 6, 3), dtype=np.uint8))
    write(tmp_path / "masks" / "2.png", np.zeros((4, 6), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"no picture in .* has a mask of its name.*; 2 files have no partner: 1\.png"):
        open_masked(f"folder:{tmp_path}", "train")
    for name in ("voc:x", "folder", "ade20k"):
        with pytest.raises(ValueError, match=r"unknown pictures with masks .*: expected ade20k:ROOT, mini"):
            open_masked(name, "train")


def test_masks_in_parquet_files_are_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra 'data')")
    rows = {
        "image": [{"bytes": encoded(np.full((4, 6, 3), value, dtype=np.uint8)), "path": None} for value in (1, 2)],
        "mask": [encoded(NUMBERS.repeat(2, axis=0).repeat(2, axis=1)), b"broken"],
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="hold numbers without names: give `classes`"):
        open_masked(f"parquet:{tmp_path / 'a.parquet'}", "train")
    found = open_masked(f"parquet:{tmp_path / 'a.parquet'}", "train", parse_labels("a,b,c", [3]))
    assert found.load(0)[1][::2, ::2].tolist() == [[0, 1, 2], [255, 255, 1]]
    with pytest.raises(CorruptImageError, match="mask, row 1: not an image"):
        found.load(1)


def test_classes_are_names_or_a_file(tmp_path):
    assert parse_labels(None, []) is None
    assert parse_labels("sky, road", [9]) == Labels(("sky", "road"), ignored=frozenset({9}))
    (tmp_path / "names.txt").write_text("sky\nroad\n")
    assert parse_labels(str(tmp_path / "names.txt"), []).class_names == ("sky", "road")
    with pytest.raises(ValueError, match="`ignored` needs `classes`"):
        parse_labels(None, [3])
    with pytest.raises(ValueError, match="is no file, and no list"):
        parse_labels("missing.txt", [])


def test_masks_of_the_drawn_world_are_what_was_drawn():
    for name, domain in (("mini", "scene"), ("mini:diagrams", "diagram")):
        source = open_masked(name, "validation")
        for index in range(20):
            scene = draw_scene(0, index, domain, "validation")
            image, labels = source.load(index)
            assert (np.asarray(image) == scene.image).all() and labels.shape == (64, 64)
            for y, x in ((0, 0), (20, 31), (32, 32), (50, 13)):
                owner = scene.owner[y, x]
                drawn = "ground" if owner < 0 else scene.objects[owner].shape
                assert source.class_names[labels[y, x]] == drawn


@pytest.mark.parametrize("size", [(60, 40), (300, 20), (7, 9)])
def test_views_keep_pictures_and_masks_together(size):
    width, height = size
    labels = np.tile(np.arange(width, dtype=np.uint8) % 3, (height, 1))
    image = Image.fromarray(np.stack([labels * 80] * 3, axis=-1))
    transform = MaskedTransform(Preprocessing(24, (0.4,) * 3, (0.5,) * 3, "bilinear"), recolour=False)
    for seed in range(6):
        pixels, view = transform(image, labels, generator_of(seed))
        assert pixels.shape == (24, 24, 3) and view.shape == (24, 24)
        kept = view != IGNORED
        assert kept.any() and (pixels[~kept] == round(255 * 0.4)).all()
        again = transform(image, labels, generator_of(seed))
        assert pixels.equal(again[0]) and view.equal(again[1])


def test_a_flipped_view_is_flipped_in_both():
    labels = np.zeros((24, 24), dtype=np.uint8)
    labels[:, :8] = 1
    image = Image.fromarray(np.repeat(labels[..., None] * 255, 3, axis=2))
    for flip in (0.0, 1.0):
        transform = MaskedTransform(Preprocessing(24, (0.5,) * 3, (0.5,) * 3), (1, 1), flip, 1.0, recolour=False)
        pixels, view = transform(image, labels, generator_of(0))
        assert ((pixels[..., 0] == 255) == (view == 1)).all()
        assert view[0, 0] == (0 if flip else 1)


def test_crops_of_one_class_alone_are_drawn_again():
    labels = np.zeros((24, 96), dtype=np.uint8)
    labels[:, 70:82] = 1
    transform = MaskedTransform(Preprocessing(24, (0.5,) * 3, (0.5,) * 3), (1, 1), 0.0, 0.75, recolour=False)
    image = Image.fromarray(np.zeros((24, 96, 3), dtype=np.uint8))
    shares = [(transform(image, labels, generator_of(seed))[1] == 1).float().mean() for seed in range(40)]
    free = MaskedTransform(transform.preprocessing, (1, 1), 0.0, 1.0, recolour=False)
    others = [(free(image, labels, generator_of(seed))[1] == 1).float().mean() for seed in range(40)]
    assert np.mean(shares) > np.mean(others)


def test_recolouring_changes_colours_and_not_the_size():
    image = Image.fromarray(np.tile(np.arange(48, dtype=np.uint8)[:, None, None] * 5, (1, 40, 3)))
    drawn = [np.asarray(recolour(image, generator_of(seed))) for seed in range(8)]
    assert all(one.shape == (48, 40, 3) for one in drawn)
    assert len({one.tobytes() for one in drawn}) > 4


def test_strips_are_not_blown_up():
    assert scale_to((60, 40), 24) == (36, 24)
    assert scale_to((4000, 10), 24) == (96, 1)


def test_too_many_useless_pairs_in_a_row_are_a_sentence(tmp_path):
    for number in range(3):
        write(tmp_path / "images" / f"{number}.png", np.zeros((4, 6, 3), dtype=np.uint8))
        write(tmp_path / "masks" / f"{number}.png", np.full((4, 6), 9, dtype=np.uint8))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    transform = MaskedTransform(Preprocessing(8, (0.5,) * 3, (0.5,) * 3))
    views = MaskedViews(open_masked(f"folder:{tmp_path}", "train"), transform, 0)
    with pytest.raises(ValueError, match=r"3 pairs in a row cannot be used \(of 3\): .*labels 9 are out of range"):
        _ = views[0, 0]
