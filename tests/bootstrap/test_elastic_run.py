"""A run whose steps draw their number of latents."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny import run_settings, save_world

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.run import bootstrap
from sf_llava.model import SparseFormerModel
from sf_llava.model.rois import initial_rois


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"), 20)


def run(world: Path, output: Path, **changes) -> SparseFormerModel:
    settings = dict(steps=6, warmup_steps=1, eval_every=6, save_every=2, keep_checkpoints=9, align="set+position")
    settings |= dict(num_latents=4, elastic="2-9", trackers="none")
    bootstrap(BootstrapConfig.of(**run_settings(world, output, **settings | changes)))
    return SparseFormerModel.from_pretrained(output / "encoder")


def test_every_step_draws_a_number_and_a_killed_run_draws_the_same(world, tmp_path, monkeypatch):
    drawn = []
    forward = SparseFormerModel.forward

    def count(self, pixel_values, *rest, num_latents=None, **named):
        drawn.append(num_latents)
        return forward(self, pixel_values, *rest, num_latents=num_latents, **named)

    monkeypatch.setattr(SparseFormerModel, "forward", count)
    encoder = run(world, tmp_path / "whole", micro_batch_size=4)
    steps = [number for number in drawn if number is not None]
    assert len(steps) == 12 and steps[::2] == steps[1::2]  # parts of one step share theirs
    assert len(set(steps)) > 2 and min(steps) >= 2 and max(steps) <= 9
    assert (encoder.config.num_latents, encoder.config.num_latents_range) == (4, [2, 9])
    assert torch.equal(encoder.focusing.initial_rois, initial_rois(4))  # as any other number starts
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-0000006")
    (tmp_path / "cut" / "results.json").unlink()
    run(world, tmp_path / "cut", micro_batch_size=4, resume=True)
    for name in ("log.jsonl", "encoder/model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_elastic_student_stays_so_when_it_is_continued_within_its_range(world, tmp_path):
    run(world, tmp_path / "first", steps=2)
    changes = dict(init_from=str(tmp_path / "first"), elastic=None, steps=1, warmup_steps=0)
    assert run(world, tmp_path / "same", **changes).config.num_latents_range == [2, 9]
    assert run(world, tmp_path / "more", **changes | dict(num_latents=16)).config.num_latents_range is None


@pytest.mark.parametrize("elastic", ["8-32", "many", "5-3", "0-9", "2-9-12"])
def test_a_range_without_the_students_number_is_one_sentence(world, tmp_path, elastic):
    with pytest.raises(ValueError, match=f"`elastic` {elastic}: expected the lowest and highest number .* student's 4"):
        run(world, tmp_path / "run", elastic=elastic)
