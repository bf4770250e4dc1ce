"""Names of teachers: what each means, and what an unknown one is answered."""

import subprocess
import sys

import pytest
import torch

from sf_llava.mini import MINI_CLIP_DIR
from sf_llava.mini.registration import made
from sf_llava.teachers import load_teacher


@pytest.mark.parametrize("name", ["clip", "siglip:ViT-B-16", "openai/clip-vit-large-patch14", ""])
def test_an_unknown_name_lists_what_is_valid(name):
    with pytest.raises(ValueError, match=r"unknown teacher .*open_clip:MODEL/TAG.*transformers:ID_OR_DIR.*timm:MODEL"):
        load_teacher(name)


@pytest.mark.parametrize("name", ["open_clip:", "transformers:", "timm:", "timm"])
def test_a_family_alone_is_not_a_teacher(name):
    with pytest.raises(ValueError, match="names no model"):
        load_teacher(name)


def test_a_bare_weights_file_asks_for_its_model(timm_file):
    with pytest.raises(ValueError, match=r"a weights file without a model: write open_clip:MODEL/"):
        load_teacher(str(timm_file))


def test_asking_for_a_name_imports_no_host_library():
    hosts = "('open_clip', 'timm', 'transformers')"
    code = f"import sys, sf_llava.teachers; sys.exit(any(host in sys.modules for host in {hosts}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not (MINI_CLIP_DIR / "config.json").is_file(), reason="the mini teacher is not trained yet")
def test_mini_is_a_clip_with_texts():
    teacher = load_teacher("mini")
    assert teacher.image_size == 64 and teacher.num_patches == 64 and teacher.num_hidden_layers % 3 == 0
    assert teacher(torch.zeros(2, 3, 64, 64)).shape == teacher.encode_text(["a red circle", "a blue star"]).shape


def test_a_missing_mini_teacher_says_how_to_make_it(tmp_path):
    with pytest.raises(ValueError, match=r"the mini teacher is not in .*train_mini.py clip"):
        made(tmp_path, "teacher", "clip")
