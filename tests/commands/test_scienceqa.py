"""eval/scienceqa.py without arguments: the mini LLaVA on the drawn world's questions."""

import json
import runpy
from pathlib import Path

import pytest

from sf_llava.configuration import SparseFormerConfig
from sf_llava.mini import MINI_LLAVA_DIR
from sf_llava.model import SparseFormerModel

SCRIPT = Path(__file__).parents[2] / "eval" / "scienceqa.py"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script's ``main``, run in an empty directory."""
    if not (MINI_LLAVA_DIR / "model.safetensors").is_file():
        pytest.skip("this version has no mini LLaVA")
    monkeypatch.chdir(tmp_path)
    return runpy.run_path(str(SCRIPT))["main"]


def test_without_a_run_the_shipped_student_stands_beside_the_original_tower(script, tmp_path, capsys):
    script(["run", "--limit", "60", "--device", "cpu", "--controls", "blind"])
    out = capsys.readouterr().out
    assert "no student in runs/quickstart: here is the one that ships; make quickstart trains yours" in out
    assert "by kind of question" in out and "count" in out
    scores = json.loads((tmp_path / "runs/scienceqa/results.json").read_text())["scores"]
    assert scores["original"]["total"] == 60 and scores["original"]["unparsed"] == 0
    assert scores["original"]["accuracy"] > 0.9 > 0.6 > scores["blind"]["image_accuracy"]
    assert scores["swapped"]["accuracy"] > 0.8 and list(scores)[-1] == "swapped"


def test_the_student_of_the_quickstart_stands_beside_it(script, tmp_path, capsys):
    config = SparseFormerConfig(
        image_size=64,
        num_latents=16,
        hidden_size=128,
        focusing_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        focusing_num_attention_heads=2,
        intermediate_size=256,
        conv_channels=16,
        mixing_size=16,
        mixing_points=8,
        projection_dim=128,
    )
    SparseFormerModel(config).save_pretrained(tmp_path / "runs/quickstart/encoder")
    script(["run", "--limit", "16", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "swapped - original, image questions" in out and "pooled - original, image questions" in out
    results = json.loads((tmp_path / "runs/scienceqa/results.json").read_text())
    assert list(results["scores"]) == ["original", "pooled", "random", "swapped"]
    assert results["settings"]["encoder"] == ["runs/quickstart"]
