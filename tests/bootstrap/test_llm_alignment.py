"""The alignment loss on a frozen LLM: the evaluation's prompts, the plain model's distributions, nothing else moves."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import run_settings, save_tiny_clip, save_world
from tiny_llava import save_llava
from tiny_scienceqa import write_scienceqa

from sf_llava.bootstrap.config import BootstrapConfig, StudentConfig
from sf_llava.bootstrap.objectives.llm import load_llm
from sf_llava.bootstrap.objectives.objective import Seen
from sf_llava.bootstrap.run import bootstrap
from sf_llava.bootstrap.student import make_student
from sf_llava.llava import encode_prompts, swap
from sf_llava.llava.loading import load_llava
from sf_llava.llava.positions import embed_in_place, weigh_latents
from sf_llava.mini.registration import made
from sf_llava.model.loading import load_encoder
from sf_llava.scienceqa.data import explain, open_scienceqa
from sf_llava.teachers import load_teacher


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny CLIP, a tiny LLaVA on it (and one that reads CLS too), questions with a train split, pictures."""
    path = save_world(tmp_path_factory.mktemp("world"), 40)
    save_llava(path / "llava", path / "clip")
    save_llava(path / "full", path / "clip", vision_feature_select_strategy="full")
    write_scienceqa(path / "data")
    ids = [str(number) for number in range(100, 112)]
    (path / "data" / "pid_splits.json").write_text(json.dumps(dict(train=ids[:8], test=ids[8:])))
    return path


@pytest.fixture(scope="module")
def teacher(world):
    return load_teacher(str(world / "clip"))


def load(world, teacher, name="llava", layer=-2):
    return load_llm(
        {"llm": 4.0}, str(world / name), str(world / "data"), teacher, layer, "eager", teacher.preprocessing
    )


def say(llm, student, teacher, indices):
    """The loss ``llm``."""
    embeds, rois = torch.zeros(len(student), 3), torch.zeros(len(student), student.shape[1] - 1, 4)
    seen = Seen(embeds, student, rois), Seen(embeds, teacher)
    return llm(*seen, torch.tensor(indices), torch.Generator())["llm"]


def make_encoder(world):
    """A student of the tiny CLIP with RoIs of its own."""
    torch.manual_seed(0)
    return make_student(StudentConfig(num_latents=5), load_teacher(str(world / "clip")), on_cpu=True).eval()


@pytest.mark.parametrize("name", ["llava", "full"])
def test_behind_the_teachers_tokens_the_llm_says_what_the_whole_model_says(world, teacher, name):
    llm = load(world, teacher, name)
    model, processor = load_llava(world / name)
    data = open_scienceqa(str(world / "data"), "train")
    problems = [problem for problem in data.problems if problem.has_image]
    assert [problem.id for problem in llm.questions.data.problems] == ["100", "102", "104", "106"]
    pixels = llm.pictures.pixel_values(range(4))
    with torch.no_grad():
        found = llm.next_tokens(teacher.tokens(pixels, -2), [llm.encode(index) for index in range(4)], llm.reading)
    expected = []
    for problem, image in zip(problems, pixels, strict=True):
        prompt = llm.answerer.prompt(problem, True)
        inputs = encode_prompts(processor, [prompt], [[data.load_image(problem)]])
        answer = processor.tokenizer(explain(problem), add_special_tokens=False).input_ids
        ids = torch.cat([inputs["input_ids"], torch.tensor([[*answer, 2]])], dim=1)
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=image[None]).logits[0]
        expected.append(logits[-len(answer) - 2 : -1].log_softmax(dim=-1))
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_many_questions_give_what_each_gives_alone(world, teacher, monkeypatch):
    llm = load(world, teacher)
    asked = [0, 3, 1, 2, 0]
    states = torch.randn(5, 7, 32, generator=torch.Generator().manual_seed(0))
    rois = torch.rand(5, 6, 4, generator=torch.Generator().manual_seed(1))
    conversations = [llm.encode(index) for index in asked]
    for reading in (llm.reading, replace(llm.reading, num_patches=16)):
        alone = [llm.next_tokens(states[k : k + 1], [conversations[k]], reading, rois[k : k + 1]) for k in range(5)]
        for rows in (2, 16):
            monkeypatch.setattr("sf_llava.bootstrap.objectives.llm.ROWS_AT_ONCE", rows)
            found = llm.next_tokens(states, conversations, reading, rois)
            torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "full"])
