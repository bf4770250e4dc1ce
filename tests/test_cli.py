"""Flags: which numbers they take. Scripts: how they end."""

import argparse
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sf_llava import cli


@pytest.mark.parametrize(
    ("number", "good", "bad"),
    [
        (
            cli.POSITIVE_INT,
            {"1": 1, "007": 7},
            ["0", "-1", "1.5", "1e3", "nan", "inf", "", "x", *("9" * digits for digits in (30, 400, 5000))],
        ),
        (cli.COUNT, {"0": 0}, ["-1", "nan"]),
        (cli.SEED, {"0": 0, "4294967295": 2**32 - 1}, ["-1", "4294967296"]),
        (cli.POSITIVE, {"1e-300": 1e-300, "2": 2.0}, ["0", "-0.0", "-1", "nan", "inf", "-inf", "1e999", "one"]),
        (cli.NON_NEGATIVE, {"0": 0.0}, ["-1e-9", "nan", "inf"]),
        (cli.FRACTION, {"0": 0.0, "1": 1.0, "0.5": 0.5}, ["1.1", "-0.1", "nan"]),
    ],
    ids=str,
)
def test_a_flag_takes_the_numbers_of_its_kind_alone(number, good, bad):
    assert {text: number(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected a"):
            number(text)


def test_values_from_elsewhere_are_held_to_the_same_bounds():
    assert cli.POSITIVE.admits(3) and cli.POSITIVE_INT.admits(3)
    for value in (True, "3", None, math.nan, 3.0):
        assert not cli.POSITIVE_INT.admits(value)


def script(tmp_path, body, arguments=(), **options):
    """Start a script whose ``main`` has this body."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    code = f"import os, signal, time\nfrom sf_llava import cli\ndef main(argv):\n{lines}\ncli.run(main)\n"
    (tmp_path / "script.py").write_text(code)
    return subprocess.Popen(
        [sys.executable, tmp_path / "script.py", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        **({"stdout": -1} | options),
    )


WAIT = """
try:
    with cli.when_stopped("three answers are kept: the same command goes on"):
        print("ready", flush=True)
        time.sleep(60)
finally:
    print("cleaned up")
""".strip()


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_stopped_script_cleans_up_and_says_what_is_kept(number, word, tmp_path):
    process = script(tmp_path, WAIT)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (out, err) == ("cleaned up\n", f"{word}: three answers are kept: the same command goes on\n")
    assert process.returncode == 128 + number


def test_an_error_after_sigterm_is_its_consequence(tmp_path):
    body = """
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except KeyboardInterrupt:
    raise RuntimeError("a data loading process ended") from None
""".strip()
    process = script(tmp_path, body)
    assert process.communicate(timeout=30) == ("", "terminated\n") and process.returncode == 143


def test_a_forked_process_that_is_terminated_ends_without_a_word(tmp_path):
    body = """
read, write = os.pipe()
if (child := os.fork()) == 0:
    os.write(write, b"ready")
    time.sleep(60)
os.read(read, 5)
os.kill(child, signal.SIGTERM)
print(os.waitpid(child, 0)[1])
""".strip()
    process = script(tmp_path, body)
    assert process.communicate(timeout=30) == (f"{signal.SIGTERM}\n", "")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("ValueError('two\\nlines')", "error: two lines (--traceback"),
        ("OSError(28, 'No space left on device', 'a/b')", "error: a/b: No space left on device (--traceback"),
        ("ImportError('No module named x')", "error: No module named x (--traceback"),
        ("MemoryError()", "error: not enough memory: MemoryError (--traceback"),
        ("KeyError('x')", "error: unforeseen KeyError in script.py, line 4: 'x' (--traceback"),
        ("AssertionError()", "error: unforeseen AssertionError in script.py, line 4: AssertionError (--traceback"),
    ],
)
def test_every_error_is_one_line_and_status_2(raised, said, tmp_path):
    process = script(tmp_path, f"raise {raised}")
    _, err = process.communicate(timeout=30)
    assert err.startswith(said) and err.count("\n") == 1 and process.returncode == 2


def test_an_empty_argument_is_a_mistake(tmp_path):
    process = script(tmp_path, "print('ran')", arguments=["--output", ""])
    out, err = process.communicate(timeout=30)
    assert err.startswith("error: the argument after --output is empty") and not out and process.returncode == 2


def test_a_warning_is_one_line(tmp_path):
    process = script(tmp_path, "import warnings\nwarnings.warn('three lines\\nare damaged')")
    assert process.communicate(timeout=30) == ("", "note: three lines are damaged\n")


def test_a_full_disk_behind_the_output_is_told(tmp_path):
    with open("/dev/full", "w") as full:
        process = script(tmp_path, "print('lost')", stdout=full, env=os.environ | {"PYTHONUNBUFFERED": ""})
        _, err = process.communicate(timeout=30)
    assert err.startswith("error: standard output: No space left on device") and process.returncode == 2


def test_a_name_that_the_terminal_cannot_show_ends_nothing(tmp_path):
    process = script(tmp_path, "print('\\udcff \\u2014')", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert process.communicate(timeout=30) == ("\\udcff \\u2014\n", "")


@pytest.mark.parametrize("hidden", [False, True])
def test_bars_of_loading_are_hidden_and_those_of_downloads_as_the_user_wants(hidden):
    code = """
import io, huggingface_hub.utils as hub, transformers
from sf_llava import cli
cli.hide_loading_bars()
for bar in (transformers.utils.logging.tqdm, hub.tqdm):
    shown = io.StringIO()
    list(bar(range(3), file=shown))
    print(bool(shown.getvalue()))
"""
    environment = dict(os.environ) | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if not hidden:
        del environment["HF_HUB_DISABLE_PROGRESS_BARS"]
    command = [sys.executable, "-W", "error", "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.stdout.split() == ["False", str(not hidden)], ended.stderr


def test_errors_name_arguments_and_a_command_says_their_flags(tmp_path):
    code = textwrap.dedent(
        """
        import argparse, warnings
        from sf_llava import cli

        def main(argv):
            parser = argparse.ArgumentParser()
            parser.add_argument("--batch-size", type=int)
            cli.parse(parser, argv)
            warnings.warn("`batch_size` is small")
            raise ValueError("raise `batch_size`, not `other_thing`")

        cli.run(main)
        """
    )
    done = subprocess.run([sys.executable, "-c", code, "--batch-size", "3"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "note: --batch-size is small" in done.stderr
    assert "error: raise --batch-size, not `other_thing`" in done.stderr


def test_library_code_names_no_flags():
    package = Path(cli.__file__).parent
    speaks = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
    files = [path for path in package.rglob("*.py") if path.parent.name not in ("commands", "demo")]
    for path in files:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            allowed = (
                path.name in ("__main__.py", "cli.py", "everything.py", "install.py", "plugins.py")
                or "pip install" in line
            )
            assert allowed or not speaks.search(line), f"{path.relative_to(package)}, line {number}: {line.strip()}"
