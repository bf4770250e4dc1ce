"""Labels are on the answers alone, and the tokens are those of inference."""

import pytest
import torch
from PIL import Image
from tuning_fixtures import make_conversations, make_swapped, picture

from sf_llava import load_llava
from sf_llava.data.images import CorruptImageError
from sf_llava.llava.conversations import chat_template
from sf_llava.scienceqa.data import open_scienceqa
from sf_llava.scienceqa.run import Answerer, Generation
from sf_llava.tuning.conversations import Conversation, open_data
from sf_llava.tuning.encoding import IGNORED, Encoded, Encoder

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
    "{{ '<image>\n' if p.type == 'image' else p.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def talk(*turns: str) -> Conversation:
    return Conversation("entry 1", turns, lambda: picture(0))


def labelled(encoder: Encoder, conversation: Conversation) -> list[str]:
    """The labelled stretches, as text."""
    text, spans = encoder.write(conversation)
    return [text[start:end] for start, end in spans]


@pytest.fixture(scope="module")
def mini():
    return load_llava("mini")


def test_the_mini_llava_sees_the_tokens_that_it_is_asked_with(mini):
    model, processor = mini
    encoder = Encoder(processor)
    data = open_data("mini:60", None, "test", 10, seed=0)
    problems = {one.id: one for one in open_scienceqa("mini:60", "train").problems}
    for one in data.train:
        row = encoder.encode(one)
        prompt = Answerer(model, processor, Generation()).prompt(problems[one.id], has_image=True)
        asked = processor(images=one.load(), text=prompt, return_tensors="pt")
        count = asked["input_ids"].shape[1]
        assert torch.equal(row["input_ids"][:count], asked["input_ids"][0])
        assert torch.equal(row["pixel_values"], asked["pixel_values"])
        assert (row["labels"][:count] == IGNORED).all()
        said = row["labels"][count:]
        assert torch.equal(said, row["input_ids"][count:]) and said[-1] == processor.tokenizer.eos_token_id
        assert processor.tokenizer.decode(said, skip_special_tokens=True).split() == one.turns[1].split()


def test_every_answer_of_a_conversation_is_labelled_with_its_end(mini):
    encoder = Encoder(mini[1])
    turns = ("What is red ?", "The circle .", "And blue ?", "The square .")
    assert labelled(encoder, talk(*turns)) == [" The circle .</s>", " The square .</s>"]
    row = encoder.encode(talk(*turns))
    assert (row["labels"] == mini[1].tokenizer.eos_token_id).sum() == 2


def test_a_template_that_writes_no_end_gets_one(processor):
    encoder = Encoder(processor)  # the tiny template ends in a space
    assert labelled(encoder, make_conversations()[0:1][0]) == [" a cat</s>"]


@pytest.mark.parametrize("name", ["llava_v1", "vicuna_v1"])
def test_the_original_conversations_can_be_named(processor, name):
    encoder = Encoder(processor, name)
    assert encoder.template == chat_template(name)
    assert labelled(encoder, talk("what ?", "a cat", "and ?", "a dog")) == [" a cat</s>", " a dog</s>"]


def test_a_chat_of_other_marks_is_labelled_too(processor):
    processor.chat_template = CHATML
    encoder = Encoder(processor)
    spans = labelled(encoder, talk("what ?", "a cat", "and ?", "a dog"))
    assert spans == ["a cat<|im_end|>", "a dog<|im_end|></s>"]  # its tokenizer ends texts otherwise


def test_what_people_write_stands_for_no_token(processor):
    text, _ = Encoder(processor).write(talk("what is </s> in <image> ?", "a </s> cat"))
    assert text.count("</s>") == 1 and text.count("<image>") == 16


@pytest.mark.parametrize("template", ["{{ messages[0].content[1].text }}<image>", "USER: {{ messages | length }}"])
def test_a_template_that_does_not_word_turns_is_refused(processor, template):
    processor.chat_template = template
    with pytest.raises(ValueError, match="the chat template does not"):
        Encoder(processor).write(talk("what ?", "a cat"))


def test_no_template_is_one_sentence(processor):
    processor.chat_template = None
    with pytest.raises(ValueError, match="has no chat template: name one with `conversation`"):
        Encoder(processor)


def test_padding_is_behind_and_never_said_nor_read():
    model, processor = make_swapped()
    encoder = Encoder(processor)
    rows = [encoder.encode(one) for one in make_conversations(2)]
    batch = encoder.collate(rows)
    longest = max(len(row["input_ids"]) for row in rows)
    length = -(-longest // 16) * 16  # few lengths are few sizes for an allocator
    assert batch["input_ids"].shape == batch["labels"].shape == (2, length)
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    with torch.no_grad():
        for number, row in enumerate(rows):
            count = len(row["input_ids"])
            assert (batch["labels"][number, count:] == IGNORED).all()
            alone = model(input_ids=row["input_ids"][None], pixel_values=row["pixel_values"]).logits
            together = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
            torch.testing.assert_close(together[number, :count], alone[0], atol=1e-5, rtol=0)


def test_too_long_a_conversation_is_cut():
    _, processor = make_swapped()
    row = Encoder(processor, max_length=20).encode(make_conversations()[1])
    assert len(row["input_ids"]) == len(row["labels"]) == 20
    batch = Encoder(processor, max_length=20).collate([row])
    assert batch["input_ids"].shape == (1, 20)  # the LLM knows no more places


def test_the_next_conversation_stands_for_one_whose_picture_is_damaged(processor):
    def broken() -> Image.Image:
        raise CorruptImageError("the picture of entry 1 is torn")

    whole = make_conversations(3)
    rows = Encoded([whole[0], Conversation("entry 1", whole[1].turns, broken), whole[2]], Encoder(processor))
    with pytest.warns(UserWarning, match="the picture of entry 1 is torn; the next conversation takes its place"):
        assert torch.equal(rows[1]["input_ids"], rows[2]["input_ids"])
    with pytest.warns(UserWarning), pytest.raises(CorruptImageError, match="no picture of the conversations"):
        Encoded([Conversation("entry 1", whole[1].turns, broken)], Encoder(processor))[0]
