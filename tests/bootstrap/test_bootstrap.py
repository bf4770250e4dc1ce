"""Whole runs of bootstrap_clip.py: freezing, exact resumption, several processes, bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import run_settings, save_images, save_world

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.run import bootstrap, make_accelerator
from sf_llava.model.loading import load_encoder
from sf_llava.teachers import load_teacher

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bootstrap_clip.py"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A directory with a tiny CLIP and sixty pictures."""
    return save_world(tmp_path_factory.mktemp("world"), 60)


def settings(world: Path, output: Path, **changes) -> dict:
    return run_settings(world, output, steps=12, warmup_steps=4, eval_every=6) | changes


def flags(world: Path, output: Path, **changes) -> list[str]:
    arguments = []
    for name, value in settings(world, output, **changes).items():
        flag = "--" + name.replace("_", "-")
        arguments += [flag] if value is True else [flag, str(value)]
    return arguments


def launch(*arguments: str, module: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [sys.executable, *module, SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def read_log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_learns_and_leaves_everything_it_promises(world, tmp_path):
    results = bootstrap(BootstrapConfig.of(**settings(world, tmp_path, steps=30)))
    losses = [line["loss"] for line in read_log(tmp_path) if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert results["val_cosine"] > 0.5
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert len(list((tmp_path / "rois").glob("*.png"))) == 5
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert list((tmp_path / "tensorboard").iterdir())
    assert load_encoder(tmp_path).config.num_latents == 4


def test_frozen_weights_stay_the_teachers_bit_for_bit(world, tmp_path):
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path)))
    student, teacher = load_encoder(tmp_path), load_teacher(str(world / "clip"))
    for name, value in teacher.block_state_dict(2).items():
        assert torch.equal(student.cortex[1].get_parameter(name), value), name
    for name, value in teacher.head_state_dict().items():
        assert torch.equal(student.get_parameter(name), value), name
    tuned = teacher.block_state_dict(1)["attn.qkv.weight"]
    assert not torch.equal(student.cortex[0].attn.qkv.weight, tuned)


def test_warm_up_leaves_all_inherited_weights_untouched(world, tmp_path):
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path, steps=4)))
    student, teacher = load_encoder(tmp_path), load_teacher(str(world / "clip"))
    for index in (1, 2):
        for name, value in teacher.block_state_dict(index).items():
            assert torch.equal(student.cortex[index - 1].get_parameter(name), value), name


def test_resuming_inside_a_run_equals_never_stopping(world, tmp_path):
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "whole", keep_checkpoints=10)))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in sorted((tmp_path / "cut" / "checkpoints").iterdir())[3:]:
        shutil.rmtree(path)
    shutil.rmtree(tmp_path / "cut" / "encoder")
    (tmp_path / "cut" / "results.json").unlink()
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "cut", resume=True, keep_checkpoints=10)))
    assert read_log(tmp_path / "cut") == read_log(tmp_path / "whole")
    whole, cut = (load_file(tmp_path / name / "encoder" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def test_two_processes_equal_one_with_the_doubled_batch(world, tmp_path):
    for seed, name in enumerate(("circle", "heart", "star")):
        save_images(tmp_path / "classes" / name, 30, seed=seed)  # zero-shot deals 64 to one process, 26 to the other
    labelled = dict(teacher="mini", val_data=f"folder:{tmp_path / 'classes'}")
    one = bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "one", **labelled)))
    two = launch(
        *flags(world, tmp_path / "two", **labelled),
        module=("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"),
    )
    assert two.returncode == 0, two.stderr
    for expected, line in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert line == pytest.approx(expected, abs=2e-5)
    shared = json.loads((tmp_path / "two" / "results.json").read_text())["zero_shot"]
    assert shared["num_images"] == one["zero_shot"]["num_images"] == 90
    assert shared["per_class"] == one["zero_shot"]["per_class"]
    assert shared["comparisons"][0]["cosine"] == pytest.approx(one["zero_shot"]["comparisons"][0]["cosine"], abs=2e-5)


def test_accumulated_micro_batches_equal_one_batch(world, tmp_path):
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "whole")))
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "parts", micro_batch_size=4)))
    for expected, line in zip(read_log(tmp_path / "whole"), read_log(tmp_path / "parts"), strict=True):
        assert line == pytest.approx(expected, abs=2e-5)


def test_a_student_continues_with_more_latents_and_pixels(world, tmp_path):
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "small")))
    changes = dict(stage="continue", init_from=str(tmp_path / "small"), num_latents=9, image_size=48, steps=4)
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "large", **changes)))
    config = load_encoder(tmp_path / "large").config
    assert (config.num_latents, config.image_size) == (9, 48)
    first = next(line for line in read_log(tmp_path / "large") if "loss" in line)
    assert first["loss"] < 0.5 * read_log(tmp_path / "small")[0]["loss"]


