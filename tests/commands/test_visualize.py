"""scripts/visualize.py writes its pictures, and says what is missing in one sentence."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from v1_state import make_state

from sf_llava.bootstrap.objectives.statistics import TokenStatistics
from sf_llava.configuration import preset
from sf_llava.model import SparseFormerModel
from sf_llava.model.official import convert_official

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "visualize.py"


@pytest.fixture
def main(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return runpy.run_path(str(SCRIPT))["main"]


def test_photographs_give_three_sheets(main, tmp_path, capsys):
    SparseFormerModel(preset("sf-mini")).save_pretrained(tmp_path / "encoder")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    main(["photo.png", "--encoder", "encoder", "--output", "out"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"focus.png", "iterations.png", "heat.png"}
    assert "RoI centres move by 0.000" in capsys.readouterr().out  # zero-initialised deltas


def test_a_run_that_aligned_places_shows_whose_token_speaks_for_each(main, tmp_path):
    run = tmp_path / "run"
    SparseFormerModel(preset("sf-mini")).save_pretrained(run / "encoder")
    (run / "config.json").write_text('{"align_layer": -2, "teacher": null}')
    (run / "checkpoints" / "step-0000004").mkdir(parents=True)
    draws = torch.Generator().manual_seed(0)
    places, directions = torch.randn(64, 128, generator=draws), torch.randn(128, 24, generator=draws)
    statistics = TokenStatistics(torch.zeros(128), torch.ones(128), places, directions, torch.tensor(1.0))
    statistics.save(run / "checkpoints" / "step-0000004")
    for encoder in ("run", "run/encoder"):
        main(["--encoder", encoder, "--output", f"out/{encoder}", "--num-images", "2"])
        assert (tmp_path / "out" / encoder / "places.png").is_file()


def test_a_sparseformer_v1_shows_its_rois_without_attention(main, tmp_path, capsys):
    convert_official(make_state(), 64).save_pretrained(tmp_path / "v1")
    main(["--encoder", "v1", "--output", "out", "--num-images", "2"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"focus.png", "iterations.png", "heat.png"}
    assert "between the 2 images the last centres differ by" in capsys.readouterr().out
    convert_official(make_state("clips"), 64).save_pretrained(tmp_path / "clips")
    with pytest.raises(ValueError, match="expected clips"):
        main(["--encoder", "clips", "--output", "out"])


def test_no_flags_without_a_quickstart_draw_the_student_that_ships(main, tmp_path, capsys):
    main([])
    assert "no student in runs/quickstart: here is the one that ships" in capsys.readouterr().out
    assert (tmp_path / "runs" / "visualize" / "heat.png").is_file()


def test_an_encoder_that_is_not_there_says_how_to_make_one(main):
    with pytest.raises(ValueError, match=r"no encoder at nowhere.*sf-llava bootstrap"):
        main(["--encoder", "nowhere"])


def test_a_broken_image_is_named(main, tmp_path):
    SparseFormerModel(preset("sf-mini")).save_pretrained(tmp_path / "encoder")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg: not an image"):
        main(["broken.jpg", "--encoder", "encoder"])
