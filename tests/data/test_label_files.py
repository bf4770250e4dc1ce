"""Flat folders of pictures take their classes from a file; a list that would be a guess is refused."""

from pathlib import Path

import pytest
from PIL import Image

from sf_llava.data import open_labelled

SYNSETS = ["n01751748", "n01440764", "n01751748"]
FILES = [f"ILSVRC2012_val_{number:08}.JPEG" for number in (1, 2, 3)]


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    place.mkdir(parents=True)
    for shade, name in enumerate(FILES):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(place / name)
    return place


def test_numbers_from_zero_beside_the_names(folder):
    lines = [f"{FILES[2]} 65", f"{FILES[1]} 0", f"{FILES[0]} 65", "ILSVRC2012_val_00000099.JPEG 999"]
    (folder / "val.txt").write_text("\n".join(lines))
    images = open_labelled(f"folder:{folder}")
    assert images.labels == [65, 0, 65] and images.class_names == [str(number) for number in range(66)]
    assert images.describe(1) == FILES[1]


def test_the_solution_file_above_the_folder(folder):
    rows = [
        "ImageId,PredictionString",
        *(f"{Path(f).stem},{s} 85 1 499 272 " for f, s in zip(FILES, SYNSETS, strict=True)),
    ]
    (folder.parents[3] / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    images = open_labelled(f"folder:{folder}")
    assert images.class_names == ["n01440764", "n01751748"] and images.labels == [1, 0, 1]


def test_synset_ids_in_the_order_of_the_files(folder):
    path = folder.parent / "imagenet_2012_validation_synset_labels.txt"
    path.write_text("\n".join(SYNSETS))
    assert open_labelled(f"folder:{folder}").labels == [1, 0, 1]
    path.write_text("\n".join(SYNSETS[:2]))
    with pytest.raises(ValueError, match=r"lists 2 classes without file names, but there are 3 pictures"):
        open_labelled(f"folder:{folder}")


def test_the_development_kits_numbers_are_refused(folder):
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("490\n361\n171\n")
    with pytest.raises(ValueError, match=r"order of the development kit's meta.mat.*give val.txt"):
        open_labelled(f"folder:{folder}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "val.txt is empty"),
        (f"{FILES[0]} 1\n{FILES[1]} 2", f"has no class for 1 of 3 pictures: {FILES[2]}"),
        (f"{FILES[0]} 1\n{FILES[1]}\n{FILES[2]} 1", f"entry 2 must be a file name and a class; it is '{FILES[1]}'"),
        (f"{FILES[0]} 1\n{FILES[0]} 2\n{FILES[1]} 3\n{FILES[2]} 1", "1 pictures are listed more than once"),
        (f"{FILES[0]} cat\n{FILES[1]} 2\n{FILES[2]} 1", "must name classes by synset ids .* it has 'cat'"),
    ],
)
def test_a_broken_file_is_one_sentence(folder, text, message):
    (folder / "val.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_labelled(f"folder:{folder}")


@pytest.mark.parametrize(
    "names",
    [
        ["my a.jpg", "my b.jpg", "my  c d.jpg"],
        ["a,1.jpg", "b,1.jpg", "b, 2.jpg"],
        ["a.jpg", "a.png", "b.png"],
        ["v1.0_0001.jpg", "v1.0_0002.jpg", "v1.1.jpg"],
        ["5 6.jpg", "n01440764 x.jpg", "n01440764,1.jpg"],
    ],
)
@pytest.mark.parametrize("line", ["{} {}\n", "{}\t{}\r\n", "./val/{}  {} \n", "{},{}\n", '"{}", {}\r\n', "\n{} {}\n"])
def test_the_class_is_the_last_word_whatever_the_name_holds(tmp_path, names, line):
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "val.txt").write_bytes(
        b"\xef\xbb\xbf" + "".join(line.format(n, k) for k, n in enumerate(names)).encode()
    )
    images = open_labelled(f"folder:{tmp_path}")
    assert {images.describe(i): label for i, label in enumerate(images.labels)} == {n: k for k, n in enumerate(names)}


def test_a_name_without_its_ending_counts_where_it_is_one_pictures_alone(tmp_path):
    for name in ("a.jpg", "a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "val.txt").write_text("a.png 0\na.jpg 1\nb.JPEG 2\n")
    assert open_labelled(f"folder:{tmp_path}").labels == [1, 0, 2]
    (tmp_path / "val.txt").write_text("a 0\nb 2\n")
    with pytest.raises(ValueError, match=r"has no class for 2 of 3 pictures: a.jpg, a.png"):
        open_labelled(f"folder:{tmp_path}")
    (tmp_path / "val.txt").write_text("x/a.png 0\ny/a.png 1\na.jpg 1\nb.png 2\n")
    with pytest.raises(ValueError, match=r"1 pictures are listed more than once: a.png"):
        open_labelled(f"folder:{tmp_path}")


def test_a_flat_folder_without_a_file_says_what_it_needs(folder):
    with pytest.raises(ValueError, match=r"needs one folder a class, or a file of classes .*val.txt, LOC_val"):
        open_labelled(f"folder:{folder}")
