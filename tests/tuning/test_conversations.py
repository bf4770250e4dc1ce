"""Conversations from LLaVA's JSON and from questions: what is used, what is left out and why."""

import json

import pytest
from tiny_scienceqa import write_scienceqa
from tuning_fixtures import write_conversations

from sf_llava.data.images import CorruptImageError
from sf_llava.tuning.conversations import open_data


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


BROKEN = [
    (7, "no object with conversations"),
    ({"id": "a", "image": "0.png"}, "no object with conversations"),
    ({"image": "0.png", "conversations": []}, "no turns of human and gpt"),
    ({"image": "0.png", "conversations": said("<image>\nwhat ?")}, "no turns of human and gpt"),
    ({"image": "0.png", "conversations": said("<image>\nwhat ?", "a cat")[::-1]}, "no turns of human and gpt"),
    ({"image": "0.png", "conversations": [{"from": "human", "value": 3}] * 2}, "no turns of human and gpt"),
    ({"image": "no.png", "conversations": said("<image>\nwhat ?", "a cat")}, "the picture is missing"),
    ({"image": "0.png", "conversations": said("what ?", "a cat")}, "a picture but no <image>"),
    ({"image": "0.png", "conversations": said("<image> <image> ?", "a cat")}, "more than one picture"),
    ({"image": ["0.png", "1.png"], "conversations": said("<image>?", "a cat")}, "more than one picture"),
    ({"conversations": said("<image>\nwhat ?", "a cat")}, "<image> but no picture named"),
    ({"conversations": said("what ?", "a cat")}, "without a picture"),
    ({"image": "0.png", "conversations": said("<image>\n", "a cat")}, "an empty text"),
    ({"image": "0.png", "conversations": said("<image>\nwhat ?", " ")}, "an empty text"),
]


def test_broken_entries_are_left_out_counted_and_named(tmp_path):
    file, images = write_conversations(tmp_path, 12)
    whole = json.loads(file.read_text())
    file.write_text(json.dumps([entry for entry, _ in BROKEN] + whole))
    data = open_data(str(file), str(images), "test", 3, seed=0)
    assert len(data.train) == 9 and len(data.held_out) == 3 and data.questions is None
    assert {one.id for one in (*data.train, *data.held_out)} == {
        f"entry {len(BROKEN) + number + 1} ({number})" for number in range(12)
    }
    assert sum(map(len, data.left_out.values())) == len(BROKEN)
    for number, (_, reason) in enumerate(BROKEN, 1):
        (names,) = (names for known, names in data.left_out.items() if known.startswith(reason))
        assert any(name.split(" (")[0] == f"entry {number}" for name in names), reason
    assert "left out, the picture is missing: 1 (the first: entry 7)" in data.describe()


def test_turns_come_without_the_picture_s_mark_and_held_out_ones_are_drawn_by_seed(tmp_path):
    file, images = write_conversations(tmp_path, 30)
    data = open_data(str(file), str(images), "test", None, seed=0)
    assert data.train[0].turns[0] == "what is in the image ?" and data.train[0].load().size == (48, 40)
    assert len(data.held_out) == 3  # a tenth
    again, other = (open_data(str(file), str(images), "test", None, seed=seed) for seed in (0, 1))
    assert again.held_out == data.held_out != other.held_out


def test_questions_bring_their_pictures_and_choices(tmp_path):
    data = open_data("mini:40", None, "test", 7, seed=0)
    assert len(data.train) == 20 and len(data.held_out) == len(data.questions.problems) == 7
    assert [one.id for one in data.held_out] == [problem.id for problem in data.questions.problems]
    assert data.train[0].turns[1].endswith(".") and data.train[0].load().size == (64, 64)
    assert len(data.left_out["without a picture"]) == 20
    folder = write_scienceqa(tmp_path)
    with pytest.raises(ValueError, match=r"no question of .*, split train, has a picture: there is nothing to tune on"):
        open_data(str(folder), None, "test", None, seed=0)


@pytest.mark.parametrize(
    ("content", "images", "held_out", "message"),
    [
        (None, "images", None, "no file .*expected conversations in LLaVA's JSON"),
        ("[]", "nowhere", None, "no folder .*expected the pictures"),
        ("[]", None, None, "say in `images` which folder"),
        ("{}", "images", None, "holds no list: expected LLaVA's JSON"),
        ("[]", "images", None, "0 of 0 entries .* can be used .it is empty."),
        ("[3, 4]", "images", None, "0 of 2 entries .* can be used .no object with conversations: 2."),
        ("whole", "images", 12, "`held_out` 12 leaves nothing of the 12 usable entries"),
    ],
)
def test_data_that_cannot_be_used_are_one_sentence(tmp_path, content, images, held_out, message):
    file, _ = write_conversations(tmp_path)
    if content is None:
        file.unlink()
    elif content != "whole":
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        open_data(str(file), images and str(tmp_path / images), "test", held_out, seed=0)


def test_a_damaged_picture_is_named(tmp_path):
    file, images = write_conversations(tmp_path)
    for path in images.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    data = open_data(str(file), str(images), "test", 2, seed=0)
    with pytest.raises(CorruptImageError, match=r"the picture of entry \d+ \(\d+\) of .*data.json, .*png"):
        data.train[0].load()
