"""Task files: questions, words and pixels are those of our own evaluator; scores are POPE's definitions."""

import io
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sf_llava import __main__
from sf_llava.harness import scores
from sf_llava.harness.tasks import ONE_WORD, write_task
from sf_llava.scienceqa.data import LETTERS, ask, open_scienceqa

datasets = pytest.importorskip("datasets")
ROOT = Path(__file__).resolve().parents[2]


def read(folder: Path) -> tuple[dict, list[dict]]:
    """The description and the rows of a task; functions stay names."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    (path,) = folder.glob("*.yaml")
    description = yaml.load(path.read_text(), Loader)
    table = folder / description["dataset_kwargs"]["data_files"]["test"]
    return description, datasets.Dataset.from_parquet(str(table), cache_dir=str(folder / "cache")).to_list()


def pixels(cell: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])))


def test_a_task_holds_the_questions_and_pictures_of_the_data(tmp_path):
    assert write_task("mini:40", tmp_path) == ("mini_40", 40)
    description, rows = read(tmp_path / "mini_40")
    assert description["task"] == "mini_40" and description["doc_to_text"] == "text"
    data = open_scienceqa("mini:40")
    for row, problem in zip(rows, data.problems, strict=True):
        assert (row["id"], row["text"], row["target"]) == (problem.id, ask(problem), LETTERS[problem.answer])
        assert (row["image"] is not None) == problem.has_image == bool(scores.pictures(row))
        if problem.has_image:
            assert np.array_equal(pixels(row["image"]), np.asarray(data.load_image(problem)))


def test_every_function_that_a_description_names_is_there(tmp_path):
    write_task("mini-exists:4", tmp_path, yes_no=True)
    description, rows = read(tmp_path / "mini_exists_4")
    names = [description["doc_to_visual"], description["process_results"]]
    names += [metric["aggregation"] for metric in description["metric_list"] if metric["aggregation"] != "mean"]
    for name in names:
        module, _, function = name.rpartition(".")
        assert module == scores.__name__ and callable(getattr(scores, function))
    made = getattr(scores, names[1].rpartition(".")[2])(rows[0], ["Yes."])
    assert made.keys() == {metric["metric"] for metric in description["metric_list"]}
    assert rows[0]["text"].endswith(ONE_WORD) and "Options" not in rows[0]["text"]


def test_a_letter_is_read_as_our_own_evaluator_reads_it():
    document = {"choices": ["a", "b", "c"], "target": "B"}
    for said, right, unparsed in (
        ("The answer is B.", 1, 0),
        ("B", 1, 0),
        ("A. a", 0, 0),
        ("b", 0, 1),
        ("The answer is E.", 0, 1),
    ):
        assert scores.score_choice(document, [said]) == {"accuracy": right, "unparsed": unparsed}


def test_yes_and_no_are_scored_by_their_definitions():
    said = ["Yes", "yes.", "no", "No", "perhaps", "yes"]
    targets = ["yes", "no", "no", "yes", "yes", "yes"]
    made = [scores.score_yes_no({"target": t}, [s]) for s, t in zip(said, targets, strict=True)]
    assert [one["accuracy"] for one in made] == [1, 0, 1, 0, 0, 1] and sum(one["unparsed"] for one in made) == 1
    pairs = [one["f1"] for one in made]
    assert scores.precision(pairs) == 2 / 3 and scores.recall(pairs) == 2 / 4
    assert scores.f1(pairs) == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))  # 2 TP / (2 TP + FP + FN)
    assert scores.yes_ratio(pairs) == 3 / 6
    assert scores.precision([("no", "yes")]) == scores.f1([("no", "yes")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mini:4", "OUT", "--yes-no"], "--yes-no is for yes and no alone"),
        (["mini-described:4", "OUT"], "has no choices: these data are for training"),
        (["mini:4", "OUT", "--name", "a b"], "'a b' is no name of a task"),
        (["mini:4", "OUT", "--name", "taken"], "taken is there already: name another task"),
        (["nowhere", "OUT"], "no ScienceQA data at 'nowhere': expected"),
    ],
)
def test_what_makes_no_task_is_told_and_leaves_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    out = tmp_path / "tasks"
    (out / "taken").mkdir(parents=True)
    arguments = [str(out) if argument == "OUT" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["sf-llava", "harness-tasks", *arguments])
    with pytest.raises(SystemExit):
        __main__.main()
    assert message in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["taken"]


def test_the_entry_point_names_the_manifest():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"sf_llava": "sf_llava.harness.manifest:manifest"}
