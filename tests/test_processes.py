"""``sf-llava --processes N``: the work is shared, and its end is told in the command's own words alone."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from sf_llava import __main__, processes
from sf_llava.files import read_json

QUESTIONS = shlex.split("scienceqa run --data mini:64 --batch-size 8 --towers original --device cpu --dtype fp32")
TRAINING = shlex.split("bootstrap --steps 400 --batch-size 4 --val-images 8 --device cpu --threads 1")


def start(folder, *command):
    arguments = [sys.executable, "-m", "sf_llava", "--processes", "2", *command]
    end = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    return subprocess.Popen(arguments, cwd=folder, **end)


def test_questions_are_shared_and_all_are_answered(tmp_path):
    child = start(tmp_path, *QUESTIONS)
    out, _ = child.communicate(timeout=240)
    assert child.returncode == 0, out
    assert read_json(tmp_path / "runs" / "scienceqa" / "results.json")["scores"]["original"]["missing"] == 0


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_run_that_is_stopped_says_so_once(number, status, word, tmp_path):
    child = start(tmp_path, *TRAINING, "--output", "run", "--save-every", "5")
    try:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "run" / "checkpoints").glob("step-*")) and time.monotonic() < deadline:
            assert child.poll() is None, child.stdout.read()
            time.sleep(0.2)
        os.killpg(child.pid, number) if number == signal.SIGINT else child.send_signal(number)
        out, _ = child.communicate(timeout=60)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == status, out
    assert read_json(tmp_path / "run" / "config.json")["num_processes"] == 2
    assert out.count("the same command with --resume goes on") == out.count(f"{word}: what run holds is whole") == 1
    assert "Traceback" not in out and "torch/distributed" not in out and "want of memory" not in out


def test_a_mistake_is_told_by_the_command_and_is_its_status(tmp_path):
    child = start(tmp_path, "bootstrap", "--data", "folder:nowhere", "--output", "run")
    out, _ = child.communicate(timeout=120)
    assert child.returncode == 2
    assert "there is no such folder" in out and "Traceback" not in out and "torch/distributed" not in out


def test_a_process_that_is_killed_ends_the_others_and_is_named(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\nif os.environ.get('RANK') == '1':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "sf_llava", "--processes", "2", *TRAINING]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGKILL
    assert "error: process 1 of 2 was ended by SIGKILL, perhaps for want of memory" in done.stderr


@pytest.mark.parametrize("given", [[], ["0", "bootstrap"], ["two", "bootstrap"], ["-1", "bootstrap"], ["1025"]])
def test_other_numbers_are_refused(given, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sf-llava", "--processes", *given])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 2 and "--processes takes a number from 1 to 1024, not" in capsys.readouterr().err


def test_an_unknown_command_is_refused_before_any_process_starts(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sf-llava", "--processes", "2", "train"])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 2 and "there is no command 'train'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["chat"], ["export", "onnx"], ["segment", "eval"], ["scienceqa", "score"]])
def test_a_command_that_would_be_done_twice_is_refused(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sf-llava", "--processes", "2", *command])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 2 and f"error: {command[0]}" in (said := capsys.readouterr().err)
    assert "is done by one process: leave out --processes" in said


@pytest.mark.parametrize("command", [["scienceqa"], ["scienceqa", "--limit", "3"], ["bootstrap", "--resume"]])
def test_a_command_without_its_part_is_shared(command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sf-llava", "--processes", "2", *command])
    monkeypatch.setattr(processes, "run_in_processes", lambda count, given: 40 + count if given == command else 1)
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 42
