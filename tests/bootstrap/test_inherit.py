"""Inheriting, truncating, tuning, freezing; the losses and the schedule."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import save_tiny_clip

from sf_llava.bootstrap.inherit import check_head, inherit, parameter_groups, resize, set_trainable, student_config
from sf_llava.bootstrap.objectives.embedding import cosine_loss, kl_loss
from sf_llava.bootstrap.schedule import learning_rate_factor
from sf_llava.mini import MINI_STUDENT_DIR
from sf_llava.model import SparseFormerModel
from sf_llava.model.loading import load_encoder
from sf_llava.teachers import load_teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    return load_teacher(str(save_tiny_clip(path, num_hidden_layers=6)))


@pytest.fixture
def student(teacher):
    student = SparseFormerModel(student_config(teacher)).eval()
    inherit(student, teacher)
    return student


def test_a_student_is_shaped_after_its_teacher(teacher):
    config = student_config(teacher)
    assert (config.num_latents, config.num_hidden_layers) == (4, 4)
    assert (config.hidden_act, config.projection_dim) == ("quick_gelu", 16)


def test_inherited_blocks_give_the_teachers_outputs_on_the_same_tokens(student, teacher):
    tokens = torch.randn(2, 5, 32)
    for index, block in enumerate(student.cortex, start=2):
        torch.testing.assert_close(block(tokens), teacher.run_block(index, tokens), rtol=1e-5, atol=1e-5)


def test_head_is_the_teachers(student, teacher):
    cls = torch.randn(3, 32)
    embeds = student.projection(student.norm(cls))
    head = teacher.head_state_dict()
    expected = F.layer_norm(cls, (32,), head["norm.weight"], head["norm.bias"], 1e-5) @ head["projection.weight"].T
    torch.testing.assert_close(embeds, expected)


def test_the_paper_tunes_a_third_and_freezes_the_ending(student, teacher):
    report = set_trainable(student, teacher, None, True)
    assert (report.num_truncated, report.num_tunable, report.num_frozen) == (2, 2, 2)
    trainable = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    starts = ("early_conv.", "focusing.", "cls_token", "cortex.0.", "cortex.1.")
    assert trainable == {name for name, _ in student.named_parameters() if name.startswith(starts)}
    assert report.frozen_parameters == sum(p.numel() for p in student.parameters() if not p.requires_grad)


def test_ablations_change_what_trains(student, teacher):
    assert set_trainable(student, teacher, 0, True).tunable_parameters == 0
    assert set_trainable(student, teacher, 4, True).num_frozen == 0
    assert set_trainable(student, teacher, None, False).num_frozen == 0
    with pytest.raises(ValueError, match="5 tunable blocks: the cortex has 4"):
        set_trainable(student, teacher, 5, True)
    with pytest.raises(ValueError, match="has 6"):
        student_config(teacher, num_truncated=6)


def test_without_reuse_only_the_head_is_inherited(teacher):
    torch.manual_seed(0)
    student = SparseFormerModel(student_config(teacher))
    before = student.cortex[0].attn.qkv.weight.clone()
    inherit(student, teacher, reuse_blocks=False)
    assert torch.equal(student.cortex[0].attn.qkv.weight, before)
    assert torch.equal(student.projection.weight, teacher.head_state_dict()["projection.weight"])


def test_a_student_of_another_shape_is_refused(teacher):
    config = student_config(teacher)
    config.hidden_act = "gelu"
    with pytest.raises(ValueError, match="hidden_act is gelu, the teacher's is quick_gelu"):
        inherit(SparseFormerModel(config), teacher)


def test_a_student_of_another_teacher_is_refused(student, tmp_path):
    other = load_teacher(str(save_tiny_clip(tmp_path, seed=5, num_hidden_layers=6)))
    with pytest.raises(ValueError, match="another teacher"):
        check_head(student, other)


def test_the_student_that_ships_is_its_teachers_though_it_was_rounded():
    check_head(load_encoder(MINI_STUDENT_DIR), load_teacher("mini"))


def test_groups_scale_inherited_blocks_and_decay_matrices_only(student, teacher):
    set_trainable(student, teacher, None, True)
    groups = parameter_groups(student, 1.0, 0.1, 0.05, reused=True)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["peak_lr"] == (0.1 if name.startswith("cortex.") else 1.0)
            if name.endswith(("bias", "initial_rois", "stage_embedding")):
                assert group["weight_decay"] == 0
    grouped = sum(len(group["params"]) for group in groups)
    assert grouped == sum(p.requires_grad for p in student.parameters())


def test_more_latents_keep_every_other_weight(student):
    with torch.no_grad():
        student.focusing.initial_rois.add_(0.1)
    grown = resize(student, 9, 48)
    assert (grown.config.num_latents, grown.config.image_size) == (9, 48)
    assert len({tuple(roi) for roi in grown.focusing.initial_rois.tolist()}) == 9
    before = student.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in grown.state_dict().items() if "initial_rois" not in k)
    same = resize(student, student.config.num_latents, 48)
    assert torch.equal(same.focusing.initial_rois, student.focusing.initial_rois)


def test_cosine_loss_equals_equation_5():
    student, teacher = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    expected = sum(1 - (s @ t / s.norm() / t.norm()).item() for s, t in zip(student, teacher, strict=True)) / 4
    assert cosine_loss(student, teacher).item() == pytest.approx(expected, abs=1e-6)


def test_kl_loss_equals_the_sum_over_classes():
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    p, q = torch.softmax(teacher / 3, -1), torch.softmax(student / 3, -1)
    expected = (p * (p / q).log()).sum() / 3 * 9
    torch.testing.assert_close(kl_loss(student, teacher, 3.0), expected)


def test_schedule_warms_up_then_falls_as_half_a_cosine():
    new = [learning_rate_factor(step, 100, 10, inherited=False) for step in range(100)]
    inherited = [learning_rate_factor(step, 100, 10, inherited=True) for step in range(100)]
    assert new[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert inherited[:10] == [0.0] * 10
    assert new[10:] == inherited[10:]
    assert new[55] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert learning_rate_factor(100, 100, 10, inherited=False) == pytest.approx(0)
