"""A tiny world: an encoder, and folders of pictures with masks whose classes can be told by colour."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_encoder import write_encoder

COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
CLASSES = ("red", "green", "blue")


def write_pairs(root: Path, count: int, size: tuple[int, int] = (48, 40)) -> Path:
    """Write pictures of three coloured blocks and their masks, whose last column is not counted."""
    width, height = size
    draws = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for index in range(count):
        labels = np.zeros((height, width), dtype=np.uint8)
        labels[: draws.integers(8, height - 8)] = 1
        labels[:, draws.integers(8, width - 8) :] = 2
        noise = draws.integers(-20, 20, (height, width, 3))
        pixels = np.clip(np.array(COLOURS)[labels] + noise, 0, 255).astype(np.uint8)
        labels[:, -1] = 255
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
        Image.fromarray(labels).save(root / "masks" / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"), 12)


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory) -> Path:
    """A random encoder of 4 latents at 32 px."""
    path = tmp_path_factory.mktemp("encoder")
    write_encoder(path, num_latents=4)
    return path
