"""The encoder's fast paths give what the plain computation gives, and leave the weights alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sf_llava.configuration import preset
from sf_llava.model import SparseFormerModel, early_conv
from sf_llava.model.cortex import Mlp
from sf_llava.model.early_conv import EarlyConvolution
from sf_llava.ops import force

TOLERANCES = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def make_model(dtype: torch.dtype = torch.float64, **changes) -> SparseFormerModel:
    """The mini model with OpenAI's activation and every zero-initialised path opened."""
    torch.manual_seed(0)
    model = SparseFormerModel(preset("sf-mini", hidden_act="quick_gelu", **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def make_images(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_early_convolution_equals_the_official_order(dtype, tolerance):
    early = EarlyConvolution(64).to(dtype)
    pixels = make_images(dtype)
    maps = F.max_pool2d(early.conv(pixels).relu(), kernel_size=3, stride=2, padding=1)
    centred = maps - maps.mean(dim=1, keepdim=True)
    expected = centred / (maps.var(dim=1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    assert relative(early(pixels), expected.permute(0, 2, 3, 1)) < tolerance
    assert early(pixels).is_contiguous()


def test_many_pixels_are_convolved_in_parts(monkeypatch):
    early, pixels = EarlyConvolution(8), make_images(torch.float32)
    whole, seen = early(pixels), []
    monkeypatch.setattr(early_conv, "PART_BYTES", 2 * 8 * 32 * 32 * 4)  # of two images
    early.conv.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    with torch.no_grad():
        torch.testing.assert_close(early(pixels), whole)
    early(pixels)  # for a backward all is kept, so that nothing is gained
    assert seen == [2, 1, 3]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_images_that_start_alike_are_as_if_each_started_alone(dtype, tolerance):
    model, pixels = make_model(dtype), make_images(dtype)

    def outcome() -> list[torch.Tensor]:
        output = model(pixels, output_hidden_states=True)
        loss = output.image_embeds.square().sum() + output.rois.square().sum() + output.hidden_states[-2].square().sum()
        return [
            output.image_embeds,
            output.rois,
            *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True),
        ]

    shared = outcome()
    model.focusing.block.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].expand(3, -1, -1), inputs[1], inputs[2].expand(3, -1, -1))
    )
    for ours, expected in zip(shared, outcome(), strict=True):
        assert (ours is None) == (expected is None)
        assert ours is None or relative(ours, expected) < tolerance or expected.norm() == 0


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_folded_quick_gelu_equals_the_plain_one_with_gradients(dtype, tolerance):
    torch.manual_seed(0)
    mlp = Mlp(32, 128, "quick_gelu").to(dtype)
    tokens = torch.randn(2, 5, 32, dtype=dtype, requires_grad=True)

    def outcome() -> list[torch.Tensor]:
        output = mlp(tokens)
        return [output, *torch.autograd.grad(output.square().sum(), [tokens, *mlp.parameters()])]

    folded = outcome()
    mlp.fc1.register_forward_hook(lambda *_: None)  # a hooked layer must be called, so nothing is folded
    for ours, expected in zip(folded, outcome(), strict=True):
        assert relative(ours, expected) < tolerance
    with torch.no_grad():
        assert relative(mlp(tokens), folded[0]) < tolerance


class Doubled(nn.Linear):
    """A stand-in for quantised and adapted layers."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(tokens)


def test_replaced_layers_are_called():
    mlp = Mlp(32, 128, "quick_gelu").double()
    tokens = torch.randn(2, 5, 32, dtype=torch.float64)
    plain = mlp(tokens)
    doubled = Doubled(128, 32).double()
    doubled.load_state_dict(mlp.fc2.state_dict())
    mlp.fc2 = doubled
    torch.testing.assert_close(mlp(tokens), 2 * plain)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cls_alone_equals_the_whole_last_block(attention, dtype, tolerance):
    model, pixels = make_model(dtype), make_images(dtype)
    model.set_attn_implementation(attention)
    whole, alone = model(pixels, output_hidden_states=True), model(pixels)
    assert relative(alone.image_embeds, whole.image_embeds) < tolerance
    assert relative(alone.pooler_output, whole.pooler_output) < tolerance
    assert alone.last_hidden_state is None

    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(output.image_embeds.square().sum(), parameters) for output in (alone, whole)]
    for ours, expected in zip(*gradients, strict=True):
        assert (ours - expected).norm() <= 10 * tolerance * expected.norm().clamp(min=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_every_path_of_the_ops_gives_the_same_encoder(dtype, tolerance):
    model, pixels = make_model(dtype), make_images(dtype)
    outputs = []
    for path in ("reference", "op", "auto"):
        with force(path):
            outputs.append(model(pixels).image_embeds)
    assert relative(outputs[1], outputs[0]) < tolerance
    assert relative(outputs[2], outputs[0]) < tolerance


def test_llavas_layer_leaves_the_rest_uncomputed():
    model, pixels = make_model(), make_images()
    everything = model(pixels, output_hidden_states=True)
    model.cortex[-1].register_forward_hook(lambda *_: pytest.fail("the last block ran"))
    for asked, kept in ((-2, {3}), (3, {3}), ([-2, 1], {1, 3}), ((0,), {0})):
        output = model(pixels, output_hidden_states=asked)
        assert len(output.hidden_states) == 5
        assert {i for i, state in enumerate(output.hidden_states) if state is not None} == kept
        for layer in kept:
            assert torch.equal(output.hidden_states[layer], everything.hidden_states[layer])
        assert output.last_hidden_state is output.image_embeds is output.pooler_output is output.logits is None
        assert torch.equal(output.rois, everything.rois)


def test_the_last_layer_brings_everything():
    model, pixels = make_model(), make_images()
    output = model(pixels, output_hidden_states=-1)
    assert torch.equal(output.last_hidden_state, output.hidden_states[-1])
    assert output.hidden_states[:-1] == (None,) * 4
    assert relative(output.image_embeds, model(pixels).image_embeds) < 1e-10


@pytest.mark.parametrize("layer", [5, -6, [0, 9]])
def test_a_layer_that_is_not_there_is_named(layer):
    with pytest.raises(ValueError, match="layers -5 to 4"):
        make_model()(make_images(), output_hidden_states=layer)


def test_forward_changes_nothing_in_the_model():
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    with torch.inference_mode():
        model(make_images())
    model(make_images()).image_embeds.sum().backward()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
    assert relative(copy.deepcopy(model)(make_images()).image_embeds, model(make_images()).image_embeds) == 0


@pytest.mark.parametrize("layer", [None, -2])
def test_one_graph_for_training_and_inference(layer):
    model, pixels = make_model(torch.float32), make_images(torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def result(output):
        return output.image_embeds if layer is None else output.hidden_states[layer]

    expected = result(model(pixels, output_hidden_states=layer))
    ours = result(compiled(pixels, output_hidden_states=layer))
    assert relative(ours, expected) < 1e-5
    parameters = [p for name, p in model.named_parameters() if layer is None or "cortex.3" not in name]
    for outcome in (expected, ours):
        gradients = torch.autograd.grad(outcome.square().sum(), parameters, allow_unused=True)
        assert sum(gradient is not None for gradient in gradients) > 60


def test_half_precision_weights_are_not_cast_on_the_way():
    model, pixels = make_model(torch.bfloat16), make_images(torch.bfloat16)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile, torch.no_grad():
        model(pixels)
    cast = [tuple(event.input_shapes[0]) for event in profile.events() if event.name == "aten::_to_copy"]
    weights = {tuple(value.shape) for name, value in model.named_parameters() if "roi" not in name and value.ndim > 1}
    assert not weights.intersection(cast)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_encoder_agrees_compiled_captured_and_repeated():
    pixels = make_images(torch.float32).cuda()
    expected = make_model()(make_images()).image_embeds
    model = make_model(torch.float32).cuda()
    with torch.no_grad():
        assert relative(model(pixels).image_embeds.cpu().double(), expected) < 1e-4
        compiled = torch.compile(model, fullgraph=True)
        assert relative(compiled(pixels).image_embeds.cpu().double(), expected) < 1e-4
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(pixels).image_embeds
        graph.replay()
        assert relative(captured.cpu().double(), expected) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_deterministic_training_repeats_to_the_bit():
    model, pixels = make_model(torch.float32).cuda(), make_images(torch.float32).cuda()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (
            torch.autograd.grad(model(pixels).image_embeds.square().sum(), list(model.parameters())) for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
