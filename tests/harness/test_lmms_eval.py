"""lmms-eval, asking through our entry point, hears the answers of our own evaluator, question by question."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from mini_encoder import write_mini_encoder

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (make test-lmms builds an environment for it)")

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

from sf_llava import load_llava
from sf_llava.harness.model import SparseFormerLlava, _Asked, _read_generation
from sf_llava.harness.tasks import write_task
from sf_llava.llava.towers import ORIGINAL, SWAPPED, Tower, tower_in_place
from sf_llava.scienceqa.data import ask, open_scienceqa
from sf_llava.scienceqa.run import Answerer, Generation, answer_all
from sf_llava.scienceqa.scoring import score

COUNT, BATCH = 500, 32


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_mini_encoder(tmp_path_factory.mktemp("harness") / "encoder")


@pytest.fixture(scope="module")
def tasks(encoder):
    """A folder of task folders."""
    write_task(f"mini:{COUNT}", encoder.parent / "tasks", name="ours")
    write_task("mini-exists:8", encoder.parent / "tasks", yes_no=True)
    return encoder.parent / "tasks"


def ask_ourselves(tower, folder) -> dict[str, str]:
    model, processor = load_llava("mini")
    with tower_in_place(model, processor, tower) as num_patches:
        placed = num_patches if tower.positions_and_bias else None
        answerer = Answerer(model, processor, Generation(), placed)
        return answer_all(answerer, open_scienceqa(f"mini:{COUNT}"), folder, {}, batch_size=BATCH)


@pytest.mark.parametrize("how", ["original", "swapped", "placed"])
def test_both_evaluators_hear_the_same_answers(how, encoder, tasks, tmp_path):
    tower = Tower(ORIGINAL) if how == "original" else Tower(SWAPPED, encoder, how == "placed")
    arguments = "pretrained=mini" if how == "original" else f"pretrained=mini,encoder={encoder}"
    arguments += ",positions_and_bias=True" if how == "placed" else ""
    found = simple_evaluate(
        model="sf_llava",
        model_args=arguments,
        tasks=["ours"],
        batch_size=BATCH,
        task_manager=TaskManager(include_path=str(tasks), model_name="sf_llava"),
        log_samples=True,
    )
    ours = ask_ourselves(tower, tmp_path)
    questions = open_scienceqa(f"mini:{COUNT}").problems
    samples = sorted(found["samples"]["ours"], key=lambda sample: sample["doc_id"])
    heard = {problem.id: sample["filtered_resps"][0] for problem, sample in zip(questions, samples, strict=True)}
    assert heard == ours
    assert found["results"]["ours"]["accuracy,none"] == pytest.approx(score(questions, ours)["accuracy"])
    assert len(set(heard.values())) > 50


def test_the_command_line_of_lmms_eval_finds_the_model(encoder, tasks, tmp_path):
    arguments = ["--model", "sf_llava", "--model_args", f"pretrained=mini,encoder={encoder},dtype=auto", "--limit", "8"]
    arguments += ["--include_path", str(tasks), "--tasks", "ours,mini_exists_8", "--output_path", str(tmp_path / "out")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lmms_eval", *arguments, "--batch_size", "4", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("*results.json")
    scored = json.loads(results.read_text())["results"]
    assert scored["ours"]["unparsed,none"] < 1 and scored["mini_exists_8"]["unparsed,none"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretrained=mini,placed=True", "sf_llava has no model argument placed; expected pretrained, encoder, posit"),
        ("pretrained=mini,positions_and_bias=True", "positions_and_bias is for a SparseFormer: name one with encoder="),
        ("pretrained=mini,encoder=nowhere", "no encoder at nowhere"),
        ("pretrained=nowhere", "no LLaVA at nowhere"),
        ("pretrained=mini,batch_size=auto", "batch_size must be a whole number from 1, not 'auto'"),
        ("pretrained=mini,dtype=float", "unknown dtype 'float': expected fp32"),
    ],
)
def test_arguments_that_cannot_be_are_told_in_a_sentence(arguments, message):
    assert get_model("sf_llava") is SparseFormerLlava
    with pytest.raises(ValueError, match=message):
        SparseFormerLlava.create_from_arg_string(arguments)


def test_tasks_that_ask_for_more_are_told_so():
    with pytest.raises(ValueError, match="expected num_beams 1, not 5"):
        _read_generation({"num_beams": 5}, Generation())
    with pytest.raises(ValueError, match=r"expected top_p 1, not 0\.9"):
        _read_generation({"temperature": 1, "top_p": 0.9}, Generation())
    with pytest.raises(ValueError, match="document 0 of task shows a str: sf_llava is shown pictures alone"):
        _Asked({"task": {"test": [0]}}, "What?", {}, lambda document: ["film.mp4"], 0, "task", "test")
    model = SparseFormerLlava("mini")
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="sf_llava answers tasks of output_type generate_until"):
            method([])


def test_answers_end_where_a_task_stops_them_and_come_in_its_order():
    model = SparseFormerLlava("mini", batch_size=2)
    data = open_scienceqa("mini:6")
    model.task_dict = {"task": {"test": data.problems}}

    def request(index: int, **options) -> SimpleNamespace:
        def shown(problem):
            return [data.load_image(problem)] if problem.has_image else []

        return SimpleNamespace(args=(ask(data.problems[index]), options, shown, index, "task", "test"))

    whole = model.generate_until([request(index) for index in range(6)])
    stopped = model.generate_until([request(index, until=[" answer is"]) for index in range(6)])
    assert stopped == [answer.partition(" answer is")[0] for answer in whole] and len(set(whole)) == 6
    mixed = model.generate_until([request(index, max_new_tokens=2 + 30 * (index % 2)) for index in range(6)])
    assert mixed[1::2] == whole[1::2] and all(answer.startswith(cut) for answer, cut in zip(whole, mixed, strict=True))
