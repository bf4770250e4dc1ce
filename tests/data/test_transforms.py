"""Preprocessing is bit-equal to the teachers' own; augmentation is a function of the generator alone."""

import dataclasses
import io
import json
import math
import pickle
import resource

import numpy as np
import open_clip
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import InterpolationMode

from sf_llava.data import open_images, transforms
from sf_llava.data.transforms import BootstrapTransform, Preprocessing

CLIP = Preprocessing(224, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
AUGREG = Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop_fraction=0.9)
SMALL = dataclasses.replace(CLIP, image_size=32)
SIZES = [(500, 375), (375, 500), (224, 224), (256, 256), (225, 224), (100, 63), (31, 400), (1, 1), (640, 223)]


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [224, 336])
def test_preprocessing_is_bit_equal_to_open_clip(size, image_size):
    transform = open_clip.image_transform(image_size, is_train=False)
    result = dataclasses.replace(CLIP, image_size=image_size)(noise(size))
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert torch.equal(result, transform(noise(size)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("image_size", "crop_fraction"), [(224, 0.9), (384, 1.0), (224, 0.875)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing_is_bit_equal_to_timm(size, image_size, crop_fraction, interpolation):
    half = (0.5, 0.5, 0.5)
    transform = create_transform(image_size, interpolation=interpolation, mean=half, std=half, crop_pct=crop_fraction)
    ours = Preprocessing(image_size, half, half, interpolation, crop_fraction)
    assert torch.equal(ours(noise(size)), transform(noise(size)))


def test_photographs_are_bit_equal_too(imagenet_sample):
    source = open_images(str(imagenet_sample))
    clip = open_clip.image_transform(224, is_train=False)
    augreg = create_transform(224, interpolation="bicubic", mean=AUGREG.mean, std=AUGREG.std, crop_pct=0.9)
    for index in range(0, len(source), 50):
        image = source.load(index)
        assert torch.equal(CLIP(image), clip(image))
        assert torch.equal(AUGREG(image), augreg(image))


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def test_a_batch_normalised_where_it_is_needed_is_bit_equal_to_its_pictures(device):
    pictures = [noise(size, seed) for seed, size in enumerate(SIZES)]
    pixels = torch.stack([CLIP.pixels(picture) for picture in pictures])
    assert pixels.dtype == torch.uint8 and pixels.shape == (len(SIZES), 224, 224, 3)
    batch = CLIP.normalise_pixels(pixels.to(device)).cpu()
    clip = open_clip.image_transform(224, is_train=False)
    assert batch.is_contiguous() and torch.equal(batch, torch.stack([clip(picture) for picture in pictures]))


MODES = ("1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I;16")


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_other_modes_are_converted_first(mode):
    grey = Image.fromarray(np.arange(0, 65536, 13, dtype=np.uint16)[:5000].reshape(50, 100))
    image = noise((100, 50)).convert("RGBA").convert(mode) if mode != "I;16" else grey
    if mode in ("La", "RGBa"):
        image = noise((100, 50)).convert(mode.upper()).convert(mode)
    plain = image.convert(mode.upper() if mode in ("La", "RGBa") else mode).convert("RGB")
    if mode == "I;16":
        plain = Image.fromarray((np.asarray(grey) // 256).astype(np.uint8)).convert("RGB")
    assert torch.equal(SMALL(image), SMALL(plain))
    assert torch.equal(BootstrapTransform(SMALL)(image, rng(3)), BootstrapTransform(SMALL)(plain, rng(3)))


def test_what_is_no_picture_or_has_no_black_and_white_is_one_sentence():
    array = np.zeros((4, 4, 3), dtype=np.uint8)
    for wrong in (array, torch.zeros(3, 4, 4), None, "a.png", array.tobytes()):
        with pytest.raises(TypeError, match=r"expected a Pillow picture, got \w+.*Image.fromarray makes one"):
            SMALL(wrong)
    for kind in (np.int32, np.float32):
        with pytest.raises(ValueError, match="does not say which values are black and white"):
            SMALL(Image.fromarray(array[..., 0].astype(kind)))
    cut = io.BytesIO()
    noise((64, 64)).save(cut, "JPEG")
    with pytest.raises(ValueError, match=r"cannot be decoded: .*truncated"):
        SMALL(Image.open(io.BytesIO(cut.getvalue()[:1500])))


@pytest.mark.parametrize("size", [(3, 1000), (1000, 13), (100, 9000), (9000, 90), (640, 480), (1, 1)])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.9])
def test_a_strip_is_cut_before_it_is_resized_with_the_same_result(size, crop_fraction, monkeypatch):
    preprocessing = dataclasses.replace(SMALL, image_size=64, crop_fraction=crop_fraction)
    whole = np.asarray(preprocessing.fit(noise(size))).astype(int)
    monkeypatch.setattr(transforms, "MAX_RESIZED_PIXELS", 0)
    cut = np.asarray(preprocessing.fit(noise(size))).astype(int)
    assert np.abs(whole - cut).max() <= 1  # Pillow's places of pixels are single precision
    assert (whole != cut).mean() < 0.01


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (2, 5_000_000)])
def test_strips_take_little_memory(size):
    image = Image.new("RGB", size, (10, 20, 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = CLIP(image)
    view = BootstrapTransform(CLIP)(image, rng())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB
    assert pixels.shape == (3, 224, 224) and view.shape == (224, 224, 3)
    assert torch.equal(pixels[:, 0, 0], CLIP(Image.new("RGB", (9, 9), (10, 20, 30)))[:, 0, 0])


def test_preprocessing_survives_json_and_pickle():
    restored = Preprocessing(**json.loads(json.dumps(dataclasses.asdict(AUGREG))))
    assert restored == AUGREG == pickle.loads(pickle.dumps(AUGREG))


def test_augmentation_depends_on_the_generator_only():
    transform, image = BootstrapTransform(SMALL), noise((60, 45))
    first, again, other = (transform(image, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (32, 32, 3) and first.dtype == torch.uint8


def test_a_view_is_torchvisions_crop_of_the_drawn_box():
    transform, image = BootstrapTransform(CLIP, flip=0), noise((300, 260))
    generator = rng(5)
    torch.rand((), generator=generator)  # the flip is drawn first
    left, top, right, bottom = transform.draw_box(*image.size, generator)
    expected = F.resized_crop(
        image, top, left, bottom - top, right - left, [224, 224], InterpolationMode.BICUBIC, antialias=True
    )
    assert torch.equal(CLIP.normalise_pixels(transform(image, rng(5))), CLIP.normalise(expected))


def test_no_flip_and_no_crop_is_the_preprocessing():
    transform, image = BootstrapTransform(SMALL, flip=0, scale=None), noise((60, 45))
    assert torch.equal(transform(image, rng()), SMALL.pixels(image))
    always = BootstrapTransform(SMALL, flip=1, scale=None)
    assert torch.equal(always(image, rng()), SMALL.pixels(image).flip(1))


def test_half_of_the_views_are_flipped():
    transform, image = BootstrapTransform(SMALL, scale=None), noise((32, 32))
    generator, plain = rng(), SMALL.pixels(image)
    flips = sum(not torch.equal(transform(image, generator), plain) for _ in range(400))
    assert 160 < flips < 240


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (32, 32), (7, 5)])
def test_boxes_keep_within_the_picture_the_area_and_the_ratio(size):
    transform, generator = BootstrapTransform(CLIP), rng()
    for _ in range(500):
        left, top, right, bottom = transform.draw_box(*size, generator)
        width, height = right - left, bottom - top
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        if min(size) > 100:
            assert 0.49 < width * height / (size[0] * size[1]) <= 1
            assert 0.74 < width / height < 1.35


def test_boxes_cover_areas_and_places_evenly():
    transform, generator = BootstrapTransform(CLIP), rng()
    boxes = np.array([transform.draw_box(400, 400, generator) for _ in range(4000)])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 160_000
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert areas.min() < 0.51
    assert 0.68 < areas.mean() < 0.76
    np.testing.assert_allclose(centres.mean(0), 200, atol=3)
    logs = np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))
    assert abs(logs.mean()) < 0.01


@pytest.mark.parametrize(("size", "expected"), [((1000, 10), (13, 10)), ((10, 1000), (10, 13)), ((1, 1), (1, 1))])
def test_elongated_pictures_get_the_largest_centre_that_fits(size, expected):
    left, top, right, bottom = BootstrapTransform(CLIP).draw_box(*size, rng())
    assert (right - left, bottom - top) == expected
    assert abs(left + right - size[0]) <= 1
    assert abs(top + bottom - size[1]) <= 1


def test_impossible_settings_say_what_is_expected():
    for wrong, message in [
        ({"image_size": 0}, "at least 1 pixel"),
        ({"std": (1, 0, 1)}, "std positive"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"interpolation": "cubic"}, "expected bicubic, bilinear"),
        ({"crop_fraction": 1.1}, r"in \(0, 1\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CLIP, **wrong)
    for wrong, message in [
        ({"flip": 1.5}, "probability"),
        ({"scale": (0.5, math.inf)}, "area shares"),
        ({"ratio": (2, 1)}, "width / height"),
    ]:
        with pytest.raises(ValueError, match=message):
            BootstrapTransform(CLIP, **wrong)