def test_placed_tokens_are_read_as_generate_reads_them(world, teacher, name):
    encoder = make_encoder(world)
    llm = load(world, teacher, name)
    model, processor = load_llava(world / name)
    swap(model, processor, encoder)
    pixels = llm.pictures.pixel_values((0, 1))
    with torch.no_grad():
        seen = encoder(pixels, output_hidden_states=-2)
        by_centre = replace(llm.reading, num_patches=teacher.num_patches)
        found = llm.next_tokens(seen.hidden_states[-2], [llm.encode(0), llm.encode(1)], by_centre, seen.rois[:, -1])
    expected = []
    for index in (0, 1):
        conversation = llm.encode(index)
        image = [processor.image_token_id] * (encoder.config.num_latents + (name == "full"))
        ids = torch.tensor([[*conversation.before, *image, *conversation.behind, *conversation.answer[:-1]]])
        inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels[index : index + 1])
        prompt = embed_in_place(model, inputs, teacher.num_patches)
        bias = math.log(teacher.num_patches / encoder.config.num_latents)
        with torch.no_grad(), weigh_latents(model, prompt.latents, bias):
            logits = model(inputs_embeds=prompt.inputs_embeds, position_ids=prompt.position_ids).logits[0]
        expected.append(logits[-len(conversation.answer) :].log_softmax(dim=-1))
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_the_loss_is_the_divergence_of_both_distributions_and_zero_for_the_teachers_tokens(world, teacher):
    llm = load(world, teacher)
    pixels = llm.pictures.pixel_values((2, 0))
    tokens = teacher.tokens(pixels, -2)
    assert say(llm, tokens, tokens, [2, 0]).item() == pytest.approx(0, abs=1e-7)
    student = tokens[:, :5] + torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    conversations = [llm.encode(2), llm.encode(0)]
    with torch.no_grad():
        p, q = (llm.next_tokens(t, conversations, llm.reading).double() for t in (tokens, student))
    expected = sum((row_p.exp() * (row_p - row_q)).sum() for row_p, row_q in zip(p, q, strict=True)) / len(p)
    assert len(p) == sum(len(conversation.answer) for conversation in conversations)
    assert say(llm, student, tokens, [2, 0]).item() == pytest.approx(expected.item(), rel=1e-4) and expected > 0


def test_gradient_flows_through_the_frozen_llm_into_the_student_alone(world, teacher):
    llm = load(world, teacher)
    tokens = teacher.tokens(torch.randn(2, 3, 32, 32), -2)
    student = torch.randn(2, 5, 32, requires_grad=True)
    llm.model.train(False)
    say(llm, student, tokens, [0, 1]).backward()
    assert student.grad[:, 1:].abs().sum() > 0 and student.grad[:, 0].abs().sum() == 0  # CLS is not read
    assert all(parameter.grad is None for parameter in [*llm.model.parameters(), *teacher.parameters()])


def test_the_objective_trains_a_student_in_a_loop_of_ones_own(world, teacher):
    student, llm = make_encoder(world).train(), load(world, teacher)
    llm.weights = {"llm": 1.0, "placed": 1.0}
    indices = torch.tensor([0, 2])
    pixels = llm.pictures.pixel_values(indices.tolist())
    taught = Seen(*teacher.embeds_and_tokens(pixels, -2))
    optimizer = torch.optim.Adam((p for p in student.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for step in range(6):
        said = Seen.by_student(student(pixels, output_hidden_states=(-2, -1)), layer=-2)
        terms = llm(said, taught, indices, torch.Generator().manual_seed(step))
        loss = sum(weight * terms[name] for name, weight in llm.weights.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def settings(world, output, **changes):
    asked = dict(align="set+llm+placed=1", llava=str(world / "llava"), questions=str(world / "data"), llm_batch_size=4)
    return run_settings(world, output, steps=6, warmup_steps=2, eval_every=6, micro_batch_size=4) | asked | changes


def test_a_run_logs_the_loss_and_resumes_to_the_bit(world, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    kept = dict(teacher_cache=str(tmp_path / "cache"))  # what the first run asks its teacher, the second one reads
    bootstrap(BootstrapConfig.of(**settings(world, whole, keep_checkpoints=9, **kept)))
    assert len(list((tmp_path / "cache").glob("*.rows"))) == 2  # of images and of questions' pictures
    shutil.copytree(whole, cut)
    for path in sorted((cut / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    (cut / "results.json").unlink()
    bootstrap(BootstrapConfig.of(**settings(world, cut, resume=True, **kept)))
    for name in ("log.jsonl", "encoder/model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    line = json.loads((whole / "log.jsonl").read_text().splitlines()[0])
    parts = 1 - line["cosine"] + 0.3 * line["set"] + 4 * line["llm"] + line["placed"]
    assert line["loss"] == pytest.approx(parts, abs=1e-5) and line["placed"] != line["llm"]
    assert "questions `" in (whole / "encoder" / "README.md").read_text()
    student, teacher = load_encoder(whole), load_teacher(str(world / "clip"))
    assert torch.equal(student.cortex[1].mlp.fc1.weight, teacher.block_state_dict(2)["mlp.fc1.weight"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(llava="/nowhere"), "no LLaVA at /nowhere"),
        (dict(questions="/nowhere"), "no ScienceQA data at '/nowhere'"),
        (dict(align_layer=-1), "reads layer -2, `align_layer` is -1"),
        (dict(llm_batch_size=3), "3 images or questions a step have no 1 x 2 equal parts"),
    ],
)
def test_bad_input_is_one_sentence(world, tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "run", **changes)))


@pytest.mark.parametrize("vision", [dict(seed=1), dict(image_size=48)])
def test_a_llava_on_another_tower_is_refused(world, tmp_path, vision):
    other = load_teacher(str(save_tiny_clip(tmp_path / "other", **vision)))
    with pytest.raises(ValueError, match=r"is not the teacher .*other \(its tokens differ\): name"):
        load(world, other)


def test_the_mini_llava_is_asked_for_where_it_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"the mini LLaVA is not in .*scripts/train_mini\.py llava"):
        made(tmp_path, "LLaVA", "llava")
