"""Questions about photographs, and a LLaVA around a language model that is there already."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import CLIPImageProcessorPil, CLIPModel, LlamaConfig, LlamaForCausalLM

from sf_llava.data import LabelledImages
from sf_llava.data.folder import open_images
from sf_llava.llava.loading import load_llava
from sf_llava.mini import MINI_CLIP_DIR
from sf_llava.mini.training import photo_llava, photo_questions
from sf_llava.mini.training.llava_model import build_tokenizer
from sf_llava.retrieval.pairs import CaptionedImages
from sf_llava.scienceqa.data import ask, explain, open_scienceqa
from sf_llava.tuning.recipe import Recipe

CAPTIONS = ["a dog runs .", "A dog  is running", "two cats sleep", "cats on a bed.", "a red ball", "the ball is red"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(6):
        noise = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return open_images(str(folder))


@pytest.fixture(scope="module")
def data(pictures, tmp_path_factory):
    captioned = CaptionedImages("pets", pictures, CAPTIONS * 2, [row // 2 for row in range(12)])
    labelled = LabelledImages(pictures, [0, 1, 2, 3, 4, 0], ["church", "golf_ball", "gas pump", "tench, fish", "horn"])
    asked = photo_questions.AskedImages(
        pictures,
        [["how many cups are there", "what is on the table"]] * 6,
        [[str(row), f"cell_phone, cup {row}"] for row in range(6)],
    )
    sets = photo_questions.gather({"train": captioned}, {"train": labelled, "test": labelled}, {"test": asked}, seed=4)
    output = tmp_path_factory.mktemp("questions") / "questions"
    assert photo_questions.write_questions(sets, output, seed=4) == {"train": 18, "test": 18}
    return output


def test_questions_have_one_right_answer_of_their_picture(data, pictures):
    train, test = open_scienceqa(str(data), "train"), open_scienceqa(str(data), "test")
    kinds = {problem.id.rpartition("-")[2] for problem in [*train.problems, *test.problems]}
    assert kinds == {"caption", "class", "asked"}
    captions = [{photo_questions.sentence(text) for text in (CAPTIONS * 2)[2 * row : 2 * row + 2]} for row in range(6)]
    for problem in train.problems:
        picture = int(problem.id.split("-")[2])
        assert len(set(problem.choices)) == 4
        if problem.id.endswith("-caption"):
            right = [choice for choice in problem.choices if choice in captions[picture]]
            assert problem.choices[problem.answer] in right and explain(problem).startswith(
                problem.choices[problem.answer]
            )
        assert np.array_equal(train.load_image(problem), pictures.load(picture))
    answers = {problem.answer for problem in train.problems}
    assert len(answers) > 2  # the right one stands anywhere
    (first,) = [problem for problem in test.problems if problem.id.startswith("test-asked-3-6-")]
    assert first.question == "How many cups are there?" and all(choice.isdecimal() for choice in first.choices)
    words = next(problem for problem in test.problems if problem.id.startswith("test-asked-3-7-"))
    assert words.choices[words.answer] == "cell phone, cup 3"
    assert explain(words).startswith("Cell phone, cup 3. The answer is")


def test_the_same_seed_asks_the_same_and_nothing_is_written_over(data, pictures):
    labelled = LabelledImages(pictures, [0, 1, 2, 3, 4, 0], ["a", "b", "c", "d", "e"])

    def drawn(seed):
        sets = photo_questions.gather({}, {"train": labelled}, {}, seed)
        return [(draft.answer, draft.wrong) for draft in sets["train"]["class"][1]]

    assert drawn(1) == drawn(1) != drawn(2)
    with pytest.raises(ValueError, match="is there already"):
        photo_questions.write_questions({}, data, 0)
    with pytest.raises(ValueError, match="3 different answers are too few for 4 choices"):
        list(
            photo_questions.ask_for_classes(LabelledImages(pictures, [0] * 6, ["a", "b", "c"]), np.random.default_rng())
        )


def test_free_questions_are_read_from_parquet(tmp_path, pictures):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra 'data')")
    rows = {"image": [{"bytes": pictures.read(0), "path": None}], "questions": [["what is it"]], "answers": [["a cat"]]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "asked.parquet")
    asked = photo_questions.open_asked(str(tmp_path / "asked.parquet"))
    assert asked.questions[0] == ["what is it"] and asked.answers[0] == ["a cat"]
    assert np.array_equal(asked.source.load(0), pictures.load(0))
    datasets.Dataset.from_dict(rows | {"answers": [[]]}).to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(ValueError, match=r"row 0 of .* has 1 questions and 0 answers"):
        photo_questions.open_asked(str(tmp_path / "odd.parquet"))
    datasets.Dataset.from_dict({"image": rows["image"]}).to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) questions, answers"):
        photo_questions.open_asked(str(tmp_path / "bare.parquet"))


@pytest.fixture(scope="module")
def llm(data, tmp_path_factory):
    """Directory of a random Llama that knows the words, with ChatML's marks."""
    problems = [*open_scienceqa(str(data), "train").problems, *open_scienceqa(str(data), "test").problems]
    texts = [text for problem in problems for text in (ask(problem), explain(problem))]
    tokenizer = build_tokenizer([*texts, "user assistant Describe the picture."], "none")
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in ("<|im_start|>", "<|im_end|>")])
    tokenizer.eos_token = "<|im_end|>"
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, max_position_embeddings=512, tie_word_embeddings=True)  # fmt: skip
    directory = tmp_path_factory.mktemp("llm")
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_no_answer_can_be_read_off_an_earlier_one(data):
    train = open_scienceqa(str(data), "train")
    described = photo_llava.converse(train, described_alone=True)
    assert len(described) == 12 and all(len(one.turns) == 2 for one in described)
    assert described[0].turns[0] == photo_llava.DESCRIBE and described[0].turns[1] in map(
        photo_questions.sentence, CAPTIONS[:2]
    )
    whole = photo_llava.converse(train, described_alone=False)
    assert len({one.id for one in whole}) == len(whole) == 6 * 3 + 6  # a description, two questions; a class
    assert all(len(one.turns) == 2 for one in whole)
    assert [one.turns[0] == photo_llava.DESCRIBE for one in whole[:6]] == [True, False, False] * 2
    assert whole[1].turns == (ask(train.problems[0]), explain(train.problems[0]))
    asked = photo_llava.converse(open_scienceqa(str(data), "test"), described_alone=False)
    assert [len(one.turns) for one in asked if "-asked-" in one.id] == [4] * 6  # two questions about one scene
    many = train.problems[0]
    several = dataclasses.replace(
        train, problems=[dataclasses.replace(many, id=f"train-a-0-{row}-asked") for row in range(7)]
    )
    assert [len(one.turns) for one in photo_llava.converse(several, described_alone=False)] == [6, 6, 2]


