"""Shards: which members are pictures, by webdataset's own rule, and that no damage makes pictures vanish."""

import io
import os
import tarfile
import warnings
from pathlib import Path

import pytest
from PIL import Image

from sf_llava.data import open_images, open_labelled


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def write(path: Path, *members: tuple[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return f"webdataset:{path}"


def names(images) -> list[str]:
    return [images.describe(index).partition(":")[2] for index in range(len(images))]


@pytest.mark.parametrize("pattern", ["frame.{:04}.png", "v1.0_{:04}.PNG", "deep.er/v1.{}/a.b.c.{}.png"])
def test_pictures_with_dots_in_their_names_are_all_there(tmp_path, pattern):
    expected = [pattern.format(number, number) for number in range(10)]
    classes = [(name[:-3] + "cls", str(number % 3).encode()) for number, name in enumerate(expected)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = open_labelled(write(tmp_path / "0.tar", *[(n, png(k)) for k, n in enumerate(expected)], *classes))
    assert names(images) == expected
    assert images.labels == [number % 3 for number in range(10)]
    assert [images.load(number).getpixel((0, 0))[0] for number in range(10)] == list(range(10))


def test_keys_and_fields_are_those_of_webdataset():
    module = pytest.importorskip("webdataset.tariterators", reason="compares with webdataset itself")
    for name in ("a/0.png", "a/0.depth.png", "a.b/0.png", "./0.x.png"):
        key, field = module.base_plus_ext(name)
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        assert (key, field) == (folder + slash + stem, extension)


def test_a_samples_further_pictures_are_passed_by_and_told_every_time(tmp_path):
    members = [("0.png", png(1)), ("0.depth.png", png(2)), ("0.cls", b"1"), ("1.mask.png", png(3)), ("1.png", png(4))]
    name = write(tmp_path / "0.tar", *members, ("1.png", png(5)))
    for _ in range(2):  # the second time the index comes from the cache
        with pytest.warns(UserWarning, match=r"3 members .* are passed by: 0.tar:1.png, 0.tar:0.depth.png, 0.tar:1.m"):
            images = open_images(name)
        assert names(images) == ["0.png", "1.png"]
        assert [images.load(number).getpixel((0, 0))[0] for number in (0, 1)] == [1, 4]


def test_links_inside_a_shard_are_told(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
        tar.add(tmp_path / "b.png", "b.png")
    with pytest.warns(UserWarning, match=r"1 members that are links, .* are passed by: 0.tar:b.png"):
        assert len(open_images(f"webdataset:{tmp_path / '0.tar'}")) == 1


def damaged_header(data: bytes, starts: list[int]) -> bytes:
    return data[: starts[2] + 150] + b"\xff\xff" + data[starts[2] + 152 :]


DAMAGE = {
    "a header in the middle": damaged_header,
    "a header of zeros": lambda data, starts: data[: starts[2]] + bytes(512) + data[starts[2] + 512 :],
    "cut inside a picture": lambda data, starts: data[: starts[2] + 600],
    "cut inside a header": lambda data, starts: data[: starts[2] + 100],
    "cut between two pictures": lambda data, starts: data[: starts[2]],
    "one shard behind another": lambda data, starts: data + data,
    "a size below zero": lambda data, starts: negative_size(data, starts[2]),
}


def negative_size(data: bytes, start: int) -> bytes:
    header = bytearray(data[start : start + 512])
    header[124:136] = b"\xff" * 10 + b"\xf0\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:start] + bytes(header) + data[start + 512 :]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_refused_not_read_in_part(tmp_path, damage):
    path = tmp_path / "0.tar"
    name = write(path, *[(f"{number}.png", png(number)) for number in range(5)])
    with tarfile.open(path) as tar:
        starts = [member.offset for member in tar]
    path.write_bytes(DAMAGE[damage](path.read_bytes(), starts))
    with pytest.raises(ValueError, match=r"0\.tar is not a complete, uncompressed tar file \(.+\); fetch it again"):
        open_images(name)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "text"])
def test_a_damaged_index_is_built_anew(tmp_path, cache, damage):
    name = write(tmp_path / "0.tar", *[(f"{number}.png", png(number)) for number in range(5)])
    whole = names(open_images(name))
    (index,) = (cache / "sf_llava").iterdir()
    data = bytearray(index.read_bytes())
    data[data.index(b"0.png")] ^= 1
    index.write_bytes({"flipped": bytes(data), "cut": bytes(data[:99]), "empty": b"", "text": b"text"}[damage])
    assert names(open_images(name)) == whole


def test_class_names_are_lines_and_none_is_blank(tmp_path):
    name = write(tmp_path / "0.tar", ("0.png", png()), ("0.cls", b"0"), ("1.png", png()), ("1.cls", b" 2\r\n"))
    (tmp_path / "classnames.txt").write_bytes(b"\xef\xbb\xbfcat \r\ngrey\xc2\xa0fox\r\ndog\r\n\r\n  \n")
    images = open_labelled(name)
    assert images.class_names == ["cat", "grey\xa0fox", "dog"] and images.labels == [0, 2]
    (tmp_path / "classnames.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ValueError, match="class 1 of 3 has a blank name"):
        open_labelled(name)
    for odd in (b"\xc2\xb2", b"-1", b"1.0", b"9" * 99, b""):
        with pytest.raises(ValueError, match=r"has no class: expected a number in a \.cls member"):
            open_labelled(write(tmp_path / "0.tar", ("0.png", png()), ("0.cls", odd)))
