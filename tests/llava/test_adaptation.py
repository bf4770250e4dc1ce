"""What of a LLaVA is worth adapting, and what its loss does not depend on."""

import pytest
import torch
from tiny_llava import make_encoder, make_llava
from torch import nn
from tuning_fixtures import make_rows, make_swapped, mean_loss

from sf_llava import freeze_unused, linear_modules
from sf_llava.llava import swap
from sf_llava.tuning.encoding import Encoder


def without_gradient(model, processor) -> set[str]:
    """Trained weights that a training step on a picture leaves alone."""
    mean_loss(model, Encoder(processor).collate(make_rows(processor, 2))).backward()
    return {name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None}


def test_what_is_frozen_is_what_gets_no_gradient():
    untouched = without_gradient(*make_swapped())
    model, processor = make_swapped()
    frozen = freeze_unused(model)
    assert set(frozen) == untouched and len(frozen) == 15
    assert all(name.startswith("model.vision_tower.") for name in frozen)
    assert not without_gradient(model, processor)
    assert freeze_unused(model) == []


@pytest.mark.parametrize(("layer", "strategy"), [(-1, "default"), (-3, "full"), ([-2, -4], "default"), (1, "default")])
def test_any_layer_may_be_read(layer, strategy, processor):
    width = 1 if isinstance(layer, int) else len(layer)
    model = make_llava(vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    assert model.model.multi_modal_projector.linear_1.in_features == 64 * width
    processor.vision_feature_select_strategy = strategy
    swap(model, processor, make_encoder(16))
    frozen = freeze_unused(model)
    layers = [layer] if isinstance(layer, int) else layer
    last = max(one % 4 for one in layers)  # blocks that are run: hidden state 0 is their input
    assert {int(name.split(".")[3]) for name in frozen if ".cortex." in name} == set(range(last, 3))
    assert not without_gradient(model, processor)


def test_a_clip_tower_is_asked_as_well(llava, processor):
    frozen = freeze_unused(llava)
    assert {name.split(".")[2] for name in frozen} == {"encoder", "post_layernorm"}
    assert not without_gradient(llava, processor)


def test_linear_layers_are_those_that_run_by_part():
    model, _ = make_swapped()
    parts = {part: linear_modules(model, [part]) for part in ("tower", "projector", "llm")}
    assert [*parts["tower"], *parts["projector"], *parts["llm"]] == linear_modules(model) and not any(
        name == "lm_head" for name in parts["llm"]
    )
    assert parts["projector"] == ["model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"]
    assert len(parts["llm"]) == 2 * 7 and all(isinstance(model.get_submodule(one), nn.Linear) for one in parts["llm"])
    assert {name.split(".")[3] for name in parts["tower"] if ".cortex." in name} == {"0", "1"}  # of three
    assert not [name for name in parts["tower"] if "projection" in name]


def test_asking_changes_nothing():
    model, _ = make_swapped()
    model.train().model.multi_modal_projector.eval()
    model.model.vision_tower.requires_grad_(False)
    before = [(one.training, [weight.requires_grad for weight in one.parameters()]) for one in model.modules()]
    with torch.no_grad():
        linear_modules(model)
        freeze_unused(model)
    after = [(one.training, [weight.requires_grad for weight in one.parameters()]) for one in model.modules()]
    assert before == after and all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("parts", [["head"], [], "llm"])
def test_an_unknown_part_lists_the_known_ones(parts):
    with pytest.raises(ValueError, match=r"unknown parts .*: expected some of tower, projector, llm"):
        linear_modules(make_swapped()[0], parts)
