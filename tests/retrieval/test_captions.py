"""Caption files and tables open as CLIP's protocol wants, and every defect is one sentence or a counted remark."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sf_llava.retrieval.captions import open_captions


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "png")
    return buffer.getvalue()


def karpathy(folder, counts=(5, 6, 5), dataset="toy", subfolder="val2014", **changes):
    """A Karpathy file with one training image more, its images beside it."""
    images = []
    for number, count in enumerate([*counts, 5]):
        sentences = [{"raw": f"image {number} text {t} ", "sentid": 10 * number + t} for t in range(count)]
        split = "train" if number == len(counts) else "test"
        entry = {"filename": f"{number}.png", "imgid": number, "split": split, "sentences": sentences}
        images.append(entry | ({"filepath": subfolder} if subfolder else {}) | changes)
        (folder / (subfolder or ".")).mkdir(exist_ok=True)
        picture(number).save(folder / (subfolder or ".") / f"{number}.png")
    return write(folder / "dataset_toy.json", {"images": images, "dataset": dataset})


def coco(folder):
    (folder / "annotations").mkdir()
    (folder / "val2014").mkdir()
    images = [{"id": 100 + i, "file_name": f"{i}.png"} for i in range(3)]
    for i in range(3):
        picture(i).save(folder / "val2014" / f"{i}.png")
    annotations = [{"image_id": 100 + i % 3, "id": 50 - i, "caption": f"caption {i}"} for i in range(15)]
    return images, annotations, folder / "annotations" / "captions_val2014.json"


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def read(path):
    return json.loads(Path(path).read_text())


def test_karpathy_takes_the_test_split_and_five_captions_each(tmp_path):
    data = open_captions(karpathy(tmp_path))
    assert len(data) == 3 and data.image_of == [0] * 5 + [1] * 5 + [2] * 5
    assert data.captions[0] == "image 0 text 0" and data.captions[5] == "image 1 text 0"
    assert np.array_equal(np.array(data.source.load(1)), np.array(picture(1)))
    assert any("more than 5 captions" in remark and "1.png" in remark for remark in data.remarks())


def test_flickr_style_files_have_no_folder_and_take_one_by_name(tmp_path):
    (tmp_path / "photos").mkdir()
    path = karpathy(tmp_path / "photos", subfolder=None)
    moved = write(tmp_path / "dataset.json", read(path))
    assert len(open_captions(f"captions:{moved}", [str(tmp_path / "photos")])) == 3
    assert len(open_captions(moved)) == 3  # found in the folder beside it


def test_counts_that_differ_from_the_published_ones_are_said(tmp_path):
    (note,) = open_captions(karpathy(tmp_path, counts=(5, 5), dataset="flickr30k")).remarks()
    assert "has 2 images; Karpathy's of flickr30k has 1,000" in note
    (tmp_path / "fewer").mkdir()
    _, note = open_captions(karpathy(tmp_path / "fewer", counts=(5, 4), dataset="flickr30k")).remarks()
    assert note.startswith("1 images of the test split of") and note.endswith("the first: val2014/1.png")


def test_coco_annotations_go_by_their_ids(tmp_path):
    images, annotations, path = coco(tmp_path)
    data = open_captions(write(path, {"images": images, "annotations": annotations}))
    assert len(data) == 3 and data.captions[:5] == [f"caption {i}" for i in (12, 9, 6, 3, 0)]
    assert data.left_out == {}


def test_strays_blanks_and_bare_images_are_counted_and_listed(tmp_path):
    images, annotations, path = coco(tmp_path)
    annotations = [a for a in annotations if a["image_id"] != 101]
    annotations += [{"image_id": 999, "id": 77, "caption": "nobody's"}, {"image_id": 100, "id": 78, "caption": " "}]
    data = open_captions(write(path, {"images": images, "annotations": annotations}))
    assert len(data) == 2 and data.image_of == [0] * 5 + [1] * 5
    remarks = " | ".join(data.remarks())
    assert "captions whose image is not in the file are left out: caption 77 (image 999)" in remarks
    assert "images without any caption are left out: 1.png" in remarks
    assert "blank" in remarks and "0.png" in remarks
    assert np.array_equal(np.array(data.source.load(1)), np.array(picture(2)))


def break_json(content, kind):
    if kind == "list":
        return [content]
    if kind == "no images":
        return {"annotations": content["annotations"]}
    if kind == "instances":
        return content | {"annotations": [{"image_id": 100, "id": 1, "bbox": [0, 0, 1, 1], "category_id": 3}]}
    if kind == "no annotations":
        return {"images": content["images"]}
    if kind == "a number among annotations":
        return content | {"annotations": [5, *content["annotations"]]}
    if kind == "no file name":
        return content | {"images": [{"id": 100}]}
    if kind == "image twice":
        return content | {"images": content["images"] + content["images"][:1]}
    if kind == "caption twice":
        return content | {"annotations": content["annotations"] + content["annotations"][:1]}
    if kind == "other file":
        return content | {"images": [*content["images"][:2], {"id": 102, "file_name": "gone.png"}]}
    if kind == "no caption":
        return content | {"annotations": [{"image_id": 100, "id": 1, "caption": ""}]}
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("list", "no caption file (it has no list of images)"),
        ("no images", "no caption file (it has no list of images)"),
        ("instances", "no caption file (its annotations hold bbox, category_id, id, image_id, but no caption)"),
        ("no annotations", "there are no annotations"),
        ("a number among annotations", "no caption file (its annotations are no objects)"),
        ("no file name", "its entry 0 has no 'file_name'"),
        ("image twice", "1 image ids occur more than once: 100"),
        ("caption twice", "1 caption ids occur more than once: 50"),
        ("other file", "1 of 3 images of"),
        ("no caption", "has no image with a caption (3 images without)"),
    ],
)
def test_a_file_of_another_kind_is_one_sentence(tmp_path, kind, message):
    images, annotations, path = coco(tmp_path)
    write(path, break_json({"images": images, "annotations": annotations}, kind))
    with pytest.raises(ValueError, match=re.escape(message)):
        open_captions(str(path))


def test_karpathy_defects_are_one_sentence(tmp_path):
    path = karpathy(tmp_path, split="restval")
    with pytest.raises(ValueError, match=r"no image of the split 'test'; its splits: restval"):
        open_captions(path)
    path = karpathy(tmp_path)
    (tmp_path / "val2014" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 images .* are missing \(val2014/2.png\); looked in .*`images`"):
        open_captions(path)
    content = read(path)
    content["images"][1]["sentences"][0]["sentid"] = 0
    with pytest.raises(ValueError, match="1 sentence ids occur more than once"):
        open_captions(write(tmp_path / "dataset_toy.json", content))
    content["images"][1]["sentences"] = ["a bare text"]
    with pytest.raises(ValueError, match="the sentences of its entry 1 are no list of objects"):
        open_captions(write(tmp_path / "dataset_toy.json", content))


@pytest.mark.parametrize("odd", [None, [1], {"a": 1}, 1.5, True, "", "a\0b"])
@pytest.mark.parametrize(
    "place", ["id", "file_name", "image_id", "caption id", "caption", "sentid", "imgid", "filename"]
)
def test_values_of_another_kind_are_one_sentence_or_a_remark(tmp_path, place, odd):
    if place in ("sentid", "imgid", "filename"):
        path = Path(karpathy(tmp_path))
        content = read(path)
        (content["images"][1]["sentences"][0] if place == "sentid" else content["images"][1])[place] = odd
    else:
        images, annotations, path = coco(tmp_path)
        content = {"images": images, "annotations": annotations}
        (images if place in ("id", "file_name") else annotations)[1][place.removeprefix("caption ")] = odd
    write(path, content)
    try:
        data = open_captions(str(path))
    except ValueError as error:
        assert re.search(rf"{path.name}.* (entry|images|more than once|ids|missing)", str(error))
    else:
        assert (len(data) == 3 and isinstance(odd, str)) or "left out" in " ".join(data.remarks())


def test_half_a_character_is_no_text(tmp_path):
    images, annotations, path = coco(tmp_path)
    annotations[0]["caption"] = "half \ud83d"
    data = open_captions(write(path, {"images": images, "annotations": annotations}))
    assert len(data.captions) == 14 and "no text are left out, of: 0.png" in " ".join(data.remarks())


def test_a_file_of_windows_reads_alike(tmp_path):
    path = Path(karpathy(tmp_path))
    before = open_captions(str(path)).captions
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b", ", b",\r\n"))
    assert open_captions(str(path)).captions == before


def test_a_truncated_or_absent_file_is_named(tmp_path):
    path = karpathy(tmp_path)
    text = Path(path).read_text()
    Path(path).write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"dataset_toy.json is not valid JSON"):
        open_captions(path)
    with pytest.raises(ValueError, match="no caption file"):
        open_captions(str(tmp_path / "absent.json"))
    with pytest.raises(ValueError, match=r"unknown data set 'coco'.*captions:FILE"):
        open_captions("coco")
    with pytest.raises(ValueError, match="brings its own images"):
        open_captions("mini", [str(tmp_path)])


@pytest.mark.parametrize("layout", ["lists", "sentences", "numbered", "one"])
def test_tables_bring_captions_in_every_layout(tmp_path, layout):
    datasets = pytest.importorskip("datasets")
    texts = [[f"image {i} text {t}" for t in range(3)] for i in range(4)]
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(4)], "img_id": [7, 8, 9, 10]}
    rows["split"] = ["test", "train", "test", "test"]
    if layout == "lists":
        rows["caption"] = texts
    elif layout == "sentences":
        rows["sentences"] = [[{"raw": text, "tokens": text.split()} for text in own] for own in texts]
    elif layout == "numbered":
        rows |= {f"caption_{t}": [own[t] for own in texts] for t in range(3)}
    else:
        rows["text"] = [own[0] for own in texts]
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "table.parquet")
    data = open_captions(str(tmp_path / "table.parquet"))
    kept = [0, 2, 3]
    expected = [text for i in kept for text in (texts[i] if layout != "one" else texts[i][:1])]
    assert data.captions == expected and len(data) == 3
    assert np.array_equal(np.array(data.source.load(1)), np.array(picture(2)))
    assert "only test is read" in data.remarks()[0]


def test_a_hub_data_set_is_read_from_its_test_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    for split, seeds in (("train", [0]), ("test", [1, 2])):
        rows = {"image": [{"bytes": png(i), "path": None} for i in seeds], "caption": [[f"text {i}"] for i in seeds]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / f"{split}-00000.parquet")
    assert open_captions(f"hub:{tmp_path / 'set'}").captions == ["text 1", "text 2"]
    assert open_captions(f"hub:{tmp_path / 'set'}:train").captions == ["text 0"]


def test_a_table_without_captions_or_with_an_id_twice_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    image = [{"bytes": png(i), "path": None} for i in range(2)]
    datasets.Dataset.from_dict({"image": image, "label": [0, 1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no captions in parquet:.*it has label"):
        open_captions(f"parquet:{tmp_path / 'a.parquet'}")
    rows = {"image": image, "image_id": [3, 3], "caption": ["a", "b"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="1 image ids occur more than once: 3"):
        open_captions(f"parquet:{tmp_path / 'b.parquet'}")


@pytest.mark.parametrize("name", ["mini", "mini:diagrams", "mini:both"])
def test_the_drawn_world_has_two_captions_a_picture_and_none_twice(name):
    data = open_captions(name)
    assert len(data) == 500 and len(data.captions) == 1000 == len(set(data.captions))
    assert data.image_of == [i // 2 for i in range(1000)]


def test_taking_some_images_keeps_their_captions(tmp_path):
    data = open_captions(karpathy(tmp_path)).take([0, 2])
    assert len(data) == 2 and data.image_of == [0] * 5 + [1] * 5 and data.captions[5] == "image 2 text 0"
    assert np.array_equal(np.array(data.source.load(1)), np.array(picture(2)))
