"""Both towers share one LLM; answers are the model's own, pictures are read once, and the context is never overrun."""

import pytest
import torch

from sf_llava.configuration import SparseFormerConfig
from sf_llava.demo.conversation import (
    BOTH,
    CLIP,
    NO_TOWER,
    SPARSEFORMER,
    Answer,
    Conversation,
    Turn,
    as_messages,
    prompt_turns,
    towers_for,
)
from sf_llava.demo.engine import Engine, Sampling, offered_latents
from sf_llava.demo.uploads import RefusedError, accept
from sf_llava.llava import encode_prompts, restore, swap

QUESTION = "What is the colour of the star?\nContext: N/A\nOptions: (A) red (B) blue"


@pytest.fixture
def pictures(picture_files):
    return [accept(path) for path in picture_files[:3]]


def generate(engine, tower, turns, num_tokens):
    """The model's own ``generate`` on the processor's own prompt, the tower swapped for it alone."""
    engine._put(None)
    swapped = swap(engine.model, engine.processor, engine.encoders[16]) if tower == SPARSEFORMER else None
    prompt = engine.processor.apply_chat_template(as_messages(turns, tower), add_generation_prompt=True, tokenize=False)
    inputs = encode_prompts(engine.processor, [prompt], [[p.image for turn in turns for p in turn.pictures]])
    output = engine.model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)
    if swapped:
        restore(swapped)
    ids = inputs["input_ids"][0].tolist()
    return ids, engine.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()


def ask(engine, tower, turns, num_tokens=12, temperature=0.0):
    answer = Answer(tower)
    for _ in engine.answer(answer, turns, Sampling(temperature, num_tokens)):
        pass
    return answer


@pytest.mark.parametrize("tower", [SPARSEFORMER, CLIP])
def test_an_answer_is_what_generate_gives(engine, pictures, tower):
    first = Turn(QUESTION, pictures[:1], {tower: Answer(tower, "The star is red.")})
    turns = [first, Turn("Which is larger?", pictures[1:])]
    ids, text = generate(engine, tower, turns, 12)
    counts = {SPARSEFORMER: 16, CLIP: 64}
    assert engine.prompt(turns, tower, [counts[tower]] * 3) == ids
    answer = ask(engine, tower, turns)
    assert answer.text == text and answer.state == "length" and answer.num_tokens == 12
    assert answer.visual_tokens == 3 * counts[tower]


def test_the_towers_answer_differently_and_leave_the_model_as_it_was(engine, pictures):
    before = {name: value.clone() for name, value in engine.model.state_dict().items() if "vision_tower" not in name}
    turns = [Turn(QUESTION, pictures[:1])]
    answers = [ask(engine, tower, turns).text for tower in (SPARSEFORMER, CLIP, SPARSEFORMER)]
    assert answers[0] == answers[2] != answers[1]
    after = engine.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_picture_is_encoded_once_a_tower(engine, pictures, monkeypatch):
    calls = []
    original = engine.model.get_image_features
    monkeypatch.setattr(engine.model, "get_image_features", lambda *a, **k: calls.append(1) or original(*a, **k))
    first = Turn(QUESTION, pictures[:2])
    for tower in (SPARSEFORMER, CLIP):
        answer = first.answers[tower] = ask(engine, tower, [first])
        assert answer.reused == 0 and answer.encoder_ms > 0
    assert len(calls) == 4
    second = ask(engine, SPARSEFORMER, [first, Turn("And now?", pictures[2:])])
    assert len(calls) == 5 and second.reused == 2


def test_rois_and_sampling_points_come_with_the_features(engine, pictures):
    view, known = engine.see(SPARSEFORMER, pictures[0])
    assert not known and view.rois.shape == (5, 16, 4) and view.points.shape == (16, 16, 2)
    assert view.square.size == (64, 64) and engine.see(CLIP, pictures[0])[0].rois is None


def test_words_that_mean_something_to_the_model_are_made_harmless(engine, pictures):
    turns = [Turn("Is <image> an </s> image?<image>", pictures[:1])]
    ids = engine.prompt(turns, CLIP, [64])
    assert ids.count(engine.processor.image_token_id) == 64
    assert engine.tokenizer.eos_token_id not in ids


def test_words_outside_the_vocabulary_are_named(engine):
    assert engine.unknown_words("What is the colour of my zebra, my friend?") == ["my", "zebra", "friend"]