@pytest.mark.parametrize(
    "changes", [dict(reuse_weights=False), dict(num_truncated=0, num_tunable=0), dict(num_tunable=2)]
)
def test_ablations_run(world, tmp_path, changes):
    results = bootstrap(BootstrapConfig.of(**settings(world, tmp_path, steps=2, **changes)))
    assert results["inheritance"]["reused"] == changes.get("reuse_weights", True)


def test_corrupt_images_are_named_in_the_log(world, tmp_path):
    shutil.copytree(world / "images", tmp_path / "images")
    (tmp_path / "images" / "0007.png").write_bytes(b"not an image")
    (tmp_path / "images" / "0009.png").write_bytes((world / "images" / "0009.png").read_bytes()[:200])
    results = bootstrap(
        BootstrapConfig.of(**settings(world, tmp_path / "run", data=str(tmp_path / "images"), val_images=1))
    )
    named = [name for line in read_log(tmp_path / "run") for name in line.get("skipped_images", [])]
    assert [any(part in name for name in named) for part in ("0007.png", "0009.png")] == [True, True]
    assert results["skipped_images"] == sorted(named)


def flat(**asked):
    """All values of a configuration by their flat names."""
    return SimpleNamespace(**BootstrapConfig.of(**asked).to_dict())


def test_recipes_hold_the_papers_numbers():
    config = flat(teacher="open_clip:x/y", data="folder:x")
    assert (config.epochs, config.warmup_epochs, config.lr, config.flip) == (20, 1, 2e-4, 0.5)
    assert (config.crop_scale_min, config.crop_ratio_max, config.inherited_lr_scale) == (0.5, 4 / 3, 0.1)
    config = flat(teacher="open_clip:x/y", data="folder:x", stage="continue", init_from="x")
    assert (config.epochs, config.warmup_epochs, config.lr) == (5, 0, 5e-5)
    config = flat(teacher="open_clip:x/y", data="folder:x", stage="scienceqa", init_from="x")
    assert (config.steps, config.flip, config.crop_scale_min) == (1000, 0, 1)


def test_tokens_are_aligned_from_images_alone_by_default_and_none_is_the_papers_loss():
    aligned, paper = flat(), flat(align="none")
    assert (aligned.align, paper.align) == ("set=0.3+readout=1+position=1", None)
    assert aligned.steps * aligned.batch_size == paper.steps * paper.batch_size  # as many pictures
    assert (paper.num_tunable, paper.inherited_lr_scale) == (None, 0.1)
    real = flat(teacher="open_clip:x/y", data="folder:x")
    assert (real.align, real.num_tunable, real.inherited_lr_scale) == (aligned.align, None, 0.1)
    assert (aligned.num_tunable, flat(num_truncated=5).num_tunable) == (3, None)
    asked = dict(stage="scienceqa", init_from="x")
    aligned, paper = flat(**asked), flat(**asked, align="none")
    assert aligned.steps * aligned.batch_size == paper.steps * paper.batch_size
    assert (aligned.num_tunable, paper.num_tunable) == (3, None)


def test_both_teachers_of_the_drawn_world_have_its_recipe_but_one_has_a_llava():
    clip, siglip = flat(), flat(teacher="mini-siglip")
    assert vars(siglip) | {"teacher": "mini"} == vars(clip)
    asked = dict(stage="scienceqa", init_from="x", teacher="mini-siglip")
    assert flat(**asked, align="none").data == "mini:diagrams"
    with pytest.raises(ValueError, match="`align` llm or placed needs `llava`"):
        flat(**asked, align="llm")


def test_a_users_number_wins_over_the_recipe():
    config = flat(teacher="open_clip:x/y", data="folder:x", epochs=3, lr=1e-3)
    assert (config.epochs, config.steps, config.lr) == (3, None, 1e-3)


def test_unknown_fields_are_refused_and_the_valid_ones_listed():
    with pytest.raises(ValueError, match=r"unknown field\(s\) num_latens; valid: .*num_latents"):
        BootstrapConfig.of(num_latens=3)


def test_a_change_of_what_was_asked_is_completed_anew():
    config = BootstrapConfig.of(num_latents=8, steps=7).but(stage="scienceqa", init_from="x", steps=None)
    assert (config.student.num_latents, config.optimiser.steps, config.data.data) == (8, 880, "mini:diagrams")
    assert BootstrapConfig.of(**config.asked) == config


FIELDS = {
    *("stage", "teacher", "output", "resume", "seed", "device", "dtype", "workers", "threads"),
    *("log_every", "trackers", "eval_every", "save_every", "keep_checkpoints", "teacher_cache"),
    *("data", "val_data", "classes", "val_images", "flip", "crop_scale_min", "crop_ratio_max"),
    *("init_from", "reduce", "num_latents", "elastic", "tiles", "image_size", "num_truncated", "num_tunable"),
    *("reuse_weights", "gradient_checkpointing", "attention"),
    *("loss", "temperature", "class_loss_weight", "align", "align_layer", "llava", "questions"),
    *("epochs", "steps", "warmup_epochs", "warmup_steps", "batch_size", "micro_batch_size", "llm_batch_size"),
    *("lr", "inherited_lr_scale", "weight_decay", "beta1", "beta2", "clip_norm"),
}
"""What ``config.json`` has held since version 0.1, trackers and teacher_cache, which may differ, elastic, tiles and
reduce, None in all earlier runs: with other names, an earlier run could not be resumed."""


