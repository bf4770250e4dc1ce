"""``sf-llava segment`` from masks of the drawn world to a table and pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from sf_llava.commands import segment
from sf_llava.mini.world.masks import SCENE_CLASSES


def test_the_drawn_world_end_to_end(encoder_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ["--num-latents", "4", "--image-size", "32", "--batch-size", "2", "--device", "cpu", "--workers", "0"]
    train = ["train", "--encoder", str(encoder_dir), "--steps", "3", "--val-images", "6", *few]
    segment.main(train)
    shown = capsys.readouterr().out
    assert "mini: 50,000 pictures with masks, 9 classes" in shown and "M parameters" in shown
    assert all(name in shown for name in ("mIoU", "aAcc", "mAcc", *SCENE_CLASSES))
    results = json.loads((tmp_path / "runs" / "segment" / "results.json").read_text())
    assert results["pictures"] == 6 and (tmp_path / "runs" / "segment" / "predictions.png").is_file()
    segment.main([*train, "--resume"])  # it is done: the same table
    capsys.readouterr()

    segment.main(["eval", "runs/segment", "runs/segment", "--num-images", "6", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "+0.00 (+0.00 to +0.00)" in shown
    scored = json.loads((tmp_path / "runs" / "segment-eval" / "results.json").read_text())
    assert scored["runs"]["runs/segment"]["mIoU"] == results["mIoU"]

    segment.main(["predict", "runs/segment", "--num-images", "2", "--device", "cpu", "--mode", "whole"])
    assert "2 masks in runs/masks" in capsys.readouterr().out
    with Image.open(tmp_path / "runs" / "masks" / "000001.png") as mask:
        assert mask.mode == "P" and mask.size == (64, 64) and np.asarray(mask).max() < 9
    assert (tmp_path / "runs" / "masks" / "classes.txt").read_text().splitlines() == list(SCENE_CLASSES)


def test_data_without_a_validation_part_asks_for_one(pairs, encoder_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is one set: name pictures to score on with `val_data`"):
        segment.main(["train", "--data", f"folder:{pairs}", "--encoder", str(encoder_dir)])


def test_a_segmenter_of_other_classes_is_a_sentence(pairs, encoder_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ["--num-latents", "4", "--image-size", "32", "--batch-size", "2", "--device", "cpu", "--workers", "0"]
    folder = f"folder:{pairs}"
    few += ["--recipe", "mini", "--steps", "1"]
    segment.main(["train", "--data", folder, "--val-data", folder, "--encoder", str(encoder_dir), *few])
    with pytest.raises(ValueError, match=r"trained on 3 classes \(red, green, blue, \.\.\.\), the data have 9"):
        segment.main(["eval", "runs/segment", "--data", "mini", "--device", "cpu"])
