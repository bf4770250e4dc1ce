"""ScienceQA's files: the published layout, tables, predictions."""

import json

import pytest
from datasets import Dataset, Features, Image, Sequence, Value
from tiny_scienceqa import write_scienceqa

from sf_llava.data.images import CorruptImageError
from sf_llava.scienceqa.data import ask, explain, open_scienceqa, read_predictions, shuffle_images


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


ENTRY = '{"question_id": "1", "text": "A"}'


@pytest.mark.parametrize(
    "text",
    [
        f"[{ENTRY}]",
        f"[\n  {ENTRY}\n]",
        '{"1": "A"}',
        '{"question_id": 1, "text": "A"}',
        '{"question_id": 1.0, "text": "A"}',
        f"\ufeff{ENTRY}\n",
        f"{ENTRY}\r\n\r\n",
        f"  {ENTRY}  \n \n",
        f"{ENTRY}\n{ENTRY}\n",
    ],
)
def test_predictions_are_read_in_every_usual_form(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text.encode())
    assert read_predictions(tmp_path / "a.json") == {"1": "A"}
    (tmp_path / "b.json").write_bytes(text.removeprefix("\ufeff").encode("utf-16"))
    assert read_predictions(tmp_path / "b.json") == {"1": "A"}


def test_different_answers_to_one_question_are_told(tmp_path):
    (tmp_path / "a.jsonl").write_text(f"{ENTRY}\n{ENTRY.replace('A', 'B')}\n")
    with pytest.warns(UserWarning, match=r"answers 1 question\(s\) more than once and differently \(the first: 1\)"):
        assert read_predictions(tmp_path / "a.jsonl") == {"1": "B"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1}]', "entry 1 is no prediction with question_id and text"),
        ("[1]", "entry 1 is no prediction"),
        ('{"1": 0}', "the output of 1 is no text"),
        ("5", "line 1 is no prediction"),
        (f"{ENTRY}\nhello\n{ENTRY}", "line 2 is no prediction with question_id and text: 'hello'"),
        ('{"question_id": null, "text": "A"}', "line 1 has no id"),
        ("[" * 100_000, "line 1 is no prediction"),
    ],
)
def test_predictions_of_another_form_are_refused_with_the_forms(text, message, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_predictions(tmp_path / "a.json")
    assert "JSON lines" in str(error.value) or "expected a text or a whole number" in str(error.value)


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


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ("[]", "pid_splits.json holds no JSON object: expected lists of ids by the names of splits"),
        ('{"test": "100"}', "split test of .* is no list of ids"),
        ('{"test": [null]}', "entry 1 of split test of .* has no id"),
    ],
)
def test_a_file_of_splits_of_another_form_is_one_sentence(splits, message, tmp_path):
    folder = write_scienceqa(tmp_path)
    (folder / "pid_splits.json").write_text(splits)
    with pytest.raises(ValueError, match=message):
        open_scienceqa(str(folder))


def test_ids_may_be_numbers_and_files_may_begin_with_a_mark(tmp_path):
    folder = write_scienceqa(tmp_path)
    (folder / "pid_splits.json").write_text('\ufeff{"test": [100, 101]}', encoding="utf-8")
    assert [problem.id for problem in open_scienceqa(str(folder)).problems] == ["100", "101"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": 5}, "problem 100 of .* has the image 5: expected the name of a file"),
        ({"image": "../../secret.png"}, "has the image '../../secret.png': expected the name of a file"),
        ({"image": "/dev/zero"}, "has the image '/dev/zero'"),
        ({"image": None, "img": "image.png"}, "problem 100 of .* has no 'image' but 'img'"),
    ],
)
def test_pictures_that_are_no_names_of_files_are_refused(change, message, tmp_path):
    folder = write_scienceqa(tmp_path)
    problems = json.loads((folder / "problems.json").read_text())
    problems["100"] |= change
    (folder / "problems.json").write_text(json.dumps(problems))
    with pytest.raises(ValueError, match=message):
        open_scienceqa(str(folder))
