"""SparseFormer v1 and its video model: values of the published architecture, released files, strictness, clips."""

import numpy as np
import pytest
import torch
import v1_reference
from transformers import AutoImageProcessor, AutoModel
from v1_state import BLOCKS, CLASSES, LATENTS, WIDTH, make_state

from sf_llava.commands.convert import main as convert
from sf_llava.configuration import IMAGENET_MEAN, preset
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import is_v1, load_encoder, load_v1
from sf_llava.model.official import CONVOLUTION, convert_official, find_kind, load_official
from sf_llava.model.v1 import SparseFormerV1Config, SparseFormerV1Model, v1_preset
from sf_llava.model.v1.video import inflate

SIDE = 32


def draw_frames(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def see(model: SparseFormerV1Model, pixel_values: torch.Tensor):
    return model(pixel_values.to(model.dtype), output_sampling_points=True)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("layout", ["released", "original", "clips"])
def test_values_are_those_of_the_published_architecture(layout, seed):
    frames = draw_frames(3 if layout == "clips" else 1, seed)
    described = make_state("clips" if layout == "clips" else "released", seed)
    logits, latents, rois = v1_reference.classify(described, frames)
    model = convert_official(make_state(layout, seed))
    pixel_values = frames[None] if layout == "clips" else frames
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-2)):  # RoIs and what is read amplify rounding
        output = see(model.to(dtype), pixel_values)
        for ours, expected in (
            (output.logits, logits),
            (output.last_hidden_state, latents),
            (output.rois[:, -1], rois),
        ):
            assert np.abs(ours[0].numpy() - expected).max() <= tolerance * np.abs(expected).max(), dtype


def test_both_layouts_of_v1_load_to_the_same_bits():
    released, original = (convert_official(make_state(layout)).state_dict() for layout in ("released", "original"))
    assert released.keys() == original.keys()
    assert all(torch.equal(value, original[name]) for name, value in released.items())


KINDS = {"released": "v1", "original": "v1, as the ImageNet code wrote it", "clips": "v1 for clips, of the video code"}


@pytest.mark.parametrize("layout", KINDS)
def test_the_kind_of_a_file_is_told_by_its_tensors(layout, tmp_path):
    torch.save(
        {"model": {f"module.{name}": value for name, value in make_state(layout).items()}}, tmp_path / "file.pth"
    )
    config = load_official(tmp_path / "file.pth", 192).config
    assert find_kind(make_state(layout)) == KINDS[layout]
    assert (config.is_video, config.num_latents, config.hidden_size) == (layout == "clips", LATENTS, WIDTH)
    assert (config.num_hidden_layers, config.num_classes, config.image_size) == (BLOCKS, CLASSES, 192)
    assert config.image_mean == IMAGENET_MEAN and config.crop_fraction == 224 / 256


BOOTSTRAPPED_CLIPS = {"cls_embedding.weight": torch.zeros(1, 128), CONVOLUTION: torch.zeros(6, 3, 1, 7, 7)}
DAMAGE = {
    "missing": (lambda state: state.pop("layers.2.adaptive_mixing.m_beta"), r"missing: cortex.0.mixing.channel_bias"),
    "unexpected": (lambda state: state.update({"layers.3.extra": torch.zeros(1)}), r"unexpected: cortex.1.extra"),
    "misshaped": (lambda state: state.update({"norm.bias": torch.zeros(3)}), r"norm.bias \(3,\) instead of \(128,\)"),
    "a layer left out": (lambda state: state.update({"layers.9.norm1.bias": torch.zeros(3)}), "name a layer 9"),
    "no latents": (lambda state: state.pop("initial_roi.weight"), "no tensor focusing.initial_rois"),
    "twice": (lambda state: state.update({"token_roi.weight": torch.zeros(4, 4)}), "names some tensors twice"),
    "not a number": (lambda state: state["proj.bias"].fill_(torch.nan), "NaN or infinite: classifier.bias"),
    "other widths": (
        lambda state: state.update({"proj.weight": torch.zeros(7, 129)}),
        "hidden_size 129 is not a multiple",
    ),
    "centres and sizes": (lambda state: state.update({"token_roi_cc.weight": torch.zeros(4, 2)}), r"_converted\.pth"),
    "bootstrapped clips": (
        lambda state: state.update(BOOTSTRAPPED_CLIPS),
        "bootstrapped SparseFormer of the video code",
    ),
    "no convolution": (lambda state: state.pop(CONVOLUTION), "no tensor feat_extractor.conv1.weight"),
    "a head alone": (lambda state: [state.pop(name) for name in list(state) if "layers" in name], "expected one of"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_none_is_one_sentence(damage):
    state = make_state()
    break_it, sentence = DAMAGE[damage]
    break_it(state)
    with pytest.raises(ValueError, match=sentence):
        convert_official(state)


@pytest.mark.parametrize("layout", KINDS)
def test_a_converted_file_loads_again_to_the_bit(layout, tmp_path, capsys):
    torch.save(make_state(layout), tmp_path / "file.pth")
    convert(["official", str(tmp_path / "file.pth"), str(tmp_path / "out")])
    assert f"SparseFormer {KINDS[layout]}; 4 latents, width 128, 3 cortex blocks" in capsys.readouterr().out
    frames = draw_frames(2)
    pixel_values = frames[None] if layout == "clips" else frames
    expected = see(load_official(tmp_path / "file.pth"), pixel_values)
    assert is_v1(tmp_path / "out")
    model = load_v1(tmp_path / "out")
    assert torch.equal(see(model, pixel_values).logits, expected.logits)
    state = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").size.shortest_edge == 256


def test_either_loader_refuses_the_other_kind(tmp_path):
    convert_official(make_state()).save_pretrained(tmp_path / "v1")
    SparseFormerModel(preset("sf-mini", num_hidden_layers=1)).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"'sparseformer_v1'.*without a teacher.*load_v1 loads it"):
        load_encoder(tmp_path / "v1")
    with pytest.raises(ValueError, match=r"type 'sparseformer': expected one with model_type 'sparseformer_v1'"):
        load_v1(tmp_path / "encoder")


def test_an_output_names_what_was_read_and_where():
    output = see(convert_official(make_state()), draw_frames(2))
    assert output.logits.shape == (2, CLASSES) and output.pooler_output.shape == (2, WIDTH)
    assert output.last_hidden_state.shape == (2, LATENTS, WIDTH)
    assert output.rois.shape == (2, 5, LATENTS, 4) and output.sampling_points.shape == (2, LATENTS, 36, 2)
    first = output.rois[:, 0]
    assert torch.equal(first[0], first[1])  # nothing has been read yet
    assert not torch.equal(output.rois[0, 1], output.rois[1, 1])
    centres = output.rois[:, -1].unflatten(-1, (2, 2)).mean(dim=-2)
    torch.testing.assert_close(output.sampling_points.mean(dim=-2), centres)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["released", "clips"])
