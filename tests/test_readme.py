"""What README and docs print runs as printed, on a reader's own LLaVA in half precision."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llava_fixtures import make_processor
from PIL import Image
from tiny_llava import make_encoder, make_llava
from tuning_fixtures import write_conversations

from sf_llava import load_llava

README = Path(__file__).resolve().parents[1] / "README.md"
TRAINING = README.parent / "docs" / "training.md"
YOUR_LLAVA = README.parent / "docs" / "your-llava.md"


def find_snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


SNIPPETS = find_snippets(README)
LINES_TO_SWAP = 25


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The reader's directory: LLaVAs and an encoder under the names that the snippets give them."""
    for name in ("llava-hf/llava-1.5-7b-hf", "path/to/llava"):
        make_llava().half().save_pretrained(tmp_path / name)
        make_processor().save_pretrained(tmp_path / name)
    make_encoder(16).save_pretrained(tmp_path / "runs" / "sf-l-64" / "encoder")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.splitlines()[0])
def test_a_snippet_runs_as_printed(reader, snippet, capsys):
    names = {"image": Image.new("RGB", (50, 40), "red")}
    exec(snippet, names)
    assert names["model"].dtype == torch.float16
    assert "ASSISTANT:" in capsys.readouterr().out
    assert type(names["model"].model.vision_tower).__name__ == "CLIPVisionModel"  # it is back


def test_the_snippets_of_your_llava_run_one_after_the_other(reader):
    names = {"image": Image.new("RGB", (50, 40), "red"), "prompt": "USER: <image>\nWhat is this?\nASSISTANT:"}
    *snippets, package = find_snippets(YOUR_LLAVA)
    assert len(snippets) == 3 and "package.install" in package  # which needs the original package
    for snippet in snippets:
        exec(snippet, names)
    assert names["record"].num_patches == 16 and names["new_tokens"].shape[0] == 1
    assert type(names["model"].model.vision_tower).__name__ == "CLIPVisionModel"
    saved, _ = load_llava("my-llava", dtype="auto")
    assert saved.dtype == torch.float16 and type(saved.model.vision_tower).__name__ == "SparseFormerModel"


def test_the_snippets_of_training_run_one_after_the_other(reader, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed (extra 'train')")
    write_conversations(tmp_path, 12)
    names: dict[str, object] = {}
    snippets = find_snippets(TRAINING)
    assert len(snippets) == 3
    for snippet in snippets:
        exec(snippet, names)
    assert callable(names["shard"])
    saved, _ = load_llava("runs/lora/llava")
    assert type(saved.model.vision_tower).__name__ == "SparseFormerModel"


def test_the_swap_stands_in_the_first_lines():
    lines = README.read_text().splitlines()
    assert len(lines) <= 90
    assert any("swapped(model, processor" in line for line in lines[:LINES_TO_SWAP])


def test_the_examples_of_contributing_run_one_after_the_other(tmp_path):
    snippets = find_snippets(README.parent / "CONTRIBUTING.md")
    ends = "assert images.load(0).size == (64, 64)\nassert MeanTokenObjective(2.0).weights == {'mean': 2.0}"
    code = "\n".join([*snippets, ends])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert len(snippets) == 3 and done.returncode == 0, done.stderr


def test_every_link_leads_somewhere():
    pages = [README, *(README.parent / "docs").glob("*.md"), README.parent / "CONTRIBUTING.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} links {target}"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("accelerators", "processes"), [(False, 2), (True, 1)])
def test_the_quickstart_runs_in_two_processes_unless_there_is_an_accelerator(tmp_path, accelerators, processes):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    (tmp_path / "torch.py").write_text(f"class accelerator:\n    is_available = lambda: {accelerators}\n")
    python.write_text(f'#!/bin/sh\ncd "{tmp_path}" && exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    command = ["make", "--dry-run", "quickstart", f"VENV={tmp_path}"]
    printed = subprocess.run(command, cwd=README.parent, capture_output=True, text=True, check=True).stdout
    training, answering = (line.split() for line in printed.splitlines() if "sf-llava" in line)
    for words in (training, answering):
        assert words[words.index("--processes") + 1] == str(processes) and "OMP_NUM_THREADS=1" in words
    assert training[-2:] == ["bootstrap", "--resume"]
    assert answering[-3:] == ["scienceqa", "run", "--positions-and-bias"]
