"""ScienceQA's files: the published layout, tables, predictions."""

import json

import pytest
from datasets import Dataset, Features, Image, Sequence, Value
from tiny_scienceqa import write_scienceqa

from sf_llava.data.images import CorruptImageError
from sf_llava.data.scienceqa import ask, explain, open_scienceqa, read_predictions, shuffle_images


def test_the_published_layout_is_read_in_its_order(tmp_path):
    data = open_scienceqa(str(write_scienceqa(tmp_path)))
    assert [problem.id for problem in data.problems] == [str(number) for number in range(100, 111)]
    first, second = data.problems[:2]
    assert first.has_image and not second.has_image and second.grade == 2 and second.subject == "social science"
    assert data.load_image(first).size == (40, 40) and data.load_image(first).mode == "RGB"
    assert [problem.id for problem in open_scienceqa(str(tmp_path), "train").problems] == ["111"]


def test_questions_and_answers_are_worded_as_llava_does(tmp_path):
    problems = open_scienceqa(str(write_scienceqa(tmp_path))).problems
    assert ask(problems[0]) == "what is ?\nContext: the mat is red\nOptions: (A) cat (B) dog"
    assert ask(problems[1]) == "what is red blue ?\nContext: N/A\nOptions: (A) cat (B) dog (C) mat"
    assert explain(problems[1]) == "a cat is on the mat the answer The answer is B."


def test_a_parquet_table_holds_the_same_problems_and_pictures(tmp_path):
    data = open_scienceqa(str(write_scienceqa(tmp_path)))
    texts = ("question", "hint", "grade", "subject", "lecture", "solution")
    features = dict.fromkeys(texts, Value("string"))
    features |= dict(choices=Sequence(Value("string")), answer=Value("int8"))
    raw = json.loads((tmp_path / "problems.json").read_text())
    rows = [{name: raw[problem.id][name] for name in features} for problem in data.problems]
    for row, problem in zip(rows, data.problems, strict=True):
        path = tmp_path / "images" / "test" / problem.id / "image.png"
        row["image"] = {"bytes": path.read_bytes(), "path": None} if problem.has_image else None
    table = Dataset.from_list(rows, features=Features(features | {"image": Image()}))
    table.to_parquet(tmp_path / "test.parquet")
    again = open_scienceqa(f"parquet:{tmp_path / 'test.parquet'}")
    assert [problem.id for problem in again.problems] == [str(number) for number in range(11)]
    for ours, theirs in zip(again.problems, data.problems, strict=True):
        assert ask(ours) == ask(theirs) and (ours.has_image, ours.grade) == (theirs.has_image, theirs.grade)
    assert again.load_image(again.problems[2]).tobytes() == data.load_image(data.problems[2]).tobytes()


def test_shuffled_images_are_never_ones_own(tmp_path):
    problems = open_scienceqa(str(write_scienceqa(tmp_path))).problems
    shuffled = shuffle_images(problems, seed=0)
    pictured = {problem.id for problem in problems if problem.has_image}
    assert shuffled.keys() == pictured == {other.id for other in shuffled.values()}
    assert all(id != other.id for id, other in shuffled.items())
    assert shuffled == shuffle_images(problems, seed=0)


def test_three_forms_of_predictions_are_read(tmp_path):
    lines = [dict(question_id="1", text="A", prompt="p"), dict(question_id=2, text="B")]
    lines.append(dict(question_id="1", text="C"))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "one.jsonl").write_text(json.dumps(lines[0]))
    (tmp_path / "result.json").write_text(json.dumps(dict(acc=50.0, results={"1": 2}, outputs={"1": "C", "2": "B"})))
    assert read_predictions(tmp_path / "a.jsonl") == read_predictions(tmp_path / "result.json") == {"1": "C", "2": "B"}
    assert read_predictions(tmp_path / "one.jsonl") == {"1": "A"}


def test_an_answer_may_hold_any_line_separator_of_unicode(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question_id": "1", "text": "A\u2028\u0085B"}\n', encoding="utf-8")
    assert read_predictions(tmp_path / "a.jsonl") == {"1": "A\u2028\u0085B"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"outputs": {"7": 3}}', "the output of 7 is no text"),
        (b'{"question_id": "1", "text": null}', "line 1 is no prediction with question_id and text"),
        (b"\xff\xfe\x00", "is no text file"),
    ],
)
def test_predictions_that_are_no_texts_are_refused(content, message, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json.* {message}"):
        read_predictions(tmp_path / "a.json")


def test_a_problem_that_is_in_a_split_twice_is_named(tmp_path):
    folder = write_scienceqa(tmp_path)
    splits = json.loads((folder / "pid_splits.json").read_text())
    splits["test"].append(splits["test"][0])
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    with pytest.raises(ValueError, match=r"problem 100 is in split test twice"):
        open_scienceqa(str(folder))


def test_what_is_broken_is_one_clear_sentence(tmp_path):
    folder = write_scienceqa(tmp_path / "data")
    with pytest.raises(ValueError, match=r"unknown split 'val'; .* has train, test"):
        open_scienceqa(str(folder), "val")
    with pytest.raises(ValueError, match=r"no ScienceQA data at '.*nowhere': expected the folder that holds"):
        open_scienceqa(str(tmp_path / "nowhere"))
    (tmp_path / "torn.jsonl").write_text('{"question_id": "1", "text": "A"}\n{"question_id": "2", "te')
    with pytest.raises(ValueError, match=r"torn.jsonl, line 2 is no prediction"):
        read_predictions(tmp_path / "torn.jsonl")
    data = open_scienceqa(str(folder))
    (folder / "images" / "test" / "100" / "image.png").unlink()
    with pytest.raises(CorruptImageError, match=r"image of problem 100: .*image.png: No such file"):
        data.load_image(data.problems[0])
    whole = (folder / "problems.json").read_text()
    (folder / "problems.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"problems.json is not valid JSON .* truncated"):
        open_scienceqa(str(folder))
    problems = json.loads(whole)
    (folder / "problems.json").write_text(json.dumps({id: problem for id, problem in problems.items() if id != "105"}))
    with pytest.raises(ValueError, match=r"1 of 11 problems of split test are not in .* \(the first: 105\)"):
        open_scienceqa(str(folder))
    (folder / "problems.json").write_text(json.dumps(problems | {"105": problems["105"] | {"answer": 7}}))
    with pytest.raises(ValueError, match=r"problem 105 of .* has 3 choices and the answer 7"):
        open_scienceqa(str(folder))
