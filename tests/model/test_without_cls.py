"""A SparseFormer without CLS: latents alone, pooled by attention; old configurations still mean CLS."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoImageProcessor, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from sf_llava.configuration import SparseFormerConfig, preset
from sf_llava.data.transforms import Preprocessing
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder
from sf_llava.model.packing import is_available, pack_for_cpu

FIELDS = dict(use_cls=False, projection_dim=0, hidden_act="gelu_pytorch_tanh", resize_mode="squash")


@pytest.fixture
def model() -> SparseFormerModel:
    torch.manual_seed(0)
    return SparseFormerModel(preset("sf-mini", **FIELDS)).eval()


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_its_tokens_are_the_latents_alone(model, pixels):
    output = model(pixels, output_hidden_states=True)
    assert {state.shape for state in output.hidden_states} == {(2, 16, 128)}
    assert output.last_hidden_state.shape == (2, 16, 128) and output.image_embeds.shape == (2, 128)
    assert not hasattr(model, "cls_token") and model.config.num_tokens == 16
    assert torch.equal(model(pixels).image_embeds, output.image_embeds)  # no block computes less than all latents


def test_its_head_is_siglips(model, pixels):
    config = SiglipVisionConfig(
        hidden_size=128, intermediate_size=512, num_attention_heads=2, layer_norm_eps=model.config.cortex_layer_norm_eps
    )
    theirs, own = SiglipMultiheadAttentionPoolingHead(config).eval(), model.pool
    with torch.no_grad():
        # The query projection is the identity here: any probe is its own query.
        theirs.attention.in_proj_weight[:128] = torch.eye(128)
        theirs.attention.in_proj_bias[:128] = 0
        theirs.attention.in_proj_weight[128:] = own.kv.weight
        theirs.attention.in_proj_bias[128:] = own.kv.bias.normal_()
        theirs.probe.copy_(own.query.view(1, 1, -1))
        theirs.attention.out_proj.load_state_dict(own.proj.state_dict())
        theirs.layernorm.load_state_dict(own.norm.state_dict())
        theirs.mlp.load_state_dict(own.mlp.state_dict())
    output = model(pixels, output_hidden_states=True)
    expected = theirs(F.layer_norm(output.last_hidden_state, (128,), eps=model.config.cortex_layer_norm_eps))
    torch.testing.assert_close(output.image_embeds, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.pooler_output, output.image_embeds)


def test_every_weight_meets_the_embedding(model, pixels):
    with torch.no_grad():  # zero-initialised paths would hide what lies before them
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model(pixels).image_embeds.square().sum().backward()
    assert not [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum()]


def test_it_comes_back_from_its_directory_with_its_pixels(model, pixels, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.config.use_cls is False and loaded.config.resize_mode == "squash"
    assert torch.equal(loaded(pixels).image_embeds, model(pixels).image_embeds)
    picture = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = Preprocessing(64, loaded.config.image_mean, loaded.config.image_std, resize_mode="squash")
    from torchvision.transforms.functional import to_pil_image

    prepared = AutoImageProcessor.from_pretrained(tmp_path)(to_pil_image(picture), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared[0], ours(to_pil_image(picture)), rtol=0, atol=1e-6)
    assert torch.equal(ours(to_pil_image(picture)), ours.normalise(to_pil_image(picture).resize((64, 64), 3)))


def test_configurations_of_before_mean_cls():
    fields = preset("sf-mini").to_dict()
    for name in ("use_cls", "resize_mode", "num_teacher_layers"):
        del fields[name]
    config = SparseFormerConfig.from_dict(fields)
    assert (config.use_cls, config.resize_mode, config.num_teacher_layers) == (True, "shortest", 0)
    assert "cls_token" in SparseFormerModel(config).state_dict()


@pytest.mark.parametrize(("field", "value"), [("use_cls", 1), ("resize_mode", "longest"), ("num_teacher_layers", -1)])
def test_values_that_make_no_encoder_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        preset("sf-mini", **{field: value})


@pytest.mark.skipif(not is_available(), reason="this build of PyTorch cannot pack")
def test_packed_weights_give_the_same_embedding(model, pixels):
    torch.testing.assert_close(
        pack_for_cpu(model)(pixels).image_embeds, model(pixels).image_embeds, rtol=1e-4, atol=1e-5
    )


class Embedding(nn.Module):
    """What the exported file gives."""

    def __init__(self, model: SparseFormerModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels).image_embeds


def test_an_exported_graph_serves_any_batch(model, pixels):
    shapes = {"pixels": {0: torch.export.Dim("batch", min=1, max=8)}}
    exported = torch.export.export(Embedding(model).eval(), (pixels,), dynamic_shapes=shapes)
    more = torch.cat([pixels, pixels.flip(0)])[:3]
    torch.testing.assert_close(exported.module()(more), model(more).image_embeds, rtol=1e-4, atol=1e-4)
