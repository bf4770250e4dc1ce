"""Curves reach the trackers that were asked for, go on where a killed run goes on, and tell how fast it is."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tiny import run_settings, save_world

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.pace import Pace
from sf_llava.bootstrap.progress import Progress
from sf_llava.bootstrap.run import bootstrap
from sf_llava.bootstrap.trackers import choose_trackers

STEPS = dict(steps=4, warmup_steps=1, batch_size=4, val_images=4, eval_every=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return save_world(tmp_path_factory.mktemp("world"), 16)


def run(world, output, **changes):
    return bootstrap(BootstrapConfig.of(**run_settings(world, output, **(STEPS | changes))))


def test_tensorboard_holds_the_log_and_the_speed_from_the_first_line(world, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="reads the curves")
    run(world, tmp_path)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    accumulator = events.EventAccumulator(str(folder))
    accumulator.Reload()
    curves = {
        name: [(one.step, one.value) for one in accumulator.Scalars(name)] for name in accumulator.Tags()["scalars"]
    }
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    assert dict(curves["loss"]) == pytest.approx(dict(logged)) and [step for step, _ in logged] == [2, 4]
    assert [step for step, _ in curves["images_per_second"]] == [2, 4]
    assert all(value > 0 for _, value in curves["images_per_second"])
    assert all(0 < value < 1 for _, value in curves["waiting_for_data"])
    assert not any("second" in name or "wait" in name for line in lines for name in line)  # equal runs, equal logs


def test_no_tracker_writes_nothing(world, tmp_path):
    run(world, tmp_path, trackers="none")
    assert not (tmp_path / "tensorboard").exists() and not (tmp_path / "tracking.json").exists()


TELL = """
import json, sys
from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.run import bootstrap
bootstrap(BootstrapConfig.of(**json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_other_trackers_know_a_resumed_run_as_the_same(world, tmp_path, name):
    pytest.importorskip(name, reason="an optional tracker")
    settings = run_settings(world, tmp_path / "run", trackers=name, resume=True, **STEPS)
    local = {
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"file:{tmp_path}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }

    def tell():
        command = [sys.executable, "-c", TELL, json.dumps(settings)]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | local, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "run" / "tracking.json").read_text())

    first = tell()
    (tmp_path / "run" / "results.json").unlink()  # as if killed before the end
    assert tell() == first


def test_trackers_are_chosen_by_name(monkeypatch):
    monkeypatch.setattr("sf_llava.bootstrap.trackers.is_installed", lambda module: False)
    assert choose_trackers("auto") == choose_trackers("none") == []
    monkeypatch.setattr("sf_llava.extras.is_installed", lambda module: module != "wandb")
    assert choose_trackers("mlflow, tensorboard,mlflow") == ["mlflow", "tensorboard"]
    with pytest.raises(
        ValueError, match="unknown tracker 'comet'; known: auto, none, tensorboard, wandb, mlflow, trackio"
    ):
        choose_trackers("comet")
    with pytest.raises(ModuleNotFoundError, match=r"tracking with wandb needs wandb.*sf_llava\[wandb\]"):
        choose_trackers("wandb")


def test_the_first_step_is_left_out_of_the_pace():
    pace = Pace(batch_size=8, workers=2)
    pace.add(100, 99)
    assert pace.images_per_second == 0.08 and pace.waiting == 0.99  # all there is
    pace.add(2, 1)
    pace.add(2, 0)
    assert pace.images_per_second == 4 and pace.waiting == 0.25
    pace.restart()
    pace.add(4, 0)
    assert pace.images_per_second == 2 and pace.waiting == 0


@pytest.mark.parametrize(
    ("workers", "waited", "wanted"),
    [(2, 1.5, 8), (0, 1, 1), (0, 1.9, 19), (4, 0.5, 5.33)],  # of steps of two seconds
)
def test_as_many_workers_are_advised_as_give_a_batch_while_a_step_computes(workers, waited, wanted, monkeypatch):
    pace = Pace(batch_size=8, workers=workers)
    pace.add(2, waited)
    assert pace.wanted_workers == pytest.approx(wanted, abs=0.01)
    monkeypatch.setattr("sf_llava.bootstrap.pace.share_of_cores", lambda: 4)
    assert ("but there are cores for 4" in pace.advice()) == (wanted > 4)
    assert f"(there are {workers})" in pace.advice()


def test_a_run_is_told_once_that_it_is_fed_and_once_that_it_starves(capsys, monkeypatch):
    accelerator = SimpleNamespace(is_main_process=True, log=lambda *values, **step: None)
    run = SimpleNamespace(log=lambda record: None)
    for name in ("start_trackers", "finish_trackers"):
        monkeypatch.setattr(f"sf_llava.bootstrap.progress.{name}", lambda *nothing: None)
    monkeypatch.setattr("sf_llava.bootstrap.pace.share_of_cores", lambda: 16)
    with Progress(run, accelerator, 5, 0, 8, 3) as progress:
        for step, waited in enumerate((1.9, 0.1, 0.1, 1.5, 1.5), 1):  # the first step starts processes
            progress.advance(2, waited)
            progress.log(step, {"loss": 1.0}, 0.1)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert said == [
        "step 2: data loading keeps up (`workers` 3): 5% of the time is spent waiting for data",
        "step 4: 75% of the time is spent waiting for data: about 12 `workers` would keep up (there are 3)",
    ]
