"""A teacher with fewer tokens that is tuned: gradients through merging, what is saved, what is refused."""

import json

import pytest
import timm
import tiny_models  # noqa: F401 (registers)
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from sf_llava.measure.baselines import reduce_teacher
from sf_llava.measure.setup import load_candidate
from sf_llava.measure.tuned import TunedTeacher, load_tuned
from sf_llava.model.loading import load_encoder
from sf_llava.teachers.timm_teacher import TimmTeacher

REDUCTIONS = ("tome:5", "diffrate:5")


def make_teacher(seed: int = 0) -> TimmTeacher:
    """A classifier; its LNs are drawn too, so that heads of two seeds differ."""
    torch.manual_seed(seed)
    vit = timm.create_model("vit_sf_tiny")
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return TimmTeacher("augreg", vit)


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


@pytest.fixture
def pixels(teacher):
    return torch.randn(3, 3, teacher.image_size, teacher.image_size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_through_merging_are_finite_differences(reduction, pixels):
    teacher, pixels = make_teacher().double(), pixels.double()
    wanted, tuned = teacher(pixels), TunedTeacher(teacher, reduction).double()

    def loss():
        return 1 - F.cosine_similarity(tuned(pixels).image_embeds, wanted, dim=-1).mean()

    parameters = list(tuned.cortex.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    assert all(gradient.any() for gradient in gradients)  # every layer of every block has one
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter, gradient in list(zip(parameters, gradients, strict=True))[::5]:
            way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            values = []
            for step in (1e-6, -2e-6):
                parameter += step * way
                values.append(loss())
            parameter += 1e-6 * way
            torch.testing.assert_close((gradient * way).sum(), (values[0] - values[1]) / 2e-6, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_it_begins_as_the_teacher_off_the_shelf_which_it_leaves_as_it_is(teacher, pixels, reduction):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    tuned, off_the_shelf = TunedTeacher(teacher, reduction), reduce_teacher(teacher, reduction)
    with torch.no_grad():  # with gradients another kernel attends
        assert torch.equal(tuned(pixels).image_embeds, off_the_shelf(pixels))
    assert tuned.num_parameters() == teacher.num_parameters()
    optimizer = torch.optim.SGD(tuned.cortex.parameters(), lr=0.1)
    tuned(pixels).image_embeds.square().sum().backward()
    optimizer.step()
    assert not torch.allclose(tuned(pixels).image_embeds, off_the_shelf(pixels))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.fixture
def saved(teacher, tmp_path):
    tuned = TunedTeacher(teacher, "tome:5")
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in tuned.cortex.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "encoder")
    return tuned, tmp_path / "encoder"


def test_what_is_saved_and_loaded_is_the_same_to_the_bit(teacher, pixels, saved):
    tuned, directory = saved
    loaded = load_tuned(directory.parent, teacher)  # a run's directory
    tuned.requires_grad_(False)
    assert torch.equal(loaded(pixels).image_embeds, tuned(pixels).image_embeds) and loaded.config == tuned.config
    loaded.save_pretrained(directory.parent / "again")
    assert (directory.parent / "again" / "model.safetensors").read_bytes() == (
        directory / "model.safetensors"
    ).read_bytes()
    candidate = load_candidate(directory, teacher)
    assert (candidate.kind, candidate.num_tokens) == ("tome, tuned", tuned.config.num_latents)
    embeds, logits = candidate(pixels)
    assert torch.equal(logits, teacher.classify(embeds))


def test_another_teachers_is_refused(saved):
    with pytest.raises(ValueError, match=r"norm.weight in .* is not that of augreg: it is another teacher's"):
        load_tuned(saved[1], make_teacher(seed=1))
    with pytest.raises(ValueError, match="it is a teacher with fewer tokens: zero-shot and retrieval take it"):
        load_encoder(saved[1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("blocks.0.norm1.weight"), "1 missing: blocks.0.norm1.weight"),
        (lambda state: state.update(more=torch.ones(1)), "1 unexpected: more"),
        (lambda state: state.pop("norm.bias"), "does not hold the head of augreg: 1 missing: norm.bias"),
        (lambda state: state["blocks.1.mlp.fc1.bias"].fill_(torch.nan), "NaN or infinite: blocks.1.mlp.fc1.bias"),
    ],
    ids=["missing", "unexpected", "head", "NaN"],
)
def test_weights_that_do_not_fit_are_one_sentence(teacher, saved, change, sentence):
    state = load_file(saved[1] / "model.safetensors")
    change(state)
    save_file(state, saved[1] / "model.safetensors")
    with pytest.raises(ValueError, match=sentence):
        load_tuned(saved[1], teacher)


@pytest.mark.parametrize("change", [{"reduction": "merge:3"}, {"num_latents": 8}, {"image_size": None}])
def test_a_configuration_that_does_not_fit_is_one_sentence(teacher, saved, change):
    path = saved[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"unknown reduction 'merge:3'|is not of augreg with fewer tokens: "):
        load_tuned(saved[1], teacher)
