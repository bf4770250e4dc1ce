"""The tower contract of the llava package, checked without the package."""

from types import SimpleNamespace

import pytest
import torch
from tiny_encoder import write_encoder

from sf_llava.llava.package.tower import SparseFormerVisionTower


def arguments(**changes):
    return SimpleNamespace(**(dict(mm_vision_select_layer=-2, mm_vision_select_feature="patch") | changes))


@pytest.mark.parametrize("num_latents", [16, 63, 64, 127, 128, 143, 144])
def test_a_tower_gives_its_latents_in_the_images_dtype(tmp_path, num_latents):
    tower = SparseFormerVisionTower(write_encoder(tmp_path, num_latents), arguments())
    images = torch.randn(2, 3, 32, 32)
    assert tower.num_patches == num_latents and tower.hidden_size == 64 and tower.config.image_size == 32
    tokens = tower(images)
    assert tokens.shape == (2, num_latents, 64) and not tokens.requires_grad
    assert tower(images.bfloat16()).dtype == torch.bfloat16
    states = tower.vision_tower(images, output_hidden_states=True).hidden_states
    assert torch.equal(tokens, states[-2][:, 1:])
    listed = tower(list(images))
    assert [token.shape for token in listed] == [(1, num_latents, 64)] * 2
    assert torch.allclose(torch.cat(listed), tokens, atol=1e-5)


def test_cls_is_kept_where_the_config_says_so(tmp_path):
    tower = SparseFormerVisionTower(write_encoder(tmp_path), arguments(mm_vision_select_feature="cls_patch"))
    assert tower(torch.randn(1, 3, 32, 32)).shape == (1, 17, 64)


def test_delayed_loading_reads_only_the_config(tmp_path):
    tower = SparseFormerVisionTower(write_encoder(tmp_path), arguments(), delay_load=True)
    assert not tower.is_loaded and not list(tower.parameters())
    assert tower.hidden_size == 64 and tower.num_patches == 16 and tower.image_processor.crop_size["height"] == 32
    tower.load_model(device_map="auto")
    tower.to(device="cpu", dtype=torch.float16)
    assert tower.is_loaded and tower.dtype == torch.float16 and tower.dummy_feature.shape == (1, 64)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert tower(torch.randn(1, 3, 32, 32).half()).dtype == torch.float16


def test_a_count_that_is_no_square_cannot_be_laid_on_a_grid(tmp_path):
    assert SparseFormerVisionTower(write_encoder(tmp_path / "a", 144), arguments()).num_patches_per_side == 12
    tower = SparseFormerVisionTower(write_encoder(tmp_path / "b", 63), arguments())
    with pytest.raises(ValueError, match=r"square grid, but the encoder has 63 latents: use image_aspect_ratio"):
        _ = tower.num_patches_per_side


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(mm_hidden_size=1024), "takes 1024 channels .* gives 64"),
        (dict(mm_vision_select_layer=-5), "mm_vision_select_layer is -5 .* has 4 hidden states"),
        (dict(mm_vision_select_feature="cls"), "unknown mm_vision_select_feature 'cls'"),
    ],
)
def test_what_does_not_fit_is_one_clear_sentence(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        SparseFormerVisionTower(write_encoder(tmp_path), arguments(**changes), delay_load=True)


def test_a_missing_encoder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no encoder at .*nowhere"):
        SparseFormerVisionTower(f"sparseformer:{tmp_path}/nowhere", arguments())