def test_the_configuration_of_a_run_is_flat_and_that_of_earlier_versions():
    values = BootstrapConfig.of().to_dict()
    assert values.keys() == FIELDS
    assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(teacher="clip9000"), "unknown teacher"),
        (dict(data="folder:/nowhere"), "nowhere"),
        (dict(data="imagnet"), "unknown data set"),
        (dict(init_from="/nowhere"), "no encoder at /nowhere"),
        (dict(stage="scienceqa"), "`init_from`"),
        (dict(num_truncated=9), "9 truncated blocks"),
        (dict(num_latents=-1), "`num_latents`: expected a whole number from 1"),
        (dict(image_size=-4), "`image_size`: expected a whole number from 1"),
        (dict(batch_size=7, micro_batch_size=4), "not a multiple"),
        (dict(dtype="fp16"), "fp16 does not train on a CPU"),
        (dict(flip=3.0), "`flip`: expected a number from 0 to 1, not 3.0"),
        (dict(lr=float("nan")), "`lr`: expected a number above 0, not nan"),
        (dict(clip_norm=float("inf")), "`clip_norm`: expected a number above 0, not inf"),
        (dict(keep_checkpoints=-1), "`keep_checkpoints`: expected a whole number from 1 "),
        (dict(keep_checkpoints=0), "`keep_checkpoints`: expected a whole number from 1 "),
        (dict(seed=-1), "`seed`: expected"),
        (dict(save_every=0), "`save_every`: expected"),
        (dict(batch_size=10**9), "`batch_size`: expected"),
    ],
)
def test_bad_input_is_one_sentence(world, tmp_path, changes, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "run", **changes)))


def test_the_script_ends_in_one_line_and_status_2(world, tmp_path):
    (tmp_path / "empty").mkdir()
    done = launch(*flags(world, tmp_path / "run", data=f"folder:{tmp_path / 'empty'}"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "empty") in done.stderr.strip().splitlines()[-1]


def test_a_run_is_not_overwritten_and_a_changed_one_not_resumed(world, tmp_path):
    bootstrap(BootstrapConfig.of(**settings(world, tmp_path, steps=2)))
    with pytest.raises(ValueError, match="already holds a run"):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path, steps=2)))
    with pytest.raises(ValueError, match=r"lr was 0\.001 and is 0\.5"):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path, steps=2, lr=0.5, resume=True)))


def test_no_space_left_keeps_what_is_written(world, tmp_path, monkeypatch):
    from accelerate import Accelerator

    original = Accelerator.save_state

    def full_at_step_6(self, path, **kwargs):
        if "0000006" in str(path):
            raise OSError(28, "No space left on device")
        return original(self, path, **kwargs)

    monkeypatch.setattr(Accelerator, "save_state", full_at_step_6)
    with pytest.raises(OSError, match="No space left"):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path)))
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-0000002", "step-0000004"]
    monkeypatch.setattr(Accelerator, "save_state", original)
    assert bootstrap(BootstrapConfig.of(**settings(world, tmp_path, resume=True)))["val_cosine"] > 0


def test_one_process_bootstraps_in_one_precision_after_another():
    for dtype, precision in (("fp32", "no"), ("bf16", "bf16"), ("fp32", "no")):
        assert make_accelerator(BootstrapConfig.of(device="cpu", dtype=dtype).run).mixed_precision == precision


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Twelve pictures in each of three named folders: a labelled data set."""
    path = tmp_path_factory.mktemp("classes")
    for seed, name in enumerate(("circle", "heart", "star")):
        save_images(path / name, 12, seed=seed)
    return path


@pytest.mark.parametrize("changes", [dict(loss="kl", temperature=5.0), dict(class_loss_weight=0.5)])
def test_losses_on_classes_train_where_classes_are_known(world, classes, tmp_path, changes):
    folder = f"folder:{classes}"
    changes |= dict(teacher="mini", data=folder, val_data=folder, steps=20)
    results = bootstrap(BootstrapConfig.of(**settings(world, tmp_path, **changes)))
    losses = [line["loss"] for line in read_log(tmp_path) if "loss" in line]
    assert losses[-1] < losses[0]
    assert results["zero_shot"]["num_images"] == 36
    assert 0 <= results["val_top1"] <= 1


def test_losses_on_classes_ask_for_classes(world, tmp_path):
    with pytest.raises(ValueError, match="`val_data`"):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path, loss="kl")))
    with pytest.raises(ValueError, match="test images only"):
        changes = dict(teacher="mini", data="mini", val_data="mini", class_loss_weight=1.0)
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path, **changes)))
