"""The mini LLaVA's training: the evaluation's very prompts, packed without a trace, saved as an ordinary directory."""

from dataclasses import replace

import pytest
import torch

from sf_llava.llava import encode_prompts
from sf_llava.llava.conversations import CONVERSATIONS, chat_template
from sf_llava.llava.loading import load_llava
from sf_llava.mini.questions.sets import open_questions
from sf_llava.mini.training import llava_training
from sf_llava.mini.training.llava_model import build_llava, build_processor, build_tokenizer, fit_projector, save_llava
from sf_llava.mini.training.llava_training import RECIPE, Packer, build_head, draw_pool, make_batch, training_losses
from sf_llava.scienceqa.data import ask, explain
from sf_llava.scienceqa.run import Answerer, Generation


@pytest.fixture(scope="module")
def processor():
    tokenizer = build_tokenizer(llava_training.sample_texts(400), CONVERSATIONS["vicuna_v1"])
    return build_processor(tokenizer, chat_template("vicuna_v1"))


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    return build_llava(processor.tokenizer, width=64, layers=2)


@pytest.fixture(scope="module")
def pool(model):
    pool = draw_pool(model, 8)
    fit_projector(model, pool.features)
    return pool


def test_training_sees_the_token_ids_that_the_evaluation_gives(processor):
    data = open_questions("test", 60)
    answerer, packer = Answerer(None, processor, Generation()), Packer(processor)
    for problem in data.problems:
        images = [[data.load_image(problem)] if problem.has_image else []]
        wanted = encode_prompts(processor, [answerer.prompt(problem, problem.has_image)], images).input_ids[0].tolist()
        ids = packer.pack([(problem.has_image, [(ask(problem), explain(problem))])], None).input_ids[0].tolist()
        assert ids[: len(wanted)] == wanted and processor.tokenizer.unk_token_id not in ids
        assert processor.tokenizer.decode(ids[len(wanted) :], skip_special_tokens=True) == explain(problem)


def test_packed_questions_cost_what_they_cost_alone(processor, model, pool):
    packer = Packer(processor)
    pairs = [("Which shape is red?", "The star."), ("How large is the star?", "The star is small.")]
    features = pool.features[:1].float()
    together = packer.pack([(True, pairs)], features)
    alone = [packer.pack([(True, [pair])], features) for pair in pairs]
    with torch.no_grad():
        head = build_head(model)
        losses = [training_losses(model, head, batch)["answer"].item() for batch in (together, *alone)]
    weights = [1 + 4 + 2, 3 + 4 + 2]  # "The star. <end>", "The star is small. <end>": a last word counts four times
    mean = sum(weight * loss for weight, loss in zip(weights, losses[1:], strict=True)) / sum(weights)
    assert losses[0] == pytest.approx(mean, abs=0.02)


def test_a_batch_is_a_function_of_its_step_and_asks_about_its_pictures(processor, pool):
    packer, config = Packer(processor), replace(RECIPE, batch_size=4, steps=100)
    first, again, later = (make_batch(step, packer, pool, config) for step in (20, 20, 22))
    assert torch.equal(first.input_ids, again.input_ids) and torch.equal(first.features, pool.features[4:].float())
    assert torch.equal(first.features, later.features)  # eight pictures: the second visit
    assert not torch.equal(first.input_ids[:4, :200], later.input_ids[:4, :200])
    image_token = processor.image_token_id
    assert ((first.input_ids == image_token).sum(dim=1) == torch.tensor([64] * 4 + [0] * 6)).all()


def test_the_training_starts_with_the_letters_of_options(processor, pool):
    packer, config = Packer(processor), replace(RECIPE, batch_size=4, steps=100)
    batch = make_batch(5, packer, pool, config)
    tokens = processor.tokenizer.convert_ids_to_tokens
    asked = 0
    for ids, segments, targets in zip(batch.input_ids, batch.segments, batch.targets, strict=True):
        for place in (targets != -100).nonzero()[:, 0].tolist():
            words = tokens(ids[segments == segments[place]].tolist())
            option, phrase = tokens(ids[place - 1 : place + 1].tolist())
            letter = tokens([targets[place].item()])[0]
            assert phrase == ". The answer is" and words[words.index(f"({letter})") + 1] == option
            asked += 1
    assert asked == 4 * 6 * 4  # rows, questions a row, letters a question
    assert batch.features.shape[0] == 0 and not (batch.input_ids == processor.image_token_id).any()


def test_the_head_names_the_four_tokens_before_within_its_question(processor, model, pool):
    batch = Packer(processor).pack([(True, [("Is it red?", "A."), ("How large?", "B.")])], pool.features[:1].float())
    ids, segments = batch.input_ids[0].tolist(), batch.segments[0].tolist()
    inside = [i for i in range(len(ids)) if segments[i] > 0]

    class Oracle(torch.nn.Module):
        """Knows what stands before each token of a question, and nothing of what it must not be asked."""

        def forward(self, states):
            assert len(states) == len(inside)
            named = torch.full((len(inside), 4, len(processor.tokenizer)), torch.nan)
            for row, i in enumerate(inside):
                for back in range(1, 5):
                    if segments[i - back] == segments[i]:
                        named[row, back - 1] = torch.arange(len(processor.tokenizer)).eq(ids[i - back]) * 100.0
            return named

    assert training_losses(model, Oracle(), batch)["previous"].item() < 1e-6


def test_the_projector_starts_with_pictures_as_large_as_words(model, pool):
    with torch.no_grad():
        pictures = model.model.multi_modal_projector(pool.features.float())
    words = model.get_input_embeddings().weight
    assert 0.5 < pictures.std() / words.std() < 2


def test_only_llm_and_projector_learn_and_the_result_is_an_ordinary_directory(processor, model, pool, tmp_path):
    config = replace(RECIPE, batch_size=2, steps=2)
    training_losses(model, build_head(model), make_batch(1, Packer(processor), pool, config))["loss"].backward()
    moved = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert moved == {"language_model", "multi_modal_projector", "weight"}  # "lm_head.weight"
    model.zero_grad(set_to_none=True)
    save_llava(model, processor, tmp_path)
    loaded, its_processor = load_llava(tmp_path)
    for (name, saved), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(saved.half().float(), other), name
    data = open_questions("test", 4)
    answerer = Answerer(loaded, its_processor, Generation(max_new_tokens=4))
    images = [[data.load_image(problem)] if problem.has_image else [] for problem in data.problems]
    texts = answerer.answer([answerer.prompt(p, p.has_image) for p in data.problems], images, 0)
    assert len(texts) == 4 and all("<image>" not in text for text in texts)
