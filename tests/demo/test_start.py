"""The demo started as a user does: its address, answers of both towers, a quiet end; one sentence for odd flags."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed (pip install -e .[demo])")
gradio_client = pytest.importorskip("gradio_client")

ROOT = Path(__file__).resolve().parents[2]
START = [sys.executable, str(ROOT / "demo" / "chat.py")]


ONE_AFTER_THE_OTHER = """
import json, runpy, sys
script, commands = sys.argv[1], json.loads(sys.argv[2])
for flags in commands:
    sys.argv, status = [script, *flags], 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code
    print("\\nended with", status, file=sys.stderr)
"""
"""Runs a script again and again in one process, which imports what it needs once."""


def surroundings(folder: Path) -> dict[str, str]:
    """An environment with a folder of its own for temporary files, and a proxy that is not to be asked."""
    nobody = "http://127.0.0.1:9"
    own = {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "http_proxy": nobody}
    return os.environ | own


@pytest.fixture
def start(tmp_path, llava_dir, encoder_dirs):
    """Start the demo; the process, and the address it prints."""
    started = []

    def start(*flags: str) -> tuple[subprocess.Popen, str]:
        command = [*START, "--model", str(llava_dir), "--encoder", str(encoder_dirs[0]), "--device", "cpu", *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=surroundings(tmp_path), cwd=tmp_path, **pipes)
        started.append(process)
        stuck = threading.Timer(120, process.kill)
        stuck.start()
        line = process.stdout.readline()
        stuck.cancel()
        assert line.startswith("open http://"), line + process.stderr.read()
        return process, line.split()[1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_answers_through_both_towers_and_ends_quietly(end, start, tmp_path, picture_files, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    process, url = start()
    client = gradio_client.Client(url, verbose=False)
    message = {"text": "Which shape is red?", "files": [gradio_client.handle_file(picture_files[0])]}
    answers = client.predict(message, "both", True, 0, 8, 16, api_name="/ask")[3]["answers"]
    assert [answer["num_tokens"] for answer in answers.values()] == [8, 8] and all(a["text"] for a in answers.values())
    assert list(tmp_path.glob("sf_llava_*/uploads/*/*.png"))
    client.submit(message, "both", True, 1, 200, 16, api_name="/ask")  # the end comes in the middle of an answer
    process.send_signal(end)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + end and not out
    assert err.strip() == ("interrupted" if end == signal.SIGINT else "terminated")
    assert not list(tmp_path.glob("sf_llava_*"))
    client.close()


@pytest.mark.slow
def test_a_second_demo_takes_the_next_free_port(start):
    (_, first), (_, second) = start(), start("--host", "localhost")
    assert first != second and second.startswith("http://localhost:")


@pytest.mark.slow
def test_odd_flags_are_one_sentence(tmp_path):
    (tmp_path / "nothing").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        odd = {
            ("--port", "0"): "1 to 65,535",
            ("--port", "99999"): "1 to 65,535",
            ("--port", str(taken.getsockname()[1])): "already in use",
            ("--host", "no.such.host.invalid"): "no name or address of this machine",
            ("--host", ""): "the argument after --host is empty",
            ("--host", "203.0.113.1"): "cannot listen",
            ("--seed", "9" * 30): "a whole number from 0",
            ("--proxy-name", "https://demo.example/"): "no name of a server",
            ("--model", str(tmp_path / "nothing")): "no LLaVA at",
            ("--model", str(tmp_path / "none")): "no LLaVA at",
            ("--encoder", str(tmp_path / "nothing")): "no encoder at",
        }
        driver = [sys.executable, "-c", ONE_AFTER_THE_OTHER, START[1], json.dumps(list(odd))]
        done = subprocess.run(driver, env=surroundings(tmp_path), capture_output=True, text=True, timeout=240)
    said = re.findall(r"(.*?)\nended with (\w+)\n", done.stderr, flags=re.DOTALL)
    for (err, status), (flags, words) in zip(said, odd.items(), strict=True):
        assert status == "2" and "Traceback" not in err, (flags, err)
        assert words in err.strip().splitlines()[-1], flags
    assert not list(tmp_path.glob("sf_llava_*"))
