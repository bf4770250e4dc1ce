"""A run on streamed shards: resumed to the bit, told when its order changes, refused where it lacks something."""

import shutil
import tarfile
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import run_settings, save_world

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.objectives.statistics import FILE
from sf_llava.bootstrap.run import bootstrap

pytest.importorskip("webdataset", reason="shards at an address are read with it")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A tiny CLIP and pictures, the same in four shards."""
    path = save_world(tmp_path_factory.mktemp("world"), 20)
    for number in range(4):
        with tarfile.open(path / f"{number}.tar", "w") as tar:
            for picture in sorted((path / "images").iterdir())[number::4]:
                tar.add(picture, picture.name)
    return path


def run(world: Path, output: Path, **changes) -> None:
    stream = dict(data=f"webdataset:pipe:cat {world}/{{0..3}}.tar", val_data=f"folder:{world / 'images'}")
    numbers = dict(steps=4, warmup_steps=1, eval_every=4, keep_checkpoints=9, trackers="none")
    bootstrap(BootstrapConfig.of(**run_settings(world, output, **stream | numbers) | changes))


def test_a_streamed_run_resumes_to_the_bit_and_says_when_its_order_changes(world, tmp_path, capsys, monkeypatch):
    run(world, tmp_path / "whole", micro_batch_size=4)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-0000004")
    (tmp_path / "cut" / "results.json").unlink()
    shutil.copytree(tmp_path / "cut", tmp_path / "other")
    run(world, tmp_path / "cut", micro_batch_size=4, resume=True)
    for name in ("log.jsonl", "encoder/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "another lanes" not in capsys.readouterr().out
    monkeypatch.setattr("sf_llava.bootstrap.run._bootstrap", lambda *arguments: {})  # it was told by then
    run(world, tmp_path / "other", micro_batch_size=4, resume=True, workers=2)
    assert "goes on with another lanes: 1 before, 2 now" in capsys.readouterr().out


def test_a_streamed_run_measures_its_teachers_tokens_on_the_validation_images(world, tmp_path):
    run(world, tmp_path / "streamed", align="set+position")
    run(world, tmp_path / "local", align="set+position", data=f"folder:{world / 'images'}", val_images=20)
    measured = [load_file(tmp_path / name / "checkpoints" / "step-0000004" / FILE) for name in ("streamed", "local")]
    for name, value in measured[0].items():  # the same pictures, as they are and augmented
        assert value.shape == measured[1][name].shape and value.isfinite().all()
    assert (measured[0]["mean"] - measured[1]["mean"]).abs().max() < 0.5 * measured[1]["std"].max()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(val_data=None), "nothing can be held out of a stream .* `val_data`"),
        (dict(steps=None, epochs=1), "how many images a stream has is unknown: give `steps` and `warmup_steps`"),
        (dict(warmup_steps=None), "how many images a stream has is unknown: give `steps` and `warmup_steps`"),
        (dict(workers=5), "4 shards are too few for 1 processes x 5 `workers`"),
        (dict(teacher_cache="kept"), "`teacher_cache` kept: images that are streamed have no numbers"),
        (dict(class_loss_weight=1.0), "labels, validation and evaluation need local files"),
    ],
)  # fmt: skip
def test_what_a_stream_cannot_give_is_refused(world, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        run(world, tmp_path, **changes)
