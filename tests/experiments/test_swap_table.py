"""The table of the swap: students trained once, answers kept, the LLaVA as it was."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.experiments import swap_table
from sf_llava.experiments.swap_table import Student, SwapSeries
from sf_llava.files import read_json
from sf_llava.llava.conversations import CONVERSATIONS, chat_template
from sf_llava.llava.towers import ORIGINAL, Tower
from sf_llava.mini.training.llava_model import build_llava, build_processor, build_tokenizer
from sf_llava.mini.training.llava_training import sample_texts
from sf_llava.scienceqa.data import open_scienceqa

TEACHER = Tower(ORIGINAL)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(sample_texts(200), CONVERSATIONS["vicuna_v1"])
    model = build_llava(tokenizer, width=64, layers=2).eval()
    common = BootstrapConfig.of(device="cpu", threads=1, batch_size=4, val_images=8)
    processor = build_processor(tokenizer, chat_template("vicuna_v1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sf_llava.bootstrap.run.measure_zero_shot", lambda *arguments: None)  # on 2,560 pictures a run
        yield SwapSeries(common, 8, 1, tmp_path_factory.mktemp("swaps"), "mini", model, processor, 24)


def test_every_tower_answers_the_same_image_questions_and_the_llava_stays_as_it_was(series):
    before = {name: tensor.clone() for name, tensor in series.model.state_dict().items()}
    student = Student(16, 0, continued="set")
    scores = [series.ask(TEACHER), series.ask(Tower("pooled")), series.ask(student), series.ask(student, placed=True)]
    wanted = {problem.id for problem in open_scienceqa("mini:24").problems if problem.has_image}
    assert all(set(score["answers"]) == wanted for score in scores) and len(wanted) == 12
    after = series.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    folders = {folder.name for folder in (series.output / "answers-test").iterdir()}
    assert folders == {"original", "pooled", "16-seed0-none-then-set", "16-seed0-none-then-set-placed"}
    half, placed = (series.ask(Tower("pooled", num_tokens=32), placed=placed) for placed in (False, True))
    assert half["settings"]["tower"] == placed["settings"]["tower"] == "pooled-32"
    assert (series.output / "answers-test" / "pooled-32-placed" / "score.json").exists()


def test_the_continuation_starts_from_the_bootstrap_of_its_seed_with_its_own_losses(series):
    series.train(Student(16, 0, continued="set"))
    config = read_json(series.output / "students" / "16-seed0-none-then-set" / "config.json")
    assert config["stage"] == "scienceqa" and config["align"] == "set=0.3" and config["data"] == "mini:diagrams"
    assert config["init_from"].endswith("students/16-seed0-none") and config["seed"] == 0


def test_students_of_equal_budget_are_compared_and_the_budget_is_said(series):
    for pictures in (None, 23040):
        whole = replace(series, common=BootstrapConfig.of(device="cpu"), pictures=pictures)
        runs = [whole.stages(Student(16, 0, align))[0] for align in ("none", "set+readout+position")]
        assert {run.optimiser.steps * run.optimiser.batch_size for run in runs} == {pictures or 46080}
        assert len({run.optimiser.steps for run in runs}) == 2
    student = Student(16, 0, continued="set")
    series.train(student)
    seconds = [read_json(series.output / "students" / name / "results.json")["seconds"]
               for name in ("16-seed0-none", "16-seed0-none-then-set")]  # fmt: skip
    assert series.budget(student) == {"pictures": 2 * 4 + 1 * 4, "seconds": sum(seconds)}


def test_what_is_done_is_read_again(series, monkeypatch):
    first = series.ask(TEACHER)
    monkeypatch.setattr(swap_table, "answer_all", None)
    assert series.ask(TEACHER) == first


def test_answers_of_another_llava_or_of_more_questions_are_not_taken_for_these(series):
    series.ask(TEACHER)
    other = replace(series, model=deepcopy(series.model))
    other.model.lm_head.weight.data.mul_(2)
    for different in (other, replace(series, questions=40)):
        with pytest.raises(ValueError, match="original holds answers of other settings"):
            different.ask(TEACHER)
    student = Student(16, 0, continued="set")
    series.ask(student)
    assert replace(series, pictures=12).ask(TEACHER)["settings"] == series.ask(TEACHER)["settings"]
    for different in (replace(series, pictures=12), replace(series, continued_steps=None)):
        with pytest.raises(ValueError, match="16-seed0-none-then-set holds answers of other settings"):
            different.ask(student)


def test_a_llm_is_asked_with_its_own_recipe(series):
    first, second = replace(series, continued_steps=None).stages(Student(16, 1, continued="set+llm"))
    assert (first.run.stage, first.optimiser.steps, first.objective.align_text) == ("mini", 2, None)
    assert (second.optimiser.steps, second.student.num_tunable) == (300, 3)
    assert (second.objective.align_text, second.objective.llava) == ("set=0.3+llm=4", "mini")


def test_alignments_are_compared_on_validation_questions_the_best_first(series, monkeypatch):
    shares = {"set": 0.5, "layers": 0.7, "set+readout": 0.6}
    asked = []

    def ask(self, student, split="test", placed=False):
        asked.append((student, split, placed))
        self.train(student)
        return {"image_accuracy": shares[student.align] + 0.1 * placed}

    monkeypatch.setattr(SwapSeries, "ask", ask)
    found = series.compare_alignments(list(shares), 16, 0)
    assert [(row["align"], row["plain"], round(row["placed"], 3)) for row in found] == [
        ("layers", 0.7, 0.8), ("set+readout", 0.6, 0.7), ("set", 0.5, 0.6),
    ]  # fmt: skip
    assert all(row["pictures"] == 8 and row["seconds"] > 0 and 0 <= row["zero_shot"] <= 1 for row in found)
    assert asked == [(Student(16, 0, align), "validation", placed) for align in shares for placed in (False, True)]
    assert read_json(series.output / "students" / "16-seed0-layers" / "config.json")["llava"] == "mini"
