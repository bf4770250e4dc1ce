"""Modules of version 0.1 under their old names."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from sf_llava.moved import MOVED

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("old", [*MOVED, "plugin.swapping", "plugin.positions", "plugin.hooks"])
def test_an_old_name_warns_and_is_the_module_of_today(old):
    new = MOVED.get(old) or old.replace("plugin", "llava")
    if new == "llava.package.install":
        pytest.importorskip("llava", reason="the llava package is not installed (it runs in its overlay)")
    today = importlib.import_module(f"sf_llava.{new}")
    sys.modules.pop(f"sf_llava.{old}", None)  # as at its first import
    with pytest.warns(DeprecationWarning, match=rf"sf_llava\.{old} is sf_llava\.{new} now"):
        assert importlib.import_module(f"sf_llava.{old}") is today
    assert today.__name__ == today.__spec__.name == f"sf_llava.{new}"


def test_what_used_to_be_imported_is_imported(tmp_path):
    code = "\n".join(
        [
            "from sf_llava.plugin import encode_prompts, generate_in_place, restore, swap",
            "from sf_llava.plugin.towers import POOLED, tower_in_place",
            "from sf_llava.checkpoints.llava import load_llava",
            "from sf_llava.checkpoints.encoder import load_encoder",
            "from sf_llava.data.scienceqa import ask, open_scienceqa, read_predictions",
            "from sf_llava.data.captions import open_captions",
            "from sf_llava.evaluation.task import find_class_set, match_labels",
            "from sf_llava.metrics.zero_shot import label_ranks",
            "import sys",
            f"sys.path.append({str(ROOT / 'demo')!r})",
            "from conversation import Answer, Turn",
            "from engine import Engine, Sampling",
            "from uploads import accept",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
