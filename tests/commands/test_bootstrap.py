"""bootstrap_clip.py and its neighbours from outside: odd flags, signals, data processes that die or stand still."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import run_settings, save_world

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.run import bootstrap
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.data import loading
from sf_llava.files import writing

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ODD = ["nan", "inf", "-1", "1e999", "", "x"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"), 20)


def settings(world: Path, output: Path, **changes) -> dict:
    numbers = dict(val_data=f"folder:{world / 'images'}", steps=40, warmup_steps=0, batch_size=4, eval_every=40)
    return run_settings(world, output, log_every=1, save_every=1, val_images=4, **numbers) | changes


@pytest.mark.parametrize(
    ("script", "command", "flags"),
    [
        ("bootstrap_clip", [], ["--lr", "--clip-norm", "--batch-size", "--steps", "--epochs", "--seed", "--workers",
                                "--keep-checkpoints", "--log-every", "--beta1", "--flip", "--num-latents"]),
        ("train_mini", ["clip"], ["--steps", "--batch-size", "--seed", "--threads"]),
        ("reproduce", [], ["--steps", "--seeds", "--seed", "--batch-size", "--lr", "--threads"]),
        ("swap_table", [], ["--num-latents", "--seeds", "--questions", "--pictures", "--continued-steps", "--threads"]),
        ("benchmark", ["ops"], ["--batch-size", "--repeats", "--seed"]),
        ("visualize", [], ["--num-images", "--seed"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_odd_numbers_are_refused_before_anything_is_made(script, command, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(SCRIPTS / f"{script}.py"))["main"]
    for flag in flags:
        for number in ODD:
            with pytest.raises(SystemExit) as ended:
                main([*command, f"{flag}={number}"])
            assert ended.value.code == 2
            assert f"argument {flag}: expected a" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_stopped_run_says_what_is_kept_and_resumes(world, tmp_path, number, code, word):
    arguments = [
        part for name, value in settings(world, tmp_path / "run").items()
        for part in ("--" + name.replace("_", "-"), str(value))
    ]  # fmt: skip
    command = [sys.executable, SCRIPTS / "bootstrap_clip.py", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    run = RunDirectory(tmp_path / "run")
    while process.poll() is None and not run.checkpoint_paths():
        time.sleep(0.01)
    process.send_signal(number)
    last = process.communicate()[1].strip().splitlines()[-1]
    assert process.returncode == code
    assert (
        last
        == f"{word}: what {run.path} holds is whole; the same command with --resume goes on from the newest checkpoint"
    )
    assert not (run.path / ".lock").exists()
    step = int(run.checkpoint_paths()[0].name[5:])
    with pytest.raises(ValueError, match="steps was 40 and is 41"):
        bootstrap(BootstrapConfig.of(**settings(world, run.path, steps=41, resume=True)))
    assert bootstrap(BootstrapConfig.of(**settings(world, run.path, resume=True)))["step"] == 40 > step


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_data_process_that_stands_still_or_dies_ends_the_run_in_a_sentence(world, tmp_path, monkeypatch, number):
    monkeypatch.setattr(loading, "LOOK_EVERY", 1)
    log = RunDirectory.log

    def disturb(self, record):
        log(self, record)
        if record["step"] == 3:
            for child in multiprocessing.active_children():
                os.kill(child.pid, number)

    monkeypatch.setattr(RunDirectory, "log", disturb)
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match=r"data loading process.*`workers`.*`resume`"):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "run", workers=1)))
    assert time.monotonic() - begun < 60
    assert not multiprocessing.active_children()


def test_a_data_process_that_dies_at_any_moment_is_told_so(world, tmp_path, monkeypatch):
    def die(trainer):  # torch raises from a signal's handler, wherever this process is
        with writing(tmp_path / "checkpoint"):
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("sf_llava.bootstrap.run._train", die)
    with pytest.raises(RuntimeError, match=r"a data loading process ended \(.*Killed.*\).*`workers`.*`resume`"):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "run")))


def test_what_is_known_of_a_lost_process_is_said_also_where_torch_interrupts(world, tmp_path, monkeypatch):
    def die(trainer):
        try:
            raise loading.LoadingError("data loading processes were stopped from outside: fewer `workers` need less")
        finally:  # torch's handler of the signal runs while that is on its way
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("sf_llava.bootstrap.run._train", die)
    with pytest.raises(RuntimeError, match=r"stopped from outside.*`workers`.*`resume`"):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path / "run")))


def test_more_pixels_than_memory_are_refused(world, tmp_path):
    with pytest.raises(ValueError, match=r"1,048,576 images of 8192 pixels at once take .* GB"):
        bootstrap(BootstrapConfig.of(**settings(world, tmp_path, batch_size=2**20, image_size=8192)))


def test_fewer_images_than_a_batch_train(world, tmp_path):
    results = bootstrap(BootstrapConfig.of(**settings(world, tmp_path, batch_size=64, steps=2)))
    assert results["step"] == 2
