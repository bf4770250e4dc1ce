"""A small random CLIP directory with a tokenizer, students of it, and a few pictures in folders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sf_llava.bootstrap.inherit import inherit, student_config
from sf_llava.mini.training.clip_model import build_clip, build_tokenizer, save_clip
from sf_llava.model import SparseFormerModel
from sf_llava.teachers import load_teacher

CLASSES = ("cat", "dog", "red ship")


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory) -> Path:
    """A CLIP of 64 px pictures, random, that brings its prompts along."""
    directory = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["a", "photo", "of", "the", "cat", "dog", "red", "ship"])
    sizes = {"width": 32, "layers": 3, "head_dim": 16, "text_width": 64, "text_layers": 1, "projection": 24}
    save_clip(build_clip(len(tokenizer), **sizes), tokenizer, directory, CLASSES, ("a photo of a {}", "the {}"))
    return directory


@pytest.fixture(scope="session")
def clip_teacher(clip_dir):
    return load_teacher(str(clip_dir))


@pytest.fixture(scope="session")
def student(clip_teacher) -> SparseFormerModel:
    torch.manual_seed(1)
    student = SparseFormerModel(student_config(clip_teacher, num_latents=4))
    inherit(student, clip_teacher)
    return student.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Noise in folders named after the classes; one picture is cut off."""
    directory = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    for index in range(14):
        path = directory / CLASSES[index % 3].replace(" ", "_") / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70 + index, 90, 3), dtype=np.uint8)).save(path)
    broken = directory / "cat" / "06.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return directory
