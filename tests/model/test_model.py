"""The encoder as a module: shapes, dtypes, hosts' expectations."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel

from sf_llava.configuration import PRESETS, SparseFormerConfig, preset
from sf_llava.model import SparseFormerModel


@pytest.fixture
def model() -> SparseFormerModel:
    torch.manual_seed(0)
    return SparseFormerModel(preset("sf-mini")).eval()


@pytest.fixture
def trained(model: SparseFormerModel) -> SparseFormerModel:
    """The mini model with every zero-initialised path opened, so that none hides."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_outputs_have_the_documented_shapes(model, images):
    output = model(images, output_hidden_states=True, output_sampling_points=True)
    assert output.image_embeds.shape == (2, 128)
    assert output.last_hidden_state.shape == (2, 17, 128)
    assert [state.shape for state in output.hidden_states] == [(2, 17, 128)] * 5
    assert output.rois.shape == (2, 5, 16, 4)
    assert output.sampling_points.shape == (2, 16, 16, 2)
    assert output.logits is None
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


def test_nothing_extra_is_returned_unasked(model, images):
    output = model(images)
    assert output.hidden_states is None
    assert output.sampling_points is None


def test_rois_move_and_differ_between_images(trained, images):
    rois = trained(images).rois
    assert (rois[:, 0] - rois[:, -1]).abs().max() > 1e-3
    assert (rois[0, -1] - rois[1, -1]).abs().max() > 1e-4


def test_every_parameter_reaches_the_embedding(trained, images):
    trained(images).image_embeds.square().sum().backward()
    without = [name for name, parameter in trained.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_geometry_in_float32(trained, images, dtype):
    expected = trained(images)
    half = copy.deepcopy(trained).to(dtype)
    output = half(images.to(dtype), output_sampling_points=True)
    assert output.image_embeds.dtype == dtype
    assert output.rois.dtype == output.sampling_points.dtype == torch.float32
    cosine = torch.cosine_similarity(output.image_embeds.float(), expected.image_embeds)
    assert cosine.min() > 0.995


FLOAT32 = ("initial_rois", "offset_bias", "latent_embedding", "stage_embedding")


def geometry(model):
    """Where latents look, and the two embeddings that lie beside it."""
    return {name: value for name, value in model.named_parameters() if name.endswith(FLOAT32)}


@pytest.mark.parametrize(
    "convert",
    [
        lambda model: model.half(),
        lambda model: model.to(torch.float16),
        lambda model: model.to("cpu", torch.bfloat16),
        lambda model: model.double().half(),
        lambda model: torch.nn.ModuleDict({"vision_tower": model}).half()["vision_tower"],
    ],
)
def test_geometry_keeps_its_values_through_every_conversion(trained, images, tmp_path, convert):
    before = copy.deepcopy(trained)
    trained(images).image_embeds.sum().backward()
    half = convert(trained)
    assert len(geometry(half)) == 5 and half.dtype in (torch.float16, torch.bfloat16)
    for name, value in geometry(half).items():
        assert value.dtype == value.grad.dtype == torch.float32 and torch.equal(value, geometry(before)[name])
    coarse = {value.dtype for name, value in half.named_parameters() if name not in geometry(half)}
    assert coarse == {half.dtype}
    half.save_pretrained(tmp_path)
    again = SparseFormerModel.from_pretrained(tmp_path, dtype=half.dtype)
    assert all(torch.equal(value, geometry(before)[name]) for name, value in geometry(again).items())
    assert {value.dtype for value in geometry(trained.double()).values()} == {torch.float64}


def test_autocast_keeps_geometry_in_float32(trained, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = trained(images, output_sampling_points=True)
    assert output.rois.dtype == output.sampling_points.dtype == torch.float32


def test_loading_in_half_precision_keeps_rois_in_float32(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    half = SparseFormerModel.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.dtype == torch.float16
    assert half.focusing.initial_rois.dtype == torch.float32
    assert torch.equal(half.focusing.initial_rois, trained.focusing.initial_rois)


def test_round_trip_through_auto_classes_is_exact(trained, images, tmp_path):
    trained.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), SparseFormerConfig)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(again, SparseFormerModel)
    assert torch.equal(again(images).image_embeds, trained(images).image_embeds)


def test_sdpa_equals_eager_attention(trained, images, tmp_path):
    trained.save_pretrained(tmp_path)
    outputs = [
        SparseFormerModel.from_pretrained(tmp_path, attn_implementation=name).eval()(images).image_embeds
        for name in ("sdpa", "eager")
    ]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(trained, images):
    def gradients(model):
        model.zero_grad()
        model.train()(images).image_embeds.square().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients(trained)
    trained.gradient_checkpointing_enable()
    checkpointed = gradients(trained)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_any_resolution_is_read(model):
    assert model(torch.randn(1, 3, 96, 96)).image_embeds.shape == (1, 128)


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="sf-l-clip-336"):
        preset("sf-xl")


def test_unknown_field_of_a_preset_is_named():
    with pytest.raises(ValueError, match="num_latent"):
        preset("sf-mini", num_latent=3)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name):
    with torch.device("meta"):
        assert SparseFormerModel(preset(name)).config.num_tokens == preset(name).num_latents + preset(name).use_cls


@pytest.mark.parametrize(
    ("field", "value"), [("num_latents", 0), ("hidden_size", 101), ("hidden_act", "swoosh"), ("num_sampling_points", 1)]
)
def test_impossible_configurations_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        preset("sf-mini", **{field: value})
