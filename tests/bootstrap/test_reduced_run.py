"""A bootstrap whose student is the teacher with fewer tokens: the SparseFormer's harness, exactly resumable."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import run_settings, save_world

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.run import bootstrap
from sf_llava.measure.setup import choose_models, load_models
from sf_llava.teachers import load_teacher


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"), 20)


def config(world: Path, output: Path, **changes) -> BootstrapConfig:
    settings = dict(steps=6, eval_every=6, keep_checkpoints=9, trackers="none")
    settings = run_settings(world, output, **settings | dict(reduce="tome:5"))
    del settings["align"]  # of itself the embedding alone
    return BootstrapConfig.of(**settings | changes)


@pytest.mark.parametrize("reduce", ["tome:5", "diffrate:5"])
def test_a_killed_run_goes_on_to_the_bit_and_evaluators_read_what_it_saved(world, tmp_path, reduce):
    results = bootstrap(config(world, tmp_path / "whole", reduce=reduce))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:07d}")
    shutil.rmtree(tmp_path / "cut" / "encoder")
    (tmp_path / "cut" / "results.json").unlink()
    bootstrap(config(world, tmp_path / "cut", reduce=reduce, resume=True))
    for name in ("log.jsonl", "encoder/model.safetensors", "encoder/config.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < losses[0] and log[0]["lr"] > 0  # trained while it warms up
    inheritance = results["inheritance"]
    assert (inheritance["num_tunable"], inheritance["num_frozen"], inheritance["new_parameters"]) == (3, 0, 0)
    assert not (tmp_path / "whole" / "rois").exists()  # it has none

    names, teacher_name = choose_models([str(tmp_path / "whole")], None)
    teacher, (_, student) = load_models(names, teacher_name, "fp32", torch.device("cpu"))
    fresh = load_teacher(str(world / "clip"))
    assert teacher_name == str(world / "clip") and student.num_tokens == results["encoders"][1]["tokens"]
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(teacher(pixels), fresh(pixels)) and not torch.equal(student(pixels)[0], fresh(pixels))


def test_blocks_stay_in_float32_beside_a_teacher_in_half_precision(world, tmp_path):
    results = bootstrap(config(world, tmp_path / "run", dtype="bf16"))
    state = load_file(tmp_path / "run" / "encoder" / "model.safetensors")
    assert {value.dtype for name, value in state.items() if name.startswith("blocks.")} == {torch.float32}
    assert results["val_cosine"] > 0.99


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(num_latents=4), "`num_latents` has no use with `reduce`: its student is the whole teacher"),
        (dict(reuse_weights=False), "`reuse_weights` has no use with `reduce`"),
        (dict(align="set"), "`reduce` is trained by its embedding alone: leave out `align`"),
    ],
)
def test_what_is_about_a_sparseformer_is_refused(world, tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        config(world, tmp_path / "run", **changes)


def test_an_unknown_reduction_is_one_sentence(world, tmp_path):
    with pytest.raises(ValueError, match="unknown reduction 'tome'; expected tome:R or diffrate:R"):
        bootstrap(config(world, tmp_path / "run", reduce="tome"))