def test_the_projector_begins_with_the_regression_of_words_on_patches(llm):
    torch.manual_seed(0)
    language, tokenizer = photo_llava.load_llm(str(llm))
    tower = CLIPModel.from_pretrained(MINI_CLIP_DIR, dtype=torch.float32).vision_model
    model, processor = photo_llava.build_llava(
        language, tokenizer, tower, CLIPImageProcessorPil.from_pretrained(MINI_CLIP_DIR)
    )
    true = torch.randn(128, 64)
    features = torch.randn(400, 1, 128) + torch.randn(400, 64, 128) * 0.1
    words = features.mean(dim=1) @ true + 3
    photo_llava.fit_projector(model, features, words)
    found = model.model.multi_modal_projector(features).flatten(0, 1)
    wanted = (features @ true).flatten(0, 1)
    centred = found - found.mean(dim=0)
    cosine = torch.nn.functional.cosine_similarity(centred, wanted - wanted.mean(dim=0)).mean()
    assert cosine > 0.95
    assert centred.std().item() == pytest.approx(model.get_input_embeddings().weight.std().item(), rel=0.1)
    torch.testing.assert_close(found.mean(dim=0), words.mean(dim=0), rtol=0, atol=1e-3)
    assert processor.image_token_id == model.config.image_token_index


class Stopped(Exception):
    pass


def test_it_trains_goes_on_to_the_bit_and_is_an_ordinary_directory(llm, data, tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="peft is not installed (extra 'train')")
    from safetensors.torch import load_file

    first = Recipe(train="projector", steps=2, batch_size=4, save_steps=1)
    second = Recipe(train="projector+llm", steps=2, batch_size=4, save_steps=1)
    train = open_scienceqa(str(data), "train")

    def settings(name):
        return photo_llava.PhotoLlava(MINI_CLIP_DIR, str(llm), tmp_path / name, first, second, on_cpu=True)

    told = photo_llava.train_photo_llava(settings("whole"), train)
    assert (
        told["first"]["steps"] == told["second"]["steps"] == 2 and told["first"]["trained"] < told["second"]["trained"]
    )
    tune, calls = photo_llava.tune, []

    def stop_at_second(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise Stopped
        return tune(*args, **options)

    monkeypatch.setattr(photo_llava, "tune", stop_at_second)
    with pytest.raises(Stopped):
        photo_llava.train_photo_llava(settings("stopped"), train)
    photo_llava.train_photo_llava(settings("stopped"), train)
    weights = [load_file(tmp_path / name / "llava" / "model.safetensors") for name in ("whole", "stopped")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    model, processor = load_llava(tmp_path / "whole" / "llava")
    problem = train.problems[0]
    content = [{"type": "image"}, {"type": "text", "text": ask(problem)}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=[train.load_image(problem)], return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 64
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 3

    nothing = open_scienceqa(str(data), "test")
    with pytest.raises(ValueError, match="asks for a caption"):
        photo_llava.train_photo_llava(settings("nothing"), nothing)


def test_several_gguf_files_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.gguf").touch()
    with pytest.raises(ValueError, match="holds 2 GGUF files"):
        photo_llava.load_llm(str(tmp_path))
    assert len(os.listdir(tmp_path)) == 2
