"""With a cache of the teacher and without, training is the same to the bit, and the teacher runs once."""

import errno
import json
import os
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import run_settings, save_images, save_world

from sf_llava.bootstrap import cache_plan
from sf_llava.bootstrap.cache_plan import ShownImages, plan_cache
from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.objectives.sum import HiddenStates, ObjectiveSum
from sf_llava.bootstrap.rows import SEAL_BYTES, RowFile
from sf_llava.bootstrap.run import bootstrap
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.bootstrap.teacher_cache import RowShape, TeacherCache
from sf_llava.bootstrap.trainer import Trainer
from sf_llava.bootstrap.validation import Validator
from sf_llava.bootstrap.views import View, ViewedImages
from sf_llava.data import open_images
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.transforms import BootstrapTransform, Preprocessing
from sf_llava.teachers import load_teacher
from sf_llava.teachers.base import Teacher

TOKENS, WIDTH = 5, 6


class Teaching:
    """A teacher of made-up views: hidden states are a function of the view alone; ``batches`` are those it has seen."""

    def __init__(self, directory: Path, tokens: int = TOKENS, dtype: torch.dtype = torch.float32) -> None:
        self.shape = RowShape(tokens, WIDTH, dtype)
        self.file = RowFile(directory / "rows", self.shape.num_bytes, "key")
        self.cache = TeacherCache([self.file], self.shape, torch.device("cpu"))
        self.batches: list[list[int]] = []
        self.noise = 0.0

    def states(self, numbers: list[int]) -> HiddenStates:
        def one(number: int) -> torch.Tensor:
            return torch.randn(self.shape.tokens, WIDTH, generator=torch.Generator().manual_seed(number)) + self.noise

        rows = torch.stack([one(number) for number in numbers]).to(self.shape.dtype)
        return HiddenStates(rows[:, 0].contiguous(), rows[:, 1:].contiguous() if self.shape.tokens > 1 else None)

    def ask(self, *numbers: int) -> HiddenStates:
        def look() -> HiddenStates:
            self.batches.append(list(numbers))
            return self.states(list(numbers))

        return self.cache([[View(number, b"%016d" % number) for number in numbers]], look)

    def check(self, *numbers: int) -> None:
        said, wanted = self.ask(*numbers), self.states(list(numbers))
        assert torch.equal(said.cls, wanted.cls) and said.cls.dtype == self.shape.dtype
        assert (said.tokens is None) == (self.shape.tokens == 1)
        assert said.tokens is None or torch.equal(said.tokens, wanted.tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_what_is_there_is_compared_once_and_then_read(tmp_path, tokens, dtype):
    teaching = Teaching(tmp_path, tokens, dtype)
    for numbers in [(0, 1), (2, 3), (1, 2), (3, 0), (0, 1), (4, 0), (0, 4)]:
        teaching.check(*numbers)
    assert teaching.batches == [[0, 1], [2, 3], [1, 2], [4, 0]]  # two epochs' views, a comparison, one that is new
    again = Teaching(tmp_path, tokens, dtype)
    for numbers in [(3, 4), (0, 2), (1, 3)]:
        again.check(*numbers)
    assert again.batches == [[3, 4]]


def test_a_teacher_that_says_something_else_is_found_and_believed(tmp_path):
    first, second = Teaching(tmp_path), Teaching(tmp_path)
    first.check(0, 1)
    first.cache.settle()
    second.noise = 1e-6
    second.check(1, 0)
    with pytest.warns(UserWarning, match=r"something else of a picture than .*rows holds .*`teacher_cache` none"):
        second.check(0, 1)
    second.check(0, 1)
    assert len(second.batches) == 3


def test_damaged_rows_are_named_and_computed_again(tmp_path):
    teaching = Teaching(tmp_path)
    teaching.check(0, 1)
    teaching.cache.settle()
    data = bytearray((tmp_path / "rows").read_bytes())
    data[SEAL_BYTES + 3] ^= 1
    (tmp_path / "rows").write_bytes(data)
    with pytest.warns(UserWarning, match="rows: rows are damaged, or of other pictures; they are computed again"):
        teaching.check(1, 0)
    teaching.check(0, 1)
    assert teaching.batches == [[0, 1], [1, 0]]


def test_on_a_full_disk_training_goes_on_and_what_is_there_is_still_read(tmp_path, monkeypatch):
    teaching = Teaching(tmp_path)
    teaching.check(0, 1)
    teaching.check(0, 1)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    teaching.cache.settle()
    monkeypatch.setattr(os, "pwrite", full)
    teaching.check(2, 3)
    with pytest.warns(UserWarning, match=r"No space left .* is not kept any more, training goes on"):
        teaching.check(1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for numbers in [(2, 3), (0, 1)]:
            teaching.check(*numbers)
    assert teaching.batches == [[0, 1], [0, 1], [2, 3], [2, 3]]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A directory with a tiny CLIP, 24 pictures one of which is unreadable, and a run that keeps nothing."""
    path = save_world(tmp_path_factory.mktemp("world"), 24)
    (path / "images" / "0005.png").write_bytes(b"no picture")
    validate = Validator.__call__

    def forgetful(self, student):
        self.targets.clear()
        return validate(self, student)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validator, "__call__", forgetful)
        bootstrap(settings(path, path / "without", **PLAIN, teacher_cache="none"))
    return path


PLAIN = dict(flip=0.0, crop_scale_min=1.0)


def settings(world: Path, output: Path, **changes) -> BootstrapConfig:
    """A run of two epochs of three steps, augmented unless it is ``PLAIN``."""
    numbers = dict(val_data=f"folder:{world / 'images'}", steps=6, warmup_steps=2, eval_every=4, trackers="none")
    return BootstrapConfig.of(**run_settings(world, output, **numbers) | changes)


@contextmanager
def teacher_watched(monkeypatch):
    """Count what the teacher is asked in training and in validations, and whether its words depend on the batch."""
    asked = SimpleNamespace(training=0, validation=0, is_steady=True)
    look, forward = ObjectiveSum.look, Teacher.forward

    def watched_look(self, *arguments):
        asked.training += 1
        return look(self, *arguments)

    def watched_forward(self, pixel_values):
        asked.validation += 1
        return forward(self, pixel_values)

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
        patch.setattr(ObjectiveSum, "look", watched_look)
        patch.setattr(Teacher, "forward", watched_forward)
        yield asked
    asked.is_steady = not any("says something else" in str(one.message) for one in said)


def assert_same_run(found: Path, wanted: Path) -> None:
    assert (found / "log.jsonl").read_bytes() == (wanted / "log.jsonl").read_bytes()
    weights, expected = (load_file(path / "encoder" / "model.safetensors") for path in (found, wanted))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_a_run_that_shows_pictures_again_asks_the_teacher_once_and_leaves_nothing(world, tmp_path, monkeypatch, capsys):
    with teacher_watched(monkeypatch) as asked:
        bootstrap(settings(world, tmp_path / "run", **PLAIN, workers=2))
    assert_same_run(tmp_path / "run", world / "without")
    assert asked.validation == 1  # for two validations of one batch
    assert asked.training == 4 or not asked.is_steady  # an epoch of three batches, and one to compare
    directory = tmp_path / "run" / "teacher-cache"
    said = f"{tmp_path / 'run'}: the teacher's CLS of every view, 3.5 kB, are kept in {directory}"
    assert said in capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["teacher_cached"]
    assert kept["bytes"] == 24 * (SEAL_BYTES + 32 * 4)
    assert kept["directory"] == str(directory) and len(kept["files"]) == 1
    assert not directory.exists()


def test_a_killed_run_goes_on_with_what_was_kept(world, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    step = Trainer._train_step

    def kill(self, batches):
        if self.step == 3:
            raise Killed
        return step(self, batches)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_train_step", kill)
        bootstrap(settings(world, tmp_path / "run", **PLAIN))
    (rows,) = (tmp_path / "run" / "teacher-cache").glob("*.rows")
    data = rows.read_bytes()
    rows.write_bytes(data[: len(data) - 70])  # the last row is half written
    with teacher_watched(monkeypatch) as asked:
        bootstrap(settings(world, tmp_path / "run", **PLAIN, resume=True))
    assert_same_run(tmp_path / "run", world / "without")
    assert asked.training <= 3 or not asked.is_steady  # of four: what the kill took, the lost row, one to compare


def test_students_share_augmented_views_until_a_picture_changes(world, tmp_path, monkeypatch):
    steps, shared = dict(steps=3), dict(teacher_cache=str(tmp_path / "cache"))
    for name, expected in {"first": 3, "second": 1}.items():
        with teacher_watched(monkeypatch) as asked:
            bootstrap(settings(world, tmp_path / name, **steps, **shared))
        assert asked.training == expected or not asked.is_steady
    assert_same_run(tmp_path / "second", tmp_path / "first")
    shutil.copytree(world / "images", tmp_path / "images")
    save_images(tmp_path / "other", 1, seed=7)
    shutil.copy(tmp_path / "other" / "0000.png", tmp_path / "images" / "0002.png")  # not among those that are digested
    changed = dict(data=f"folder:{tmp_path / 'images'}")
    with pytest.warns(UserWarning, match="damaged, or of other pictures"):
        bootstrap(settings(world, tmp_path / "third", **steps, **changed, **shared))
    bootstrap(settings(world, tmp_path / "alone", **steps, **changed))
    assert_same_run(tmp_path / "third", tmp_path / "alone")
    assert len(list((tmp_path / "cache").glob("*.rows"))) == 1


def test_tokens_are_kept_where_they_are_asked_for(world, tmp_path, monkeypatch, capsys):
    aligned = PLAIN | dict(align="set+readout", steps=4, micro_batch_size=4, eval_every=4)
    bootstrap(settings(world, tmp_path / "without", **aligned))
    assert "the teacher's tokens would be kept with `teacher_cache` DIR: 55.7 kB" in capsys.readouterr().out
    with teacher_watched(monkeypatch) as asked:
        bootstrap(settings(world, tmp_path / "with", **aligned, teacher_cache=str(tmp_path / "cache")))
    assert_same_run(tmp_path / "with", tmp_path / "without")
    assert asked.training == 7 or not asked.is_steady  # six micro-batches, and one to compare


@pytest.fixture
def plan(world, tmp_path):
    """Plan a cache for the world's pictures, with changes of what it depends on; give its keys."""
    RunDirectory(tmp_path / "run").path.mkdir()

    clip = load_teacher(str(world / "clip"))

    def make(
        asked="auto", count=48, transform=None, seed=0, layer=None, at_once=8, digest="data", teacher=clip, **changes
    ):
        views = transform or BootstrapTransform(teacher.preprocessing, flip=0.0, scale=None)
        images = BootstrapImages(open_images(f"folder:{world / 'images'}"), replace(views, **changes), seed)
        shown = [ShownImages(images, count, digest)]
        return plan_cache(asked, tmp_path / "run" / "cache", shown, at_once, teacher, "weights", layer, False)

    return make


def test_nothing_is_kept_where_it_is_not_wanted_or_does_not_pay(plan, tmp_path):
    assert plan("none") == (None, "") == plan(count=24) == plan(flip=0.5) == plan(scale=(0.5, 1.0))
    kept, sentence = plan(layer=-2)
    assert kept is None and "`teacher_cache` DIR" in sentence
    assert [plan(str(tmp_path), **changes)[0].num_bytes for changes in ({}, dict(flip=0.5), dict(count=8))] == [
        24 * 144, 48 * 144, 8 * 144,
    ]  # fmt: skip
    assert plan(str(tmp_path), layer=-2)[0].num_bytes == 24 * (16 + 18 * 32 * 4)


def test_what_the_bits_depend_on_has_a_file_of_its_own(plan, tmp_path, world):
    other = load_teacher(str(world / "clip"))
    other.layer_norm_eps = 1e-3
    half = load_teacher(str(world / "clip"), dtype=torch.bfloat16)
    normal = BootstrapTransform(Preprocessing(40, (0.5,) * 3, (0.5,) * 3), flip=0.0, scale=None)
    changes = [
        *({}, dict(layer=-2), dict(layer=-1), dict(at_once=4), dict(digest="others"), dict(teacher=other)),
        *(dict(teacher=half), dict(transform=normal), dict(flip=0.5), dict(flip=0.5, seed=1), dict(scale=(0.5, 1.0))),
    ]
    keys = [plan(str(tmp_path), **change)[0].keys[0] for change in changes]
    assert len(set(keys)) == len(changes)
    assert keys[0] == plan(str(tmp_path), seed=1, count=99)[0].keys[0] == plan()[0].keys[0]


def test_a_disk_without_room_is_a_sentence_before_anything_is_written(plan, tmp_path, monkeypatch):
    free = SimpleNamespace(free=6000)
    monkeypatch.setattr(cache_plan.shutil, "disk_usage", lambda _: free)
    assert plan()[1].startswith("too little of the disk is free to keep the teacher's CLS")  # 3,456 of 6,000 bytes
    assert plan(str(tmp_path / "asked"))[0] is not None
    free.free = 3000
    with pytest.raises(OSError, match=r"are kept in .*asked and 3\.0 kB are free there: .*`teacher_cache`, or none"):
        plan(str(tmp_path / "asked"))
    assert not list((tmp_path / "asked").iterdir())


def test_a_view_is_known_by_its_pixels_and_numbered_through_the_epochs_only_where_it_is_drawn(world):
    source = open_images(f"folder:{world / 'images'}")
    preprocessing = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
    plain, drawn = (
        ViewedImages(BootstrapImages(source, BootstrapTransform(preprocessing, flip, None), 0)) for flip in (0.0, 1.0)
    )
    assert [plain[epoch, 3]["view"].number for epoch in (0, 2)] == [3, 3]
    assert [drawn[epoch, 3]["view"].number for epoch in (0, 2)] == [3, 51]
    assert plain[0, 3]["view"] == plain[1, 3]["view"] and plain[0, 3]["view"].digest != drawn[0, 3]["view"].digest
    assert plain[0, 5]["view"] == View(5, plain[0, 6]["view"].digest)  # unreadable: the next stands for it