def test_in_half_precision_geometry_stays_float32(layout, dtype):
    model = convert_official(make_state(layout)).to(dtype)
    output = see(model, draw_frames(3)[None] if layout == "clips" else draw_frames(3))
    assert output.rois.dtype == model.focusing.initial_rois.dtype == torch.float32
    assert output.logits.dtype == dtype and output.logits.isfinite().all()


def test_every_weight_learns_from_labels():
    model = convert_official(make_state())
    model(draw_frames(2).float()).logits.square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert without == []


def test_pictures_and_clips_are_not_taken_for_each_other():
    with pytest.raises(ValueError, match=r"expected images \(B, 3, S, S\), got \(1, 2, 3, 32, 32\)"):
        see(convert_official(make_state()), draw_frames(2)[None])
    with pytest.raises(ValueError, match=r"expected clips \(B, F, 3, S, S\), got \(2, 3, 32, 32\)"):
        see(convert_official(make_state("clips")), draw_frames(2))


@pytest.mark.parametrize("replicates", [1, 2])
def test_an_inflated_model_sees_in_a_still_clip_what_the_picture_shows(replicates):
    model = convert_official(make_state()).double()
    picture = draw_frames(1)
    inflated = inflate(model, replicates)
    clip = picture.expand(replicates, -1, -1, -1)[None]  # a frame in the middle of each span
    output = see(inflated, clip)
    assert output.rois.shape == (1, 5, replicates * LATENTS, 6)
    torch.testing.assert_close(output.logits, see(model, picture).logits, rtol=1e-9, atol=1e-9)


def test_the_converter_makes_clips_of_v1_alone(tmp_path):
    torch.save(make_state(), tmp_path / "v1.pth")
    convert(["official", str(tmp_path / "v1.pth"), str(tmp_path / "out"), "--clips", "2"])
    assert load_v1(tmp_path / "out").config.num_latents == 2 * LATENTS
    with pytest.raises(ValueError, match="expected a model of pictures"):
        inflate(load_v1(tmp_path / "out"))


@pytest.mark.parametrize("is_video", [False, True])
def test_a_new_model_starts_with_distinct_rois_within_picture_and_clip(is_video):
    torch.manual_seed(0)
    model = SparseFormerV1Model(
        SparseFormerV1Config(is_video=is_video, num_latents=9, hidden_size=128, focusing_size=64, num_hidden_layers=2)
    )
    output = see(model.eval(), draw_frames(2)[None] if is_video else draw_frames(2))
    assert output.logits.isfinite().all()
    rois = output.rois[0, -1]
    assert len(rois.unique(dim=0)) == 9 and rois.min() >= 0 and rois.max() <= 1
    assert torch.equal(rois, output.rois[0, 0])  # zero-initialised heads


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (dict(hidden_size=100), "hidden_size 100 is not a multiple of num_attention_heads 64"),
        (dict(num_sampling_points=1), "num_sampling_points must be at least 2"),
        (dict(num_latents=0), "num_latents must be a positive whole number"),
        (dict(is_video=3), "is_video must be true or false"),
        (dict(num_latent=3), "unknown field num_latent "),
        (dict(image_std=(1, 1, 0)), "image_std must be positive"),
        (dict(hidden_size=65_536, num_hidden_layers=256), "more than 32,000,000,000"),
    ],
)
def test_a_configuration_of_no_model_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        SparseFormerV1Config(**fields)


def test_an_unknown_preset_lists_the_known_ones():
    assert v1_preset("sf-v1-small", num_classes=10).num_latents == 64
    with pytest.raises(ValueError, match="known presets: sf-v1-tiny, sf-v1-small, sf-v1-base"):
        v1_preset("sf-v1-large")
