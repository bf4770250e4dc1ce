"""The command's table: which towers it asks, and what is written of them."""

from sf_llava.commands import swap_table as command
from sf_llava.experiments.swap_table import Student, SwapSeries
from sf_llava.files import read_json
from sf_llava.scienceqa import scoring
from sf_llava.scienceqa.data import open_scienceqa

IMAGES = "set+readout+position"


def test_every_way_of_aligning_goes_on_from_the_same_bootstrap_of_each_seed(tmp_path, monkeypatch):
    questions = open_scienceqa("mini:8", "test").problems
    asked = []

    def ask(self, tower, split="test", placed=False, control=None):
        asked.append((tower, split, placed, control))
        return scoring.score(questions, {q.id: f"The answer is {'ABCDE'[q.answer]}." for q in questions})

    monkeypatch.setattr(SwapSeries, "ask", ask)
    monkeypatch.setattr(SwapSeries, "budget", lambda self, student: {"pictures": 1.0, "seconds": 2.0})
    command.main(["--num-latents", "16", "--output", str(tmp_path), "--device", "cpu"])
    students = [(tower, placed) for tower, _, placed, control in asked if isinstance(tower, Student) and not control]
    ways = [("none", None), ("none", "none"), (IMAGES, None), (IMAGES, IMAGES), (IMAGES, f"{IMAGES}+layers"),
            (IMAGES, "set+llm+placed")]  # fmt: skip
    each = [(way, placed, seed) for way in ways for placed in (False, True) for seed in (0, 1)]
    assert students == [(Student(16, seed, *way), placed) for way, placed, seed in each]
    assert {split for _, split, _, _ in asked} == {"test"}
    rows = read_json(tmp_path / "results.json")["rows"]
    assert len(rows) == 1 + 2 * 3 + 2 * len(ways) + 3 + 2  # teacher, rivals, students, controls of two towers
    assert all(row["kept"] == 1 and len(row["differences"]) == len(row["scores"]) for row in rows)
    assert (tmp_path / "swap_table.png").stat().st_size > 1000