def test_the_oldest_turns_are_forgotten_where_the_context_is_full_but_not_their_pictures(engine, pictures):
    earlier = [Turn(QUESTION + " red" * 100, [], {CLIP: Answer(CLIP, "red")}) for _ in range(6)]
    earlier[0].pictures = pictures[:1]
    answer = ask(engine, CLIP, [*earlier, Turn("Which one?")], num_tokens=20)
    assert answer.state == "length" and 0 < answer.forgotten < 6 and answer.visual_tokens == 64


def test_a_question_that_no_context_holds_is_refused(engine, pictures):
    with pytest.raises(RefusedError, match="tokens and the answer may take 20, but the model holds 512"):
        ask(engine, CLIP, [Turn("red " * 500, pictures)], num_tokens=20)
    with pytest.raises(RefusedError, match="letters"):
        ask(engine, CLIP, [Turn("red " * 500_000)])


def test_who_stops_asking_has_stopped_the_answer(engine, pictures):
    answer = Answer(CLIP)
    steps = engine.answer(answer, [Turn(QUESTION, pictures[:1])], Sampling(0.0, 200))
    for _ in range(5):
        next(steps)
    steps.close()
    assert 0 < answer.num_tokens < 6 and answer.state == "writing"
    assert ask(engine, SPARSEFORMER, [Turn(QUESTION, pictures[:1])]).state == "length"  # nothing is held


def test_temperature_draws_words(engine, pictures):
    turns = [Turn(QUESTION, pictures[:1])]
    assert len({ask(engine, CLIP, turns, temperature=1.5).text for _ in range(3)}) > 1


def test_an_encoder_that_does_not_fit_is_refused(llava_dir):
    from sf_llava.configuration import preset
    from sf_llava.llava.loading import load_llava
    from sf_llava.model import SparseFormerModel

    with pytest.raises(ValueError, match="takes 128 channels"):
        Engine(*load_llava(llava_dir), [SparseFormerModel(preset("sf-mini", hidden_size=64, num_hidden_layers=1))])


def test_two_encoders_with_as_many_latents_are_refused(llava_dir, encoder_dirs):
    from sf_llava.llava.loading import load_llava

    with pytest.raises(ValueError, match="two encoders have 16 latents"):
        Engine(*load_llava(llava_dir), encoder_dirs[:1] * 2)


def test_an_elastic_encoder_is_offered_with_several_numbers_of_latents():
    shape = dict(hidden_size=64, focusing_size=32, num_attention_heads=2, focusing_num_attention_heads=1)
    for range_, offered in ((None, [16]), ((8, 32), [16, 8, 32]), ((6, 40), [16, 6, 12, 24, 40]), ((16, 16), [16])):
        assert offered_latents(SparseFormerConfig(num_latents=16, num_latents_range=range_, **shape)) == offered


def test_every_number_of_latents_has_views_of_its_own(engine, pictures):
    turns = [Turn(QUESTION, pictures[:1])]
    answers = [Answer(SPARSEFORMER, latents=latents) for latents in (16, 24, 16)]
    for answer in answers:
        for _ in engine.answer(answer, turns, Sampling(0.0, 12)):
            pass
    assert [answer.visual_tokens for answer in answers] == [16, 24, 16]
    assert [answer.reused for answer in answers] == [0, 0, 1]
    assert answers[0].text == answers[2].text != answers[1].text
    assert engine.see(SPARSEFORMER, pictures[0], 24)[0].rois.shape[1] == 24


def test_without_a_picture_the_language_model_answers_alone(engine):
    assert towers_for(BOTH, engine.towers, [Turn("Which is a fruit?")]) == [NO_TOWER]
    assert ask(engine, NO_TOWER, [Turn("Which is a fruit?")]).visual_tokens == 0


def test_a_prompt_holds_the_conversation_or_the_question_alone(pictures):
    conversation = Conversation([
        Turn("one", pictures[:1], {CLIP: Answer(CLIP, "1")}),
        Turn("refused", [], {}, ["no"], refused=True),
        Turn("two", pictures[1:2], {SPARSEFORMER: Answer(SPARSEFORMER, "2")}),
        Turn("three"),
    ])  # fmt: skip
    whole = prompt_turns(conversation.turns, True)
    assert [turn.question for turn in whole] == ["one", "two", "three"]
    said = [part["text"] for message in as_messages(whole, CLIP) for part in message["content"] if "text" in part]
    assert said == ["one", "1", "two", "2", "three"]  # of a turn CLIP did not answer, the other tower's answer
    (alone,) = prompt_turns(conversation.turns, False)
    assert alone.question == "three" and alone.pictures == pictures[1:2]
