"""Tables of questions: the picture wherever it lies, files that differ, and what cannot be read in a sentence."""

import base64
import io

import pytest
from datasets import Dataset
from PIL import Image

from sf_llava.data.images import CorruptImageError
from sf_llava.scienceqa.data import ask, open_scienceqa


def encoded(size=(48, 40)):
    file = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(file, "PNG")
    return file.getvalue()


PNG = encoded()
CELL = {"bytes": PNG, "path": None}
ROW = {"question": "what ?", "choices": ["cat", "dog"], "answer": 1}


def table(path, *rows):
    Dataset.from_list(list(rows)).to_parquet(str(path))
    return f"parquet:{path}"


@pytest.mark.parametrize(
    "column",
    [
        {"img": CELL},
        {"images": [CELL]},
        {"images": [None, CELL]},
        {"image": [PNG]},
        {"picture": PNG},
        {"anything": CELL},
        {"image_path": "folder/picture.png"},
        {"source": "folder/picture.png"},
        {"pictures": ["folder/picture.png"]},
        {"image": {"bytes": None, "path": "folder/picture.png"}},
        {"image": base64.b64encode(PNG).decode()},
        {"image": "data:image/png;base64," + base64.b64encode(PNG).decode()},
        {"encoded": base64.b64encode(PNG).decode()},
        {"image": {"bytes": None, "path": None}, "img": CELL},
        {"image": None, "bytes": PNG},
        {"image": "", "img": CELL},
    ],
    ids=lambda column: ",".join(f"{name}-{type(cell).__name__}" for name, cell in column.items()),
)
def test_a_picture_is_found_in_whichever_column_holds_it(column, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "picture.png").write_bytes(PNG)
    data = open_scienceqa(table(tmp_path / "a.parquet", ROW | column))
    (problem,) = data.problems
    assert problem.has_image
    assert data.load_image(problem).tobytes() == Image.open(io.BytesIO(PNG)).tobytes()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [CELL, CELL]}, "problem 0 of .* has 2 pictures in the column 'image'"),
        ({"left": CELL, "right": CELL}, r"columns question, .*several hold pictures \(left, right\)"),
        ({"image": 7}, "columns question, .*'image' holds int64, which is no picture"),
        ({"img": [[1, 2], [3, 4]]}, "'img' holds list<.*>, which is no picture"),
        ({"picture": True}, "'picture' holds bool"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_pictures_that_cannot_be_chosen_or_read_are_refused_with_the_columns(columns, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_scienceqa(table(tmp_path / "a.parquet", ROW | columns))


def test_what_is_not_used_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"holds no pictures \(columns question, choices, answer\): every question is"):
        open_scienceqa(table(tmp_path / "a.parquet", ROW))
    with pytest.warns(UserWarning, match="pictures are read from 'image', not from thumbnail"):
        open_scienceqa(table(tmp_path / "b.parquet", ROW | {"image": CELL, "thumbnail": CELL}))


def test_a_picture_that_is_not_there_is_named(tmp_path):
    data = open_scienceqa(table(tmp_path / "a.parquet", ROW | {"image": "gone.png"}, ROW | {"image": None}))
    assert [problem.has_image for problem in data.problems] == [True, False]
    with pytest.raises(CorruptImageError, match=r"image of problem 0 of .*a.parquet: no file 'gone.png'"):
        data.load_image(data.problems[0])


def test_files_may_differ_in_columns_and_types(tmp_path):
    table(tmp_path / "0.parquet", ROW | {"image": None})
    table(tmp_path / "1.parquet", ROW | {"image": CELL, "extra": 1})
    table(tmp_path / "2.parquet", ROW | {"answer": "B", "choices": '["cat", "dog"]', "img": PNG, "hint": "a mat"})
    data = open_scienceqa(f"parquet:{tmp_path}")
    assert [problem.id for problem in data.problems] == ["0", "1", "2"]
    assert [problem.has_image for problem in data.problems] == [False, True, True]
    assert {(problem.answer, problem.choices) for problem in data.problems} == {(1, ("cat", "dog"))}
    assert ask(data.problems[2]) == "what ?\nContext: a mat\nOptions: (A) cat (B) dog"
    assert data.load_image(data.problems[1]).size == data.load_image(data.problems[2]).size == (48, 40)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_file_is_named(damage, tmp_path):
    table(tmp_path / "0.parquet", ROW)
    table(tmp_path / "1.parquet", *[ROW | {"hint": f"mat {number}"} for number in range(2000)])
    whole = (tmp_path / "1.parquet").read_bytes()
    flipped = whole[:4] + bytes(byte ^ 0x5A for byte in whole[4:2000]) + whole[2000:]
    broken = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"question,choices\n" * 9, "flipped": flipped}
    (tmp_path / "1.parquet").write_bytes(broken[damage])
    with pytest.raises(ValueError, match=r"/1.parquet cannot be read as parquet: \w+"):
        open_scienceqa(f"parquet:{tmp_path}")


def test_a_table_without_rows_or_columns_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a.parquet is no ScienceQA table: it lacks the column\(s\) choices, answer"):
        open_scienceqa(table(tmp_path / "a.parquet", {"question": "q", "options": ["a"]}))
    Dataset.from_dict({"question": [], "choices": [], "answer": []}).to_parquet(str(tmp_path / "b.parquet"))
    with pytest.raises(ValueError, match=r"b.parquet has no rows"):
        open_scienceqa(f"parquet:{tmp_path / 'b.parquet'}")


@pytest.mark.parametrize("ids", [["7", "8"], [7, 8], [7.0, 8.0]], ids=["text", "int", "float"])
def test_ids_are_texts_or_whole_numbers(ids, tmp_path):
    rows = [ROW | {"id": id, "image": CELL} for id in ids]
    assert [problem.id for problem in open_scienceqa(table(tmp_path / "a.parquet", *rows)).problems] == ["7", "8"]


def test_ids_that_are_null_or_there_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"row 1 of .*a.parquet has no id: expected a text or a whole number, not nu"):
        open_scienceqa(table(tmp_path / "a.parquet", ROW | {"id": 1}, ROW | {"id": None}))
    with pytest.raises(ValueError, match="problem 1 is in split test twice"):
        open_scienceqa(table(tmp_path / "b.parquet", *[ROW | {"id": 1, "image": CELL}] * 2))
