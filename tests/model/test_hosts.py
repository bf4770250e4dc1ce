"""The encoder as transformers, PEFT, FSDP and exporters meet it."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModel

from sf_llava.configuration import preset
from sf_llava.model import SparseFormerModel

GEOMETRY = ("initial_rois", "offset_bias")


def make_model(**changes: object) -> SparseFormerModel:
    """The mini model with every zero-initialised path opened."""
    torch.manual_seed(0)
    model = SparseFormerModel(preset("sf-mini", **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def make_pixels(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_what_hosts_hand_down_changes_nothing():
    model, pixels = make_model(), make_pixels()
    hosts = dict(num_items_in_batch=torch.tensor(7), output_attentions=True, use_cache=False, position_ids=None,
                 output_router_logits=False, cu_seq_lens_q=None, is_causal=True, image_sizes=None)  # fmt: skip
    assert torch.equal(model(pixels, **hosts).image_embeds, model(pixels).image_embeds)


@pytest.mark.parametrize("name", ["output_hidden_state", "hidden_states", "output_sampling_point", "returndict"])
def test_a_misspelt_option_is_not_taken_for_a_hosts(name):
    with pytest.raises(TypeError, match=f"'{name}': did you mean"):
        make_model()(make_pixels(), **{name: True})


def test_hidden_states_that_are_no_layers_are_refused():
    with pytest.raises(ValueError, match="must be True, False, a layer"):
        make_model()(make_pixels(), output_hidden_states="yes")


def test_the_configuration_decides_what_is_not_asked(tmp_path):
    model, pixels = make_model(), make_pixels()
    model.save_pretrained(tmp_path)
    states = SparseFormerModel.from_pretrained(tmp_path, output_hidden_states=True)(pixels).hidden_states
    assert len(states) == 5 and torch.equal(states[-2], model(pixels, output_hidden_states=-2).hidden_states[-2])
    plain = SparseFormerModel.from_pretrained(tmp_path, return_dict=False, output_hidden_states=True)
    assert type(plain(pixels)) is tuple
    asked = plain(pixels, return_dict=True, output_hidden_states=False)
    assert asked.hidden_states is None and asked.image_embeds is not None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_adapters_in_the_focusing_part_get_the_same_gradients_when_checkpointed(use_reentrant):
    adapted = ("roi_hidden", "offsets", "mixing.proj", "transformer.mlp.fc1")

    def gradients(model: SparseFormerModel) -> dict[str, torch.Tensor]:
        model.train().requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name for part in adapted))
        model.enable_input_require_grads()
        model(make_pixels()).image_embeds.square().sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}

    plain, checkpointed = make_model(), make_model()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    expected, ours = gradients(plain), gradients(checkpointed)
    assert len(expected) == 10 and ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def build_under_default(dtype: torch.dtype) -> SparseFormerModel:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return SparseFormerModel(preset("sf-mini", num_latents=9))
    finally:
        torch.set_default_dtype(before)


def build_empty(dtype: torch.dtype) -> SparseFormerModel:
    with torch.device("meta"):
        model = build_under_default(dtype)
    model.to_empty(device="cpu").init_weights()
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "build",
    [
        build_under_default,
        build_empty,
        lambda dtype: AutoModel.from_config(preset("sf-mini", num_latents=9), dtype=dtype),
        lambda dtype: SparseFormerModel(preset("sf-mini", num_latents=9)).apply(lambda module: module.to(dtype)),
    ],
)
def test_geometry_is_exact_however_the_model_is_built(build, dtype):
    model = build(dtype)
    ticks = torch.tensor([0, 0.25, 0.5])  # 3 x 3 boxes of half the side, from edge to edge
    y, x = (side.flatten() for side in torch.meshgrid(ticks, ticks, indexing="ij"))
    if build is not build_empty:  # there the test's own initialisation is what is asked
        assert torch.equal(model.focusing.initial_rois.detach(), torch.stack([x, y, x + 0.5, y + 0.5], dim=-1))
    kinds = {name: value.dtype for name, value in model.named_parameters()}
    assert {kind for name, kind in kinds.items() if name.endswith(GEOMETRY)} == {torch.float32}
    assert model.dtype == kinds["cls_token"] == kinds["cortex.0.attn.qkv.weight"] == dtype
    assert model(make_pixels().to(dtype)).rois.dtype == torch.float32


def test_rois_stay_distinct_under_a_bf16_default():
    # In bfloat16 the starts of 300 boxes would fall together and lie up to half a pixel off.
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        rois = SparseFormerModel(preset("sf-mini", num_latents=300)).focusing.initial_rois.detach()
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(rois, SparseFormerModel(preset("sf-mini", num_latents=300)).focusing.initial_rois.detach())


def test_every_unit_of_fsdp_has_one_dtype():
    model = make_model().to(torch.bfloat16)
    units = {name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules}
    dtypes: dict[str, set[torch.dtype]] = {}
    for name, parameter in model.named_parameters():
        inside = [unit for unit in units if name.startswith(f"{unit}.")]
        dtypes.setdefault(max(inside, key=len, default=""), set()).add(parameter.dtype)
    assert all(len(kinds) == 1 for kinds in dtypes.values()), dtypes
    assert dtypes["focusing"] == dtypes["focusing.last_sampling"] == {torch.float32} != dtypes[""]


class Tokens(nn.Module):
    """What LLaVA reads."""

    def __init__(self, model: SparseFormerModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels, output_hidden_states=-2).hidden_states[-2]


DYNAMIC = {"pixels": {0: torch.export.Dim("batch", min=1, max=64)}}


def test_an_exported_graph_serves_any_batch():
    tokens = Tokens(make_model()).eval()
    exported = torch.export.export(tokens, (make_pixels(2),), dynamic_shapes=DYNAMIC)
    assert not any("sf_llava" in str(node.target) for node in exported.graph.nodes)  # other runtimes know none of ours
    for batch in (1, 3, 40):  # 40 images are too many for the few samples that the reference serves otherwise
        pixels = make_pixels(batch)
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(pixels), tokens(pixels), rtol=1e-4, atol=1e-4)


def test_copies_keep_units_and_values():
    model, pixels = make_model(), make_pixels()
    assert torch.equal(copy.deepcopy(model)(pixels).image_embeds, model(pixels).image_embeds)
