"""What a run directory survives: flipped bits, diverged training, damaged files, other machines, other data."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import run_settings, save_images, save_tiny_clip, save_world

from sf_llava import files
from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.run import bootstrap
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.bootstrap.trainer import Trainer
from sf_llava.weights.digests import DIGESTS_NAME, write_digests

RESULT_FILES = ("log.jsonl", "encoder/model.safetensors")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A directory with a tiny CLIP, twenty pictures, and a whole run of twelve steps with all its checkpoints."""
    path = save_world(tmp_path_factory.mktemp("world"), 20)
    bootstrap(settings(path, path / "whole"))
    return path


def settings(world: Path, output: Path, **changes) -> BootstrapConfig:
    numbers = dict(val_data=f"folder:{world / 'images'}", steps=12, warmup_steps=4, eval_every=6, keep_checkpoints=9)
    return BootstrapConfig.of(**run_settings(world, output, **numbers) | changes)


@pytest.fixture
def cut(world, tmp_path) -> Path:
    """A copy of the run as a kill after step 8 would leave it."""
    shutil.copytree(world / "whole", tmp_path / "cut")
    for step in (10, 12):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:07d}")
    shutil.rmtree(tmp_path / "cut" / "encoder")
    (tmp_path / "cut" / "results.json").unlink()
    return tmp_path / "cut"


def flip_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "progress.json", DIGESTS_NAME])
def test_a_flipped_bit_is_found_and_the_checkpoint_before_gives_the_same_run(world, cut, capsys, name):
    newest = cut / "checkpoints" / "step-0000008" / name
    flip_bit(newest, newest.stat().st_size // 2)
    bootstrap(settings(world, cut, resume=True))
    said = capsys.readouterr().out
    assert f"{newest.parent} is damaged" in said and "going on from" in said and "step-0000006" in said
    for result in RESULT_FILES:
        assert (cut / result).read_bytes() == (world / "whole" / result).read_bytes()


def test_without_a_whole_checkpoint_nothing_is_begun_again_silently(world, cut):
    for path in (cut / "checkpoints").iterdir():
        (path / "optimizer.bin").unlink()
    with pytest.raises(ValueError, match=r"optimizer\.bin changed.*remove .*checkpoints to begin again"):
        bootstrap(settings(world, cut, resume=True))
    assert len(list((cut / "checkpoints").iterdir())) == 4


def test_digests_are_those_of_sha256sum(world):
    checkpoint = world / "whole" / "checkpoints" / "step-0000012"
    done = subprocess.run(["sha256sum", "--check", "--strict", DIGESTS_NAME], cwd=checkpoint, capture_output=True)
    assert done.returncode == 0 and b"model.safetensors: OK" in done.stdout


@pytest.mark.parametrize("what", ["weight", "loss", "moment"])
def test_diverged_training_ends_in_a_sentence_and_keeps_no_checkpoint_of_it(world, tmp_path, monkeypatch, what):
    take_step = Trainer._train_step

    def diverge(self, batches):
        scores = take_step(self, batches)
        if self.step == 5:
            weight = next(p for p in self.student.parameters() if p.requires_grad)
            if what == "weight":
                weight.data.view(-1)[0] = float("inf")
            elif what == "moment":
                self.optimizer.state[weight]["exp_avg"].view(-1)[0] = float("nan")
            else:
                scores[0] = float("nan")
        return scores

    monkeypatch.setattr(Trainer, "_train_step", diverge)
    with pytest.raises(RuntimeError, match=r"diverged.* at step 6\. .*`resume` and a lower `lr`.*step-0000004"):
        bootstrap(settings(world, tmp_path / "run"))
    assert RunDirectory(tmp_path / "run").checkpoint_paths()[0].name == "step-0000004"
    monkeypatch.undo()
    bootstrap(settings(world, tmp_path / "run", resume=True, lr=5e-4))  # the advice can be followed
    log = RunDirectory(tmp_path / "run").read_log()
    assert {"step": 4, "changed": {"lr": [1e-3, 5e-4]}} in log
    rates = [
        5e-4,
        1e-3,
        5e-4 * (1 + math.cos(math.pi / 8)) / 2,
    ]  # two of warm-up, the first of the cosine's eight steps
    assert [line["lr"] for line in log if "lr" in line][:3] == pytest.approx(rates)


def test_a_checkpoint_that_is_not_finite_is_passed_by(world, cut, capsys):
    newest = cut / "checkpoints" / "step-0000008"
    weights = load_file(newest / "model.safetensors")
    name = next(name for name in weights if "cortex.0" in name)
    save_file(weights | {name: torch.full_like(weights[name], float("nan"))}, newest / "model.safetensors")
    write_digests(newest)
    bootstrap(settings(world, cut, resume=True))
    assert f"{newest} holds numbers that are not finite" in capsys.readouterr().out
    assert (cut / "log.jsonl").read_bytes() == (world / "whole" / "log.jsonl").read_bytes()


def test_another_machine_is_said_and_logged(world, cut, capsys):
    torch.set_num_threads(2)
    try:
        bootstrap(settings(world, cut, resume=True, threads=0, micro_batch_size=4))
    finally:
        torch.set_num_threads(1)
    said = capsys.readouterr().out
    assert "another cpu_threads: 1 before, 2 now" in said and "another micro_batch_size: None before, 4 now" in said
    changes = [line["changed"] for line in RunDirectory(cut).read_log() if "changed" in line]
    assert changes == [{"micro_batch_size": [None, 4], "cpu_threads": [1, 2]}]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda world: save_images(world / "images", 1, seed=7), "training images and other validation images"),
        (lambda world: (world / "images" / "0019.png").unlink(), "training images and other validation images"),
        (lambda world: save_tiny_clip(world / "clip", seed=7), "teacher weights"),
    ],
    ids=["another picture", "a picture less", "another teacher"],
)
def test_other_data_under_the_same_name_is_refused(world, cut, tmp_path, change, named):
    shutil.copytree(world, tmp_path / "other", ignore=shutil.ignore_patterns("whole"))
    change(tmp_path / "other")
    text = (cut / "config.json").read_text().replace(str(world), str(tmp_path / "other"))
    (cut / "config.json").write_text(text)  # as if the change had been made in place
    with pytest.raises(ValueError, match=f"began with other {named}"):
        bootstrap(settings(tmp_path / "other", cut, resume=True))
    assert len(list((cut / "checkpoints").iterdir())) == 4


