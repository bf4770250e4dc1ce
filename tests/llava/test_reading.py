"""What a LLaVA reads of its tower: layer, CLS, order, positions and bias, the same wherever it is read."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_llava import make_encoder, make_llava

from sf_llava.llava import swap
from sf_llava.llava.package.tower import SparseFormerVisionTower
from sf_llava.llava.reading import Reading, reading_of, see

STATES = torch.arange(2 * 5 * 3).reshape(2, 5, 3).float()  # two images, CLS and four latents
CENTRES = torch.tensor([[[0.9, 0.9], [0.1, 0.1], [0.9, 0.1], [0.2, 0.2]], [[0.6, 0.2], [0.1, 0.9], [0.4, 0.6], [2, 2]]])
ROIS = torch.cat([CENTRES - 0.3, CENTRES + 0.3], dim=-1)
ORDER = [[1, 3, 2, 0], [0, 1, 2, 3]]  # in raster order of a grid of 2 x 2; the first of two on one patch stays first
PATCHES = [[0, 0, 1, 3], [1, 2, 2, 3]]


@pytest.mark.parametrize("with_cls", [False, True])
def test_tokens_are_read_as_they_come_with_or_without_cls(with_cls):
    tokens, places = Reading(-2, with_cls).select(STATES)
    assert torch.equal(tokens, STATES[:, 0 if with_cls else 1 :]) and places is None


@pytest.mark.parametrize("with_cls", [False, True])
def test_latents_are_read_in_raster_order_behind_cls(with_cls):
    tokens, places = Reading(-2, with_cls, num_patches=4).select(STATES, ROIS)
    for image, order in enumerate(ORDER):
        assert torch.equal(tokens[image, with_cls:], STATES[image, 1:][order])
        assert places[image].tolist() == [0] * with_cls + [patch + with_cls for patch in PATCHES[image]]
    assert not with_cls or torch.equal(tokens[:, 0], STATES[:, 0])


def test_the_bias_makes_each_latent_weigh_as_its_share_of_the_patches():
    reading = Reading(-2, False, num_patches=576)
    assert math.exp(reading.bias(64)) == pytest.approx(9) and reading.bias(576) == 0


@pytest.mark.parametrize("with_cls", [False, True])
def test_words_behind_pictures_stand_where_they_stood_in_training(with_cls):
    reading = Reading(-2, with_cls, num_patches=4)
    _, places = reading.select(STATES, ROIS)
    count = 4 + with_cls
    image = torch.tensor([[False, False, *[True] * count, False, *[True] * count, False]])  # padding, a word, ...
    attended = torch.ones_like(image)
    attended[:, 0] = False
    first, second = ([*[0] * with_cls, *(patch + with_cls for patch in patches)] for patches in PATCHES)
    behind = 1 + count  # a word, and as many positions as M patches (and CLS) had
    expected = [0, 0, *(1 + place for place in first), behind, *(behind + 1 + place for place in second)]
    assert reading.count_positions(image, attended, places).tolist() == [[*expected, behind + 1 + count]]


@pytest.mark.parametrize("strategy", ["default", "full"])
@torch.no_grad()
def test_transformers_ours_and_the_packages_tower_read_the_same(processor, tmp_path, strategy):
    model = make_llava(vision_feature_select_strategy=strategy)
    encoder = make_encoder(6)
    encoder.save_pretrained(tmp_path)
    swap(model, processor, encoder)
    reading, pixels = reading_of(model), torch.randn(2, 3, 32, 32)
    assert reading == Reading(-2, strategy == "full")
    features = see(model, pixels, None).features
    assert torch.equal(see(model, pixels, reading).features, features)
    feature = {"default": "patch", "full": "cls_patch"}[strategy]
    settings = SimpleNamespace(mm_vision_select_layer=reading.layer, mm_vision_select_feature=feature)
    tokens = SparseFormerVisionTower(str(tmp_path), settings)(pixels)
    torch.testing.assert_close(model.model.multi_modal_projector(tokens), features)
    by_centre = see(model, pixels, reading_of(model, 16))
    assert by_centre.places is not None and by_centre.features.shape == features.shape
    torch.testing.assert_close(by_centre.features.sum(dim=1), features.sum(dim=1))  # the same tokens in another order


def test_a_tower_that_is_read_at_several_layers_or_has_no_rois_is_refused(llava):
    with pytest.raises(
        ValueError, match="only a SparseFormer has RoIs to read by; the vision tower is CLIPVisionModel"
    ):
        see(llava, torch.zeros(1, 3, 64, 64), reading_of(llava, 16))
    llava.config.vision_feature_layer = [-2, -1]
    with pytest.raises(ValueError, match=r"reads its tower at one vision_feature_layer, not \[-2, -1\]"):
        reading_of(llava)
