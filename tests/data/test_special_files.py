"""Pipes, devices, giants, folders in circles and absurd counts end soon, in a sentence or a named, skipped picture."""

import inspect
import os
import resource
import socket
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sf_llava import files
from sf_llava.data import CorruptImageError, open_images, open_labelled
from sf_llava.data.paths import expand_braces, find_files
from sf_llava.retrieval.captions import open_captions
from sf_llava.zero_shot.class_names import class_set

SECONDS = 20


@pytest.fixture(autouse=True)
def soon():
    """A read that would not end is stopped by the clock, one without bound by the file system's 0 bytes of a pipe."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SECONDS


def special(folder: Path) -> dict[str, Path]:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    with open(folder / "giant", "wb") as file:
        file.truncate(2**40)
    (folder / "circle").symlink_to(folder / "circle")
    zero, memory = Path("/dev/zero"), Path("/proc/self/maps")
    return {name: folder / name for name in ("pipe", "socket", "giant", "circle")} | {"zero": zero, "proc": memory}


def test_pictures_that_are_no_regular_files_are_named_and_skipped(tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a.png")
    places = special(tmp_path)
    for name, place in places.items():
        (tmp_path / "data" / f"b-{name}.png").symlink_to(place)
    os.mkfifo(tmp_path / "data" / "c.png")
    images = open_images(f"folder:{tmp_path / 'data'}")
    assert len(images) == 2 + len(places)
    assert images.load(0).size == (8, 8)
    for index in range(1, len(images)):
        with pytest.raises(CorruptImageError, match=rf"^{images.describe(index)}: \w+"):
            images.load(index)
    rows = [{"bytes": None, "path": str(place)} for place in places.values()] + [{"bytes": None, "path": "a\0b"}]
    rows.append({"bytes": b"", "path": None})
    pq.write_table(pa.table({"image": rows}), tmp_path / "rows.parquet")
    table = open_images(f"parquet:{tmp_path / 'rows.parquet'}")
    for index in range(len(rows)):
        with pytest.raises(CorruptImageError, match=rf"row {index}: "):
            table.load(index)


@pytest.mark.parametrize("kind", ["pipe", "giant", "zero", "circle"])
def test_lists_that_are_no_regular_files_are_one_sentence(tmp_path, kind):
    place = special(tmp_path)[kind]
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "a.png")
    for name in ("val.txt", "captions.json", "classes.json", "0.tar", "0.parquet"):
        (tmp_path / "data" / name).symlink_to(place)
    data = tmp_path / "data"
    for read in (
        lambda: open_labelled(f"folder:{data}"),
        lambda: open_captions(str(data / "captions.json")),
        lambda: class_set(str(data / "classes.json")),
        lambda: open_images(f"webdataset:{data / '0.tar'}"),
        lambda: open_images(f"webdataset:{data}"),
        lambda: open_images(f"parquet:{data / '0.parquet'}"),
        lambda: open_captions(f"parquet:{data}/*.parquet"),
    ):
        with pytest.raises((ValueError, OSError), match=str(data)):
            read()


def test_a_read_takes_no_more_than_a_file_says_that_it_holds(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert files.read_bytes(tmp_path / "a") == b"12345" == files.read_bytes(tmp_path / "a", 5)
    with pytest.raises(OSError, match="5 bytes are more than the 4 that are read"):
        files.read_bytes(tmp_path / "a", 4)
    with pytest.raises(FileNotFoundError, match="absent"):
        files.read_bytes(tmp_path / "absent")


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfa\r\nb\r\n", "\ufeffa\nb\n".encode("utf-16-le"), b"a\rb\r"])
def test_texts_of_windows_and_old_macs_read_alike(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    assert files.read_text(tmp_path / "a.txt") == "a\nb\n"


def test_folders_that_link_to_each_other_are_read_once_each(tmp_path):
    places = [tmp_path / f"m{number}" for number in range(9)]
    for place in places:
        place.mkdir()
        (place / "a.png").touch()
        (place / "a.tar").touch()
        for other in places:
            if other != place:
                (place / f"to-{other.name}").symlink_to(other)
    images = open_images(f"folder:{tmp_path}")
    assert [images.describe(index) for index in range(len(images))] == [f"m{number}/a.png" for number in range(9)]
    for pattern in (str(tmp_path), f"{tmp_path}/**/*.tar", f"{tmp_path}/**/m*/**/a.t?r"):
        assert find_files(pattern, ".tar") == [str(place / "a.tar") for place in places]
    with pytest.raises(
        ValueError, match=r"'m0/to-m1/' links to the same folder as 'm1/'.*two classes: remove the link"
    ):
        open_labelled(f"folder:{tmp_path}")


def test_folders_deeper_than_pythons_stack_are_read(tmp_path):
    folder = tmp_path
    for _ in range(200):
        folder = folder / "d"
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack()) + 100)
        assert len(open_images(f"folder:{tmp_path}")) == 1
    finally:
        sys.setrecursionlimit(limit)


def test_brace_lists_are_counted_before_they_are_written_out():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for pattern in ("x-{0..999999999999}.tar", "{a,b}" * 2000, "{0..9999}{0..9999}"):
        with pytest.raises(ValueError, match=r"names [\d,]+ files; more than 1,000,000 are not looked for"):
            expand_braces(pattern)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17
    assert expand_braces("{x}" * 3000) == ["x" * 3000]
    assert expand_braces("a-{3..1}") == ["a-3", "a-2", "a-1"]
    assert expand_braces("{²..³}") == ["²..³"]


def test_names_with_braces_and_brackets_of_their_own_are_found(tmp_path):
    for name in ("a{1}.tar", "b[1].tar"):
        (tmp_path / name).touch()
        assert find_files(str(tmp_path / name), ".tar") == [str(tmp_path / name)]


def test_a_folder_of_pictures_and_shards_is_not_guessed_at(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "a.tar").touch()
    with pytest.raises(ValueError, match=r"holds data of several kinds: say which is meant, webdataset or folder:"):
        open_images(str(tmp_path))


def test_labels_beyond_all_classes_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for number in ("1000000", "99999999999999", "9" * 5000):
        (tmp_path / "val.txt").write_text(f"a.png {number}\n")
        with pytest.raises(ValueError, match=r"classes are numbered from 0 to 999,999|must name classes by"):
            open_labelled(f"folder:{tmp_path}")
    row = {"bytes": b"", "path": None}
    pq.write_table(pa.table({"image": [row], "label": [2**40]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"class 1,099,511,627,776; classes are numbered from 0 to 999,999"):
        open_labelled(f"parquet:{tmp_path / 'a.parquet'}")