def test_damaged_lines_are_counted_and_the_others_kept(tmp_path):
    good = [json.dumps({"step": step, "loss": step / 7}).encode() for step in (2, 4, 6)]
    lines = [
        b"\xef\xbb\xbf" + good[0] + b"\r",
        b"null",
        good[1],
        b'{"loss": 1}',
        b"\xff\xfe",
        b"[" * 9999,
        b"",
        good[2],
    ]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines) + b'\n{"step": 8, "lo')
    (remark,) = RunDirectory(tmp_path).start({}, 8)
    assert "log.jsonl: 4 damaged lines are left out (2, 4, 5, 6)" in remark
    assert (tmp_path / "log.jsonl").read_bytes() == b"".join(line + b"\n" for line in good)


@pytest.mark.parametrize("text", ["null", "[]", "3", '"run"', "{", "", "[" * 9999, "{}"])
def test_a_damaged_configuration_is_named(world, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json|another configuration"):
        bootstrap(settings(world, tmp_path, resume=True))
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize("text", ["null", "{}", "{"])
def test_damaged_results_are_named(world, tmp_path, text):
    shutil.copytree(world / "whole", tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json"):
        bootstrap(settings(world, tmp_path / "run", resume=True))


def test_a_lost_validation_line_is_measured_again(world, tmp_path):
    shutil.copytree(world / "whole", tmp_path / "run")
    expected = json.loads((tmp_path / "run" / "results.json").read_text())["val_cosine"]
    (tmp_path / "run" / "results.json").unlink()
    log = tmp_path / "run" / "log.jsonl"
    log.write_text("".join(line for line in log.open() if "val_cosine" not in line))
    assert bootstrap(settings(world, tmp_path / "run", resume=True))["val_cosine"] == pytest.approx(expected, abs=1e-6)


def test_other_files_of_a_directory_are_left_alone(world, cut):
    mine = [cut / ".notes.tmp", cut / ".vimrc.old", cut / "checkpoints" / "step-0000002-kept"]
    for path in mine:
        path.mkdir()
    left = [
        cut / ".config.json.1.tmp",
        cut / "checkpoints" / ".step-0000010.tmp",
        cut / "rois" / ".step-0000006.png.1.tmp",
    ]
    for path in left:
        path.touch()
    bootstrap(settings(world, cut, resume=True, keep_checkpoints=1))
    assert all(path.is_dir() for path in mine) and not any(path.exists() for path in left)
    assert sorted(os.listdir(cut / "checkpoints")) == ["step-0000002-kept", "step-0000012"]


def test_files_that_no_run_wrote_are_not_written_over(world, tmp_path):
    (tmp_path / "log.jsonl").write_text("mine\n")
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"holds log\.jsonl without the config\.json of a run"):
            bootstrap(settings(world, tmp_path, resume=resume))
    assert (tmp_path / "log.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize("place", ["images/0000.png", "images/0000.png/run"])
def test_an_output_that_cannot_be_is_refused_before_anything_is_loaded(world, place, monkeypatch):
    monkeypatch.setattr("sf_llava.bootstrap.run.load_teacher", None)
    with pytest.raises(OSError, match="cannot be a directory of results"):
        bootstrap(settings(world, world / place))


def test_a_second_run_in_the_same_directory_is_refused(world, cut):
    with files.locked(cut), pytest.raises(RuntimeError, match="already writes"):
        bootstrap(settings(world, cut, resume=True))
