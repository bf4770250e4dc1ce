"""The ablation series: which rows there are, that it resumes row by row, and what it says about orderings."""

import json
import runpy
from pathlib import Path

import pytest

from sf_llava.data import open_labelled
from sf_llava.experiments.ablations import choose_rows, compare_orderings, draw_labelled, table_rows
from sf_llava.mini.world.shapes import CLASS_NAMES

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reproduce.py"
ROWS = table_rows(depth=6, num_patches=64, steps=700, lr=2e-3)


def test_the_papers_rows_are_there():
    changes = {row.key: row.changes for row in ROWS}
    assert changes["default"] == {}
    assert changes["all-tunable"] == {"num_tunable": 4} and changes["all-frozen"] == {"num_tunable": 0}
    assert {f"latents-{n}" for n in (8, 24, 32, 64)} <= changes.keys() and "latents-16" not in changes
    assert changes["continued"]["steps"] == 175 and changes["continued"]["lr"] == 5e-4


def test_chosen_rows_bring_what_they_need():
    assert [row.key for row in choose_rows(ROWS, ["continued"])] == ["default", "continued"]
    assert [row.key for row in choose_rows(ROWS, ["class-loss"])] == ["default", "labelled", "class-loss"]
    assert choose_rows(ROWS, []) == ROWS
    with pytest.raises(ValueError, match="unknown rows nonsense; known rows: default, no-reuse"):
        choose_rows(ROWS, ["nonsense"])


def test_orderings_are_reported_as_they_are():
    def runs(*values):
        return [{"top1": value, "top1_interval": (value - 0.01, value + 0.01)} for value in values]

    measured = {"default": runs(0.90, 0.91), "no-reuse": runs(0.5, 0.6), "kl-3": runs(0.95, 0.96)}
    measured |= {"kl-5": runs(0.915, 0.92)}
    measured |= {"all-frozen": runs(0.89, 0.92)}
    verdicts = {entry["row"]: entry["verdict"] for entry in compare_orderings(ROWS, measured)}
    assert verdicts.pop("no-reuse") == "as in the paper"
    assert verdicts.pop("kl-3") == "unlike the paper"
    assert verdicts == {"kl-5": "unclear", "all-frozen": "unclear"}


def test_labelled_pictures_are_training_pictures_in_the_order_of_the_classes(tmp_path):
    name = draw_labelled(tmp_path / "labelled", size=256)
    labelled = open_labelled(name)
    assert len(labelled) == 256 and [entry[3:] for entry in labelled.class_names] == list(CLASS_NAMES)
    assert draw_labelled(tmp_path / "labelled", size=256) == name


def test_a_series_runs_and_resumes(clip_dir, folder, tmp_path, monkeypatch, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    monkeypatch.chdir(tmp_path)
    flags = ["--teacher", str(clip_dir), "--data", f"folder:{folder}", "--val-data", f"folder:{folder}"]
    flags += ["--steps", "4", "--batch-size", "4", "--seeds", "1", "--device", "cpu", "--dtype", "fp32"]
    main([*flags, "--rows", "class-loss"])
    first = capsys.readouterr().out
    assert "default: 16 latents, seed 0: top-1" in first and "pooled at the input, 8 tokens" in first
    main([*flags, "--rows", "class-loss", "continued"])
    results = json.loads((tmp_path / "runs" / "reproduce" / "results.json").read_text())
    assert set(results["rows"]) == {"default", "labelled", "class-loss", "continued"}
    assert results["rows"]["continued"][0]["tokens"] == 32
    assert results["rows"]["default"][0]["multiply_adds"] < results["rows"]["continued"][0]["multiply_adds"]
    assert {entry["row"] for entry in results["orderings"]} == {"class-loss", "continued"}
    assert (tmp_path / "runs" / "reproduce" / "accuracy.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match=r"another configuration: .*steps was 4 and is 5"):
        main([*flags, "--rows", "default", "--steps", "5"])
