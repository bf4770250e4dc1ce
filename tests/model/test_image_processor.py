"""The image processor beside an encoder gives the pixels that the encoder was trained on."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from sf_llava.configuration import preset
from sf_llava.data.images import to_rgb
from sf_llava.data.transforms import Preprocessing
from sf_llava.model import SparseFormerModel


def draw(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("backend", [None, "pil", "torchvision"])
@pytest.mark.parametrize("changes", [{}, dict(crop_fraction=0.9, interpolation="bilinear", image_size=33)])
def test_its_pixels_are_those_of_our_preprocessing(tmp_path, changes, backend):
    config = preset("sf-mini", image_std=(0.2, 0.3, 0.4), **changes)
    SparseFormerModel(config).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    ours = Preprocessing(
        config.image_size, config.image_mean, config.image_std, config.interpolation, config.crop_fraction
    )
    for size in ((64, 64), (90, 70), (71, 90), (301, 67), (40, 163), (5, 9)):
        image = draw(*size)
        for given in (image, np.array(image), torch.from_numpy(np.array(image)).permute(2, 0, 1)):
            pixels = processor(given, return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(pixels[0], ours(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16"])
def test_pictures_of_other_modes_become_what_the_sources_make_of_them(mode):
    from sf_llava.model.image_processor import make_image_processor

    grey = np.random.default_rng(0).integers(0, 65536, (70, 90), dtype=np.uint16)
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 4), dtype=np.uint8))
    image = {"I;16": lambda: Image.fromarray(grey), "RGBA": lambda: rgba}.get(
        mode, lambda: (rgba if mode == "LA" else rgba.convert("RGB")).convert(mode)
    )()
    config = preset("sf-mini")
    expected = Preprocessing(config.image_size, config.image_mean, config.image_std)(to_rgb(image))
    pixels = make_image_processor(config)([image, image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, expected.expand(2, -1, -1, -1), rtol=0, atol=1e-6)


def test_a_strip_that_would_fill_the_memory_is_refused():
    from sf_llava.model.image_processor import make_image_processor

    with pytest.raises(ValueError, match=r"200000 x 1 pixels is too thin"):
        make_image_processor(preset("sf-mini"))(Image.new("RGB", (200_000, 1)))


def test_augregs_encoders_crop_as_timm_does():
    timm = pytest.importorskip("timm", reason="knows AugReg's own crop")
    for ours, theirs in (
        ("sf-b-augreg-224", "vit_base_patch16_224.augreg_in21k_ft_in1k"),
        ("sf-l-augreg-224", "vit_large_patch16_224.augreg_in21k_ft_in1k"),
        ("sf-l-augreg-384", "vit_large_patch16_384.augreg_in21k_ft_in1k"),
    ):
        assert preset(ours).crop_fraction == timm.models.get_pretrained_cfg(theirs).crop_pct
