"""Whatever is uploaded becomes a picture as it should look, or a sentence."""

import io

import numpy as np
import pytest
from hostile import hostile_uploads, png
from PIL import Image

from sf_llava.demo.uploads import MAX_SIDE, RefusedError, accept, short_name


@pytest.fixture
def save(tmp_path):
    def save(image, name="picture.png", **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


@pytest.mark.parametrize("upload", hostile_uploads(), ids=lambda upload: upload.what)
def test_every_upload_is_a_picture_or_a_sentence(upload, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(upload.data)
    if upload.accepted:
        picture = accept(path)
        assert picture.image.mode == "RGB" and max(picture.image.size) <= MAX_SIDE
        assert picture.thumbnail.startswith("data:image/")
    else:
        with pytest.raises(RefusedError) as refusal:
            accept(path)
        assert str(refusal.value).startswith("file ") and str(refusal.value).endswith(".")


def test_there_are_fifty_hostile_uploads():
    assert len(hostile_uploads()) == 50


def test_what_is_transparent_becomes_white(save):
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    assert accept(save(image)).image.getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert accept(save(palette, transparency=1)).image.getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_on_its_side_is_turned_upright(save):
    image = Image.new("RGB", (40, 20), "blue")
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to see it
    assert accept(save(image, "phone.jpg", exif=exif)).image.size == (20, 40)


def test_sixteen_bits_keep_their_high_byte(save):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    read = np.asarray(accept(save(Image.fromarray(ramp))).image)[..., 0]
    assert np.abs(read.astype(int) - ramp // 256).max() <= 1


def test_a_large_picture_is_scaled_down_and_says_so(save):
    picture = accept(save(Image.new("RGB", (3000, 1500), "green"), "large.png"))
    assert picture.image.size == (1024, 512)
    assert picture.note == "large.png was scaled down from 3000 x 1500 pixels."


def test_the_first_frame_of_an_animation_is_read(save):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    picture = accept(save(frames[0], "film.gif", save_all=True, append_images=frames[1:]))
    assert picture.image.getpixel((3, 3))[0] > 200 and "first one" in picture.note


@pytest.mark.parametrize("side", [8_000, 50_000])
def test_a_bomb_is_refused_by_its_header_without_decoding_it(side, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))  # no pixel behind the header
    with pytest.raises(RefusedError, match="50,000,000"):
        accept(path)


def test_a_file_that_has_gone_is_asked_for_again(tmp_path):
    with pytest.raises(RefusedError, match="attach it once more"):
        accept(tmp_path / "gone.png")


def test_names_are_shown_without_folders_and_cut():
    assert short_name("../../etc/passwd") == "passwd"
    assert short_name("C:\\Users\\x\\cat.JPG") == "cat.JPG"
    assert short_name("a\nb\x00.png") == "a?b?.png"
    assert len(short_name("x" * 300 + ".jpeg")) == 40 and short_name("x" * 300 + ".jpeg").endswith(".jpeg")


def test_the_thumbnail_is_a_small_picture(save):
    import base64

    uri = accept(save(Image.new("RGB", (900, 600), "red"))).thumbnail
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (320, 213)
