"""The whole net: its costs beside the paper's, what it stands on, how it is saved."""

from dataclasses import replace

import pytest
import torch
from tiny import save_tiny_clip

from sf_llava.bootstrap.inherit import resize
from sf_llava.configuration import preset
from sf_llava.data.transforms import Preprocessing
from sf_llava.model import SparseFormerModel
from sf_llava.model.costs import count_multiply_adds, count_parameters
from sf_llava.model.loading import load_encoder
from sf_llava.model.rois import initial_rois
from sf_llava.segmentation.backbones import LatentBackbone, PatchBackbone
from sf_llava.segmentation.head import HeadConfig
from sf_llava.segmentation.segmenter import Segmenter, TokenNet, load_segmenter
from sf_llava.segmentation.unet import UNet, unet_of_cost
from sf_llava.teachers import load_teacher

TINY = HeadConfig(width=16, num_heads=2, mlp_width=32, num_convolutions=1)


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"), [("sf-b-augreg-224", 68e6, 36e9), ("sf-l-augreg-224", 216e6, 77e9)]
)
def test_costs_at_512_pixels_are_the_papers_within_one_percent(name, parameters, multiply_adds):
    with torch.device("meta"):  # "256 tokens" of the paper are 255 latents and CLS, as everywhere
        net = TokenNet(LatentBackbone(SparseFormerModel(preset(name, num_latents=255))), 150, HeadConfig())
    assert count_parameters(net) == pytest.approx(parameters, rel=0.01)
    assert count_multiply_adds(net, 512) == pytest.approx(multiply_adds, rel=0.01)


def test_a_grown_encoder_sees_pictures_of_any_shape(encoder_dir):
    encoder = resize(load_encoder(encoder_dir), 9, 32)
    backbone = LatentBackbone(encoder).eval()
    pixels = torch.randn(2, 3, 64, 96)
    features, tokens, rois = backbone(pixels)
    assert features.shape == (2, 16, 24, 16) and tokens.shape == (2, 9, 64) and rois.shape == (2, 9, 4)
    torch.testing.assert_close(encoder.focusing.initial_rois.data, initial_rois(9))
    seen = encoder(pixels, output_hidden_states=True)
    torch.testing.assert_close(tokens, encoder.norm(seen.last_hidden_state[:, 1:]))
    torch.testing.assert_close(rois, seen.rois[:, -1])
    torch.testing.assert_close(features, encoder.early_conv(pixels))
    assert seen.features is None
    assert TokenNet(backbone, 5, TINY)(pixels).shape == (2, 16, 24, 5)


def test_a_student_swapped_for_its_teacher_is_a_sentence(tmp_path, encoder_dir):
    teacher = load_teacher(str(save_tiny_clip(tmp_path / "clip")))
    with pytest.raises(ValueError, match="expected a SparseFormer, whose latents have RoIs, not TransformersTeacher"):
        LatentBackbone(teacher)
    with pytest.raises(ValueError, match="expected a teacher, not SparseFormerModel"):
        PatchBackbone(load_encoder(encoder_dir))
    with pytest.raises(
        ValueError, match="describes a model of type 'clip': expected one with model_type 'sparseformer'"
    ):
        load_encoder(tmp_path / "clip")


def test_drop_path_passes_by_whole_pictures_in_training_alone(encoder_dir):
    encoder = load_encoder(encoder_dir)
    backbone = LatentBackbone(encoder, drop_path=0.9)
    pixels = torch.randn(64, 3, 32, 32)
    plain = LatentBackbone(load_encoder(encoder_dir)).eval()(pixels).tokens
    torch.testing.assert_close(backbone.eval()(pixels).tokens, plain)
    added = []
    last = encoder.cortex[-1]
    last.mlp.register_forward_hook(lambda module, inputs, output: added.append(output.detach()))
    backbone.train()
    for _ in range(2):
        torch.manual_seed(3)
        backbone(pixels)
    assert torch.equal(added[0], added[1])  # the seed decides
    kept = added[0].flatten(1).any(dim=1)
    assert 0 < kept.sum() < 20  # a tenth of 64
    with torch.no_grad():
        torch.manual_seed(3)
        inside = []
        handle = last.mlp.fc2.register_forward_hook(lambda module, inputs, output: inside.append(output))
        backbone(pixels)
        handle.remove()
    torch.testing.assert_close(added[2][kept], inside[0][kept] / 0.1)


def test_patches_have_their_cells_for_rois(tmp_path):
    teacher = load_teacher(str(save_tiny_clip(tmp_path / "clip"))).requires_grad_(True)
    backbone = PatchBackbone(teacher)
    backbone.freeze_unread()
    features, tokens, rois = backbone(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 8, 8, 64) and tokens.shape == (2, 16, 32)
    assert rois[0, 0].tolist() == [0, 0, 0.25, 0.25] and rois[1, 5].tolist() == [0.25, 0.25, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"reads 32 x 32 pixels, not \(32, 64\): predict by windows"):
        backbone(torch.randn(1, 3, 32, 64))
    read = {name for name, weight in teacher.named_parameters() if weight.requires_grad}
    assert read and not any("text" in name or "visual_projection" in name for name in read)
    assert any("encoder.layers.0" in name for name in read) and any("position" in name for name in read)


def test_the_u_net_costs_no_more_than_what_it_stands_beside():
    for wanted in (60_000_000, 217_000_000):
        unet = unet_of_cost(5, 64, wanted)
        assert 0.9 * wanted < count_multiply_adds(unet, 64) <= wanted
    assert unet(torch.randn(1, 3, 40, 56)).shape == (1, 20, 28, 5)


@pytest.fixture
def segmenter(encoder_dir):
    net = TokenNet(LatentBackbone(load_encoder(encoder_dir)), 3, TINY).eval()
    return Segmenter(net, "student", ("a", "b", "c"), Preprocessing(32, (0.5,) * 3, (0.5,) * 3), {}, TINY)


def test_what_is_saved_loads_strictly_to_the_same_bits(segmenter, tmp_path):
    segmenter.save(tmp_path / "run" / "segmenter")
    loaded = load_segmenter(tmp_path / "run")
    pixels = torch.randn(1, 3, 32, 48)
    assert torch.equal(loaded.net(pixels), segmenter.net(pixels))
    assert loaded.class_names == ("a", "b", "c") and loaded.head == TINY
    replace(segmenter, class_names=("a", "b")).save(tmp_path / "fewer")
    with pytest.raises(ValueError, match=r"model.safetensors does not fit segmenter.json \(2 of another shape"):
        load_segmenter(tmp_path / "fewer")
    with pytest.raises(ValueError, match="no segmenter at"):
        load_segmenter(tmp_path)


def test_a_u_net_is_saved_too(tmp_path):
    net = UNet(4, 8).eval()
    Segmenter(net, "unet", tuple("abcd"), Preprocessing(32, (0.5,) * 3, (0.5,) * 3), {"width": 8}).save(tmp_path / "u")
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_segmenter(tmp_path / "u").net(pixels), net(pixels))
