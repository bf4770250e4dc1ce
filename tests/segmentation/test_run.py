"""A training learns, resumes to the bit after a kill, and says what is wrong with its data."""

import json
import multiprocessing
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tiny import save_tiny_clip

from sf_llava.segmentation.config import SegmentConfig
from sf_llava.segmentation.head import HeadConfig
from sf_llava.segmentation.run import train

TINY = HeadConfig(width=16, num_heads=2, mlp_width=32, num_convolutions=2)


def config(pairs, encoder_dir, output, **changes):
    numbers = dict(
        data=f"folder:{pairs}", val_data=f"folder:{pairs}", encoder=str(encoder_dir), output=str(output), device="cpu",
        num_latents=9, image_size=32, steps=6, warmup_steps=1, batch_size=4, lr=3e-3, encoder_lr_scale=1.0,
        drop_path=0.2, scale=(0.8, 1.5), flip=0.5, max_share=0.9, recolour=True, head=TINY, log_every=2, save_every=2,
    )  # fmt: skip
    return SegmentConfig(**(numbers | changes))


def weights(output):
    return load_file(output / "segmenter" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(pairs, encoder_dir, tmp_path_factory):
    """A run that nobody disturbs."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    results = train(config(pairs, encoder_dir, output))
    return output, results


def test_a_killed_run_resumes_to_the_bit(whole, pairs, encoder_dir, tmp_path):
    killed = config(pairs, encoder_dir, tmp_path / "killed")
    process = multiprocessing.get_context("fork").Process(target=_train_silently, args=(killed,))
    process.start()
    while process.is_alive() and not (tmp_path / "killed" / "checkpoints" / "step-0000002").exists():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -9 and not (tmp_path / "killed" / "results.json").exists()
    results = train(killed, resume=True)
    ours, theirs = weights(tmp_path / "killed"), weights(whole[0])
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    assert (tmp_path / "killed" / "log.jsonl").read_bytes() == (whole[0] / "log.jsonl").read_bytes()
    assert results["mIoU"] == whole[1]["mIoU"]
    assert train(killed, resume=True) == results  # done: nothing runs again
    with pytest.raises(ValueError, match="already holds a run; continue it with `resume`"):
        train(killed)
    with pytest.raises(ValueError, match=r"another configuration: lr was 0\.003 and is 1\.0"):
        train(replace(killed, lr=1.0), resume=True)


def _train_silently(settings):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    train(settings)


def test_a_run_says_what_it_measured(whole):
    output, results = whole
    assert results["pictures"] == 12 and [row["name"] for row in results["classes"]] == ["red", "green", "blue"]
    assert results["costs"]["image_size"] == 32 and results["costs"]["multiply_adds"] > 0
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    with Image.open(output / "predictions.png") as picture:
        assert picture.width > 900


def test_damaged_pairs_are_passed_by_counted_and_named(pairs, encoder_dir, tmp_path):
    import shutil

    root = shutil.copytree(pairs, tmp_path / "pairs")
    (root / "masks" / "0.png").write_bytes((root / "masks" / "0.png").read_bytes()[:60])
    Image.fromarray(np.full((40, 48), 7, dtype=np.uint8)).save(root / "masks" / "1.png")
    Image.fromarray(np.zeros((40, 90), dtype=np.uint8)).save(root / "masks" / "2.png")
    (root / "masks" / "3.png").unlink()
    results = train(config(root, encoder_dir, tmp_path / "run", steps=4, head=replace(TINY, num_convolutions=1)))
    assert results["left_out"] == ["3.png (no mask)"] and results["pictures"] == 8
    said = "\n".join(results["left_out_of_validation"])
    for expected in ("3.png (no mask)", "0.png: ", "1.png: labels 7 are out of range: 3 classes have 0 to 2",
                     "2.png: a mask of 90 x 40 pixels for a picture of 48 x 40"):  # fmt: skip
        assert expected in said
    assert len(results["left_out_of_validation"]) == 4
    assert results["skipped_pairs"] and all(line in said for line in results["skipped_pairs"])


@pytest.mark.parametrize("backbone", ["random", "teacher", "unet"])
def test_what_it_is_compared_with_trains_on_the_same_pictures(backbone, pairs, encoder_dir, tmp_path):
    changes = dict(backbone=backbone, steps=2, val_images=2)
    if backbone == "teacher":
        changes["teacher"] = str(save_tiny_clip(tmp_path / "clip"))
    results = train(config(pairs, encoder_dir, tmp_path / "run", **changes))
    assert 0 <= results["mIoU"] <= 1 and results["pictures"] == 2


def test_what_makes_no_run_is_a_sentence(pairs, encoder_dir, tmp_path):
    with pytest.raises(ValueError, match="does not say which teacher it was made from: name it with `teacher`"):
        train(config(pairs, encoder_dir, tmp_path / "a", backbone="teacher"))
    with pytest.raises(ValueError, match="is no multiple of 1 process"):
        train(config(pairs, encoder_dir, tmp_path / "b", micro_batch_size=3))
    clip = save_tiny_clip(tmp_path / "clip")
    with pytest.raises(ValueError, match="expected one with model_type 'sparseformer'"):
        train(config(pairs, clip, tmp_path / "c"))
    with pytest.raises(ValueError, match="unknown `backbone` 'swin'"):
        config(pairs, encoder_dir, tmp_path / "d", backbone="swin")
    with pytest.raises(ValueError, match="unknown `recipe` 'coco': expected ade20k, mini, small"):
        SegmentConfig.of("coco")
