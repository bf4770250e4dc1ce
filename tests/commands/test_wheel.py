"""The built wheel, in an empty directory, with no package but those that it asks for."""

import os
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE_ALONE = ROOT / "tests" / "helpers" / "core_alone.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel's content, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, in which no earlier build lies
    shutil.copytree(ROOT / "sf_llava", source / "sf_llava", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *flags, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        pytest.skip(f"no wheel could be built here: {done.stderr.strip().splitlines()[-1:]}")
    (built,) = folder.glob("sf_llava-*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "content")
    return folder / "content"


def run(wheel: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(wheel), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(CORE_ALONE), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_what_commands_need_and_nothing_of_the_checkout(wheel):
    held = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    needed = ("py.typed", "demo/style.css", "mini/clip/model.safetensors", "mini/llava/model.safetensors")
    assert {f"sf_llava/{name}" for name in needed} <= held
    assert {name.split("/")[0].partition("-")[0] for name in held} == {"sf_llava"}
    assert not [name for name in held if name.startswith("sf_llava/mini/training/")]
    (entry_points,) = wheel.glob("*.dist-info/entry_points.txt")
    assert "sf-llava = sf_llava.__main__:main" in entry_points.read_text()


def test_the_default_bootstrap_and_questions_run_from_it_on_the_core_alone(wheel, tmp_path):
    trained = run(wheel, "bootstrap", "--steps", "2", "--batch-size", "8", "--val-images", "8", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "runs" / "quickstart" / "encoder" / "model.safetensors").is_file()
    asked = run(wheel, "scienceqa", "--data", "mini:8", cwd=tmp_path)
    assert asked.returncode == 0 and "swapped" in asked.stdout, asked.stderr


def test_help_takes_less_than_a_second_of_the_processor(wheel, tmp_path):
    for arguments in (["--help"], ["chat", "--help"], ["bootstrap", "--help"], ["scienceqa", "run", "--help"]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        shown = run(wheel, *arguments, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert shown.returncode == 0 and shown.stdout.startswith("usage: sf-llava")
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_an_unknown_command_lists_the_known_ones(wheel, tmp_path):
    answer = run(wheel, "bootstap", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: there is no command 'bootstap'; expected one of bootstrap, scienceqa")
