"""Parameters and multiply-adds of every preset beside the published numbers."""

import json

import pytest
import timm
import torch

from sf_llava.benchmark import cost_table
from sf_llava.bootstrap.inherit import student_config
from sf_llava.configuration import preset
from sf_llava.teachers.timm_teacher import TimmTeacher


def test_costs_are_the_published_ones_within_half_a_percent(tmp_path):
    counted = cost_table.run(tmp_path)
    for cost in counted:
        for value, official, paper in (
            (cost.parameters, cost.official_parameters, cost.paper_parameters),
            (cost.multiply_adds, cost.official_multiply_adds, cost.paper_multiply_adds),
        ):
            off = cost_table.deviation(value, official, paper)
            assert off is None or abs(off) < 0.005, cost
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    assert len(rows) == len(counted)


@pytest.mark.parametrize(
    ("name", "model", "image_size"),
    [
        ("sf-b-siglip-224", "vit_base_patch16_siglip_224", 224),
        ("sf-so400m-siglip-384", "vit_so400m_patch14_siglip_384", 384),
        ("sf-l-dinov2-224", "vit_large_patch14_dinov2", 224),
    ],
)
def test_presets_of_other_families_are_shaped_after_their_teachers(name, model, image_size):
    with torch.device("meta"):
        teacher = TimmTeacher(model, timm.create_model(model, img_size=image_size))
    ours, theirs = preset(name), student_config(teacher)
    for field in (
        *("hidden_size", "focusing_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("focusing_num_attention_heads", "num_latents", "use_cls", "projection_dim", "num_classes"),
        *("cortex_layer_norm_eps", "image_size", "image_mean", "image_std"),
    ):
        assert getattr(ours, field) == getattr(theirs, field), field
