"""Decoding: every Pillow mode becomes RGB, everything that is not a picture becomes a named CorruptImageError."""

import io
import pickle
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from sf_llava.data import CorruptImageError, images
from sf_llava.data.images import LabelledImages, PackedStrings, decode, split_of


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def drawing(size: tuple[int, int] = (40, 30)) -> Image.Image:
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack([x * 6, y * 8, (x + y) * 3], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "AVIF", "JPEG", "GIF"])
def test_formats_decode_to_rgb(format):
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG": {"quality": 100, "subsampling": 0}}
    image = decode(encode(drawing(), format, **options.get(format, {})), "x")
    assert image.mode == "RGB"
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(drawing()))
    assert difference.max() <= {"AVIF": 16, "JPEG": 4, "GIF": 64}.get(format, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_modes_decode_as_pillow_converts_them(mode):
    image = drawing().convert(mode)
    format = "TIFF" if mode == "CMYK" else "PNG"
    np.testing.assert_array_equal(np.asarray(decode(encode(image, format), "x")), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours():
    image = decode(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), "x")  # red
    red, green, blue = np.asarray(image).reshape(-1, 3).mean(0)
    assert red > 240
    assert green < 15
    assert blue < 15


def test_transparency_is_dropped_without_a_warning():
    image = drawing().convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    data = encode(image, "PNG", transparency=bytes([0, 128] + [255] * 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(data, "x")
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_greyscale_keeps_its_shades(format):
    values = np.array([[0, 255, 256, 4096, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode(encode(Image.fromarray(values), format), "x"))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 16, 255])


def tiff(values: bytes, bits: int, width: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """Write one row of grey values by hand: Pillow writes neither 12 bits nor 0 for white."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(values)}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in (tags | {339: sample_format}).items())
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", 10) + entries + bytes(4)


def test_grey_of_12_bits_and_grey_whose_zero_is_white_keep_their_shades():
    assert np.asarray(decode(tiff(b"\x00\x08\x00\xff\xf0", 12, 3), "x"))[0, :, 0].tolist() == [0, 128, 255]
    values = np.array([0, 256, 65535], dtype="<u2").tobytes()
    assert np.asarray(decode(tiff(values, 16, 3), "x"))[0, :, 0].tolist() == [0, 1, 255]
    assert np.asarray(decode(tiff(values, 16, 3, photometric=0), "x"))[0, :, 0].tolist() == [255, 254, 0]


@pytest.mark.parametrize("kind", ["int32", "float32", "int16"])
def test_grey_without_a_known_black_and_white_is_refused_not_turned_black(kind):
    values = np.array([[0, 100, 255]], dtype=kind)
    data = (
        tiff(values.tobytes(), 16, 3, sample_format=2) if kind == "int16" else encode(Image.fromarray(values), "TIFF")
    )
    with pytest.raises(CorruptImageError, match=r"x: a picture of mode [IF] .* convert it to 8 or 16 bits"):
        decode(data, "x")


def test_exif_orientation_is_ignored_as_clip_does():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    assert decode(encode(drawing((40, 30)), "JPEG", exif=exif), "x").size == (40, 30)


JPEG, PNG = encode(drawing((200, 150)), "JPEG"), encode(drawing((200, 150)), "PNG")
BROKEN = {
    "empty": (b"", "empty file"),
    "text": (b"this is not a picture at all", "not an image"),
    "cut jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "cut png": (PNG[: len(PNG) // 2], "truncated"),
    "header only": (PNG[:20], "."),
    "zeroed jpeg": (JPEG[:2] + bytes(len(JPEG) - 2), "."),
    "broken png chunk": (PNG[:60] + b"\xff" * 40 + PNG[100:], "."),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_corrupt_images_with_name_and_reason(kind):
    data, reason = BROKEN[kind]
    with pytest.raises(CorruptImageError, match=rf"^folder/a\.png: .*{reason}"):
        decode(data, "folder/a.png")


def test_every_cut_of_a_file_is_a_corrupt_image_or_a_picture():
    small = encode(drawing(), "JPEG")
    for length in range(0, len(small), 7):
        try:
            assert decode(small[:length], "x").size == (40, 30)
        except CorruptImageError as error:
            assert str(error).startswith("x: ")


def test_decompression_bombs_are_corrupt_images(monkeypatch):
    data = encode(Image.new("1", (20_000, 20_000)), "PNG")
    assert len(data) < 100_000
    with pytest.raises(CorruptImageError, match="bomb: "):
        decode(data, "bomb")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some libraries do
    with pytest.raises(CorruptImageError, match=f"20000 x 20000 pixels are more than {images.MAX_PIXELS:,}"):
        decode(data, "bomb")


def test_packed_strings_are_the_strings():
    strings = ["a/b.png", "", "caf\udce9.png", "日本.jpg"]
    packed = PackedStrings(strings)
    assert list(packed) == strings
    assert list(pickle.loads(pickle.dumps(packed))) == strings
    assert list(PackedStrings.from_arrays(np.frombuffer(packed.data, dtype=np.uint8), packed.ends)) == strings
    assert list(PackedStrings([])) == []


def test_labels_must_fit_the_pictures_and_the_classes():
    with pytest.raises(ValueError, match="1 labels but 2 images"):
        LabelledImages(["picture", "picture"], [0], ["cat"])
    with pytest.raises(ValueError, match="class 1 of 2 has a blank name"):
        LabelledImages(["picture"], [0], ["cat", " "])
    with pytest.raises(ValueError, match="labels run from 0 to 1 but there are 1 classes"):
        LabelledImages(["picture", "picture"], [0, 1], ["cat"])


def test_splits_are_found_in_file_names():
    assert split_of("data/train-00000-of-00004.parquet") == "train"
    assert split_of("imagenet1k-validation-07.tar") == "validation"
    assert split_of("VAL") == "val"
    assert split_of("trainers/latest.tar") is None
