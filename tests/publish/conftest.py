"""A mini LLaVA and an encoder, published once for all tests."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from mini_encoder import write_mini_encoder

from sf_llava.publish.writing import publish_encoder, publish_llava

CONFIG = {"teacher": "transformers:/home/me/clip", "data": "folder:/home/me/pictures", "steps": 7, "seed": 3}
RESULTS = {
    "encoders": [
        {"tokens": 64, "parameters": 1_240_000, "multiply_adds": 84_800_000, "image_size": 64},
        {"tokens": 16, "parameters": 2_520_000, "multiply_adds": 96_100_000, "image_size": 64},
    ],
    "zero_shot": {"num_images": 2560, "num_classes": 64, "encoders": [{"top1": 0.9969}, {"top1": 0.9746}]},
    "val_cosine": 0.91234,
    "dtype": "fp32",
    "seed": 3,
} | dict.fromkeys(("step", "seconds", "images_per_second", "peak_memory_gb", "environment", "skipped_images"))


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A run of an untrained encoder."""
    path = tmp_path_factory.mktemp("publish") / "run"
    write_mini_encoder(path / "encoder")
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "results.json").write_text(json.dumps(RESULTS))
    return path


@pytest.fixture(scope="session")
def published(run) -> SimpleNamespace:
    llava, placed, encoder = run.parent / "my-llava", run.parent / "my-placed-llava", run.parent / "my.encoder-16"
    publish_llava("mini", run, llava, license="apache-2.0")
    publish_llava("mini", run, placed, positions_and_bias=True)
    publish_encoder(run / "encoder", encoder)
    return SimpleNamespace(llava=llava, placed=placed, encoder=encoder)
