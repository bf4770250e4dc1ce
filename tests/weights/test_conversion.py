"""A conversion replaces nothing but an untouched older one of the same source."""

import os
import shutil

import pytest

from sf_llava.weights.conversion import RECORD, check_output, write_conversion


@pytest.fixture
def source(tmp_path):
    (tmp_path / "models" / "source").mkdir(parents=True)
    (tmp_path / "models" / "source" / "weights.bin").write_text("precious")
    return tmp_path / "models" / "source"


def convert(output, source, text="converted"):
    check_output(output, [source])
    write_conversion(output, [source], lambda directory: (directory / "model.bin").write_text(text))


def tree(path):
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def test_a_conversion_is_written_and_replaced_by_a_newer_one_of_the_same_source(source, tmp_path):
    for text in ("first", "second"):
        convert(tmp_path / "out", source, text)
        assert (tmp_path / "out" / "model.bin").read_text() == text
    (tmp_path / "empty").mkdir()
    convert(tmp_path / "empty", source)
    assert {path.name for path in tmp_path.iterdir()} == {"models", "out", "empty"}


def place_file(source, place):
    place.write_text("precious")


def place_folder(source, place):
    place.mkdir()
    (place / "thesis.txt").write_text("precious")


def place_hidden(source, place):
    place.mkdir()
    (place / ".git").write_text("precious")


def place_added(source, place):
    convert(place, source)
    (place / "notes.txt").write_text("precious")


def place_changed(source, place):
    convert(place, source)
    os.utime(place / "model.bin", ns=(1, 1))  # training saved over it, the same size


def place_other(source, place):
    shutil.copytree(source, source.parent / "other")
    convert(place, source.parent / "other")


def place_link(source, place):
    convert(place.parent / "target", source)
    place.symlink_to(place.parent / "target")


def place_dangling(source, place):
    place.symlink_to(place.parent / "nowhere")


def place_below_a_file(source, place):
    place.parent.rmdir()
    place.parent.write_text("precious")


PLACES = (place_file, place_folder, place_hidden, place_added, place_changed, place_other, place_link, place_dangling)


@pytest.mark.parametrize("put", [*PLACES, place_below_a_file], ids=lambda put: put.__name__)
def test_what_it_did_not_write_is_kept(source, tmp_path, put):
    (tmp_path / "folder").mkdir()
    place = tmp_path / "folder" / "out"
    put(source, place)
    before = tree(tmp_path)
    with pytest.raises((ValueError, OSError), match="out"):
        convert(place, source)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("relation", ["itself", "above", "inside", "through a link", "itself by a link", "dots"])
def test_the_source_is_never_replaced(source, tmp_path, relation):
    (tmp_path / "link").symlink_to(source.parent)
    output = {
        "itself": source,
        "above": source.parent,
        "inside": source / "out",
        "through a link": tmp_path / "link" / "source",
        "itself by a link": tmp_path / "link",
        "dots": source / ".." / "source",
    }[relation]
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"what is read"):
        convert(output, source)
    assert tree(tmp_path) == before


def test_an_older_conversion_that_is_a_source_itself_is_kept(source, tmp_path):
    convert(tmp_path / "tower", source)
    with pytest.raises(ValueError, match="what is read"):
        check_output(tmp_path / "tower", [source, tmp_path / "tower"])


def test_what_comes_to_lie_there_meanwhile_is_kept(source, tmp_path):
    def fill(directory):
        (directory / "model.bin").write_text("converted")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("precious")

    with pytest.raises(ValueError, match="is kept"):
        write_conversion(tmp_path / "out", [source], fill)
    assert tree(tmp_path / "out") == {"thesis.txt": "precious"}
    assert {path.name for path in tmp_path.iterdir()} == {"models", "out"}


def test_a_damaged_record_keeps_the_directory(source, tmp_path):
    convert(tmp_path / "out", source)
    (tmp_path / "out" / RECORD).write_text('{"source"')
    with pytest.raises(ValueError, match=RECORD):
        convert(tmp_path / "out", source)
    assert (tmp_path / "out" / "model.bin").is_file()
