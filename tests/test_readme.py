"""What the README prints runs as printed, on a reader's own LLaVA in half precision."""

import re
from pathlib import Path

import pytest
import torch
from llava_fixtures import make_processor
from PIL import Image
from tiny_llava import make_encoder, make_llava

README = Path(__file__).resolve().parents[1] / "README.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
LINES_TO_SWAP = 25


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The reader's directory: a LLaVA under its hub name, an encoder under its run's, as the snippets name them."""
    where = tmp_path / "llava-hf" / "llava-1.5-7b-hf"
    make_llava().half().save_pretrained(where)
    make_processor().save_pretrained(where)
    make_encoder(16).save_pretrained(tmp_path / "runs" / "sf-l-64" / "encoder")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.splitlines()[0])
def test_a_snippet_runs_as_printed(reader, snippet, capsys):
    names = {"image": Image.new("RGB", (50, 40), "red")}
    exec(snippet, names)
    assert names["model"].dtype == torch.float16
    assert "ASSISTANT:" in capsys.readouterr().out
    assert type(names["model"].model.vision_tower).__name__ == "CLIPVisionModel"  # it is back


def test_the_swap_stands_in_the_first_lines():
    lines = README.read_text().splitlines()
    assert len(lines) <= 90
    assert any("swapped(model, processor" in line for line in lines[:LINES_TO_SWAP])


def test_every_link_leads_somewhere():
    pages = [README, *(README.parent / "docs").glob("*.md"), README.parent / "CONTRIBUTING.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} links {target}"
