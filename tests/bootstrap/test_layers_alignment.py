"""The alignment loss through the first layers of a LLM: the whole model's hidden states, its formula, exact resume."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import run_settings, save_world
from tiny_llava import save_llava

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.objectives.layers import NUM_WORDS, load_layers
from sf_llava.bootstrap.objectives.objective import Seen
from sf_llava.bootstrap.run import bootstrap
from sf_llava.llava.loading import load_llava
from sf_llava.teachers import load_teacher

NUM_PATCHES = 16


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny CLIP, a tiny LLaVA of three layers on it, pictures."""
    path = save_world(tmp_path_factory.mktemp("world"), 40)
    save_llava(path / "llava", path / "clip", num_layers=3)
    return path


@pytest.fixture(scope="module")
def teacher(world):
    return load_teacher(str(world / "clip"))


@pytest.fixture(scope="module")
def layers(world, teacher):
    return load_layers({"layers": 1.0}, str(world / "llava"), teacher, -2, "eager")


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def on_a_grid(count):
    """RoIs (count, 16, 4), one on each patch in raster order."""
    corners = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy"), dim=-1).flatten(0, 1) / 4
    return torch.cat([corners, corners + 0.25], dim=-1).expand(count, -1, -1)


def test_words_read_what_they_read_in_the_whole_model(world, teacher, layers, pixels):
    model, processor = load_llava(world / "llava")
    words = torch.randint(4, 20, (6,), generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([1, *[processor.image_token_id] * NUM_PATCHES, *words]).expand(4, -1)
    with torch.no_grad():
        found = layers.read(teacher.tokens(pixels, -2), words, layers.reading)
        states = model(input_ids=ids, pixel_values=pixels, output_hidden_states=True).hidden_states
        expected = model.model.language_model.norm(states[2])[:, -6:]
    assert len(states) == 4  # the embeddings, and three layers
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_share_of_what_words_tell_of_a_picture_that_is_wrong(teacher, layers, pixels):
    tokens = teacher.tokens(pixels, -2)
    embeds, rois = torch.zeros(4, 3), torch.rand(4, 5, 4, generator=torch.Generator().manual_seed(2))
    student = torch.randn(4, 6, tokens.shape[-1], generator=torch.Generator().manual_seed(3))
    seen = Seen(embeds, student, rois), Seen(embeds, tokens), torch.arange(4)
    found = layers(*seen, torch.Generator().manual_seed(4))["layers"]
    words = layers.words[torch.randint(len(layers.words), (NUM_WORDS,), generator=torch.Generator().manual_seed(4))]
    with torch.no_grad():
        target = layers.read(tokens, words, layers.reading).double()
        said = [
            layers.read(student, words, reading, rois).double()
            for reading in (layers.reading, replace(layers.reading, num_patches=NUM_PATCHES))
        ]
    assert not torch.allclose(said[0], said[1], atol=1e-3)
    wrong, told = 0.0, 0.0
    for word in range(NUM_WORDS):
        mean = sum(target[picture, word] for picture in range(4)) / 4
        for picture in range(4):
            told += math.dist(target[picture, word].tolist(), mean.tolist()) ** 2
            wrong += sum(math.dist(h[picture, word].tolist(), target[picture, word].tolist()) ** 2 for h in said) / 2
    assert found.item() == pytest.approx(wrong / told, rel=1e-4)


def test_it_vanishes_for_the_teachers_tokens_and_names_no_word_that_is_none(teacher, layers, pixels):
    tokens = teacher.tokens(pixels, -2)
    seen = Seen(torch.zeros(4, 3), tokens, on_a_grid(4)), Seen(torch.zeros(4, 3), tokens)
    assert layers(*seen, torch.arange(4), torch.Generator())["layers"].item() == pytest.approx(0, abs=1e-6)
    assert not {0, 1, 2, 3} & set(layers.words.tolist())  # <unk>, <s>, </s>, <image>


def test_gradient_flows_through_the_frozen_layers_into_the_student_alone(teacher, layers, pixels):
    student = torch.randn(4, 6, 32, requires_grad=True)
    seen = Seen(torch.zeros(4, 3), student, torch.rand(4, 5, 4)), Seen(torch.zeros(4, 3), teacher.tokens(pixels, -2))
    layers(*seen, torch.arange(4), torch.Generator())["layers"].backward()
    assert student.grad[:, 1:].abs().sum() > 0 and student.grad[:, 0].abs().sum() == 0  # CLS is not read
    assert all(parameter.grad is None for parameter in [*layers.model.parameters(), *teacher.parameters()])


def settings(world, output, **changes):
    asked = dict(align="position+layers", llava=str(world / "llava"))
    return run_settings(world, output, steps=6, warmup_steps=2, eval_every=6, micro_batch_size=4) | asked | changes


def test_a_run_logs_the_loss_and_resumes_to_the_bit(world, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    bootstrap(BootstrapConfig.of(**settings(world, whole, keep_checkpoints=9)))
    shutil.copytree(whole, cut)
    for path in sorted((cut / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    (cut / "results.json").unlink()
    bootstrap(BootstrapConfig.of(**settings(world, cut, resume=True)))
    for name in ("log.jsonl", "encoder/model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    line = json.loads((whole / "log.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(1 - line["cosine"] + line["position"] + line["layers"], abs=1e-5)
    assert 0.5 < line["layers"] < 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(llava=None), "`align` layers needs `llava`, a LLaVA on this teacher"),
        (dict(questions="mini"), "`questions` has no use without `align` llm"),
        (dict(align="set"), "`llava` has no use without `align` llm or layers"),
        (dict(align_layer=-1), "reads layer -2, `align_layer` is -1"),
        (dict(micro_batch_size=1), "`align` layers compares pictures: raise `micro_batch_size` to 2"),
    ],
)
def test_bad_input_is_one_sentence(world, tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "run", **changes)))
