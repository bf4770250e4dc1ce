"""An encoder with packed weights says what the encoder says, and refuses what it cannot do."""

import pytest
import torch

from sf_llava import pack_for_cpu
from sf_llava.configuration import preset
from sf_llava.model import SparseFormerModel
from sf_llava.model.packing import PackedLinear, is_available

pytestmark = pytest.mark.skipif(not is_available(), reason="needs a PyTorch with oneDNN")


def make_encoder(activation: str = "quick_gelu") -> SparseFormerModel:
    torch.manual_seed(0)
    model = SparseFormerModel(preset("sf-mini", hidden_act=activation))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("batch", [1, 3])
def test_packed_outputs_are_those_of_float64(activation, batch):
    encoder, pixels = make_encoder(activation), torch.randn(batch, 3, 64, 64)
    expected = encoder.double()(pixels.double(), output_hidden_states=-2)
    packed = pack_for_cpu(encoder.float())
    with torch.inference_mode():
        found = packed(pixels, output_hidden_states=-2)
        embeds = packed(pixels).image_embeds
    for ours, exact in ((found.hidden_states[-2], expected.hidden_states[-2]), (found.rois, expected.rois)):
        torch.testing.assert_close(ours, exact.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(embeds, encoder.double()(pixels.double()).image_embeds.float(), atol=1e-4, rtol=1e-4)


def test_every_linear_layer_is_packed_and_the_encoder_stays_as_it_was():
    encoder = make_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    packed = pack_for_cpu(encoder)
    assert not any(isinstance(module, torch.nn.Linear) for module in packed.modules())
    layers = sum(isinstance(module, torch.nn.Linear) for module in encoder.modules())
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == layers
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


class Doubled(torch.nn.Linear):
    """A stand-in for quantised and adapted layers."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(tokens)


@pytest.mark.parametrize("where", ["cortex.1.attn.proj", "cortex.1.mlp.fc1", "cortex.1.mlp.fc2"])
@pytest.mark.parametrize("how", ["replaced", "hooked"])
def test_layers_that_are_more_than_their_weights_are_called(where, how):
    encoder, pixels = make_encoder(), torch.randn(2, 3, 64, 64)
    parent, name = encoder.get_submodule(where.rpartition(".")[0]), where.rpartition(".")[2]
    layer = getattr(parent, name)
    if how == "hooked":
        layer.register_forward_hook(lambda *given: 2 * given[-1])
    else:
        doubled = Doubled(layer.in_features, layer.out_features)
        doubled.load_state_dict(layer.state_dict())
        setattr(parent, name, doubled)
    with torch.inference_mode():
        expected, found = (model(pixels).image_embeds for model in (encoder, pack_for_cpu(encoder)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_what_packed_weights_cannot_do_is_refused(tmp_path):
    packed = pack_for_cpu(make_encoder())
    with pytest.raises(ValueError, match="save the encoder that they were packed from"):
        packed.save_pretrained(tmp_path)
    for convert in (packed.half, packed.double, lambda: packed.to("meta")):
        with pytest.raises(ValueError, match="move or convert the encoder, then pack that"):
            convert()
    assert not packed(torch.randn(1, 3, 64, 64)).image_embeds.requires_grad


def test_an_encoder_of_another_precision_is_refused():
    with pytest.raises(ValueError, match="expected an encoder in float32 on the CPU, got bfloat16 on cpu"):
        pack_for_cpu(make_encoder().bfloat16())
