"""Trains the mini CLIP and SigLIP on both domains of the drawn world (``scripts/train_mini.py clip``, ``siglip``)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sf_llava.files import write_directory, write_json
from sf_llava.mini.training.clip_model import build_clip, build_tokenizer, save_clip
from sf_llava.mini.training.clip_training import (
    Batch,
    DenseHead,
    DenseTargets,
    TrainingConfig,
    train,
    zero_shot_accuracy,
)
from sf_llava.mini.training.siglip_model import build_siglip, save_siglip
from sf_llava.mini.world.canvas import Scene
from sf_llava.mini.world.captions import TEMPLATES, VOCABULARY, captions
from sf_llava.mini.world.scenes import DOMAINS, WORLD_SEED, draw_scene
from sf_llava.mini.world.shapes import CLASS_NAMES, COLOUR_NAMES, SHAPES

RECIPE = TrainingConfig(steps=1500, batch_size=96, muon_lr=0.015, adamw_lr=1.5e-3)
SIGLIP_RECIPE = replace(RECIPE, logit_lr_scale=20.0)
"""Scale and bias begin at 10 and -10, made for large batches, and are let go from there faster than the rest."""


@dataclass(frozen=True)
class Kind:
    """What differs between the two teachers.

    Attributes:
        name: of the directory that is written.
        build: takes the size of the vocabulary, gives the model.
        save: as ``save_clip``.
        padding: of texts: ``True`` to the longest of a batch, ``"max_length"`` to the text tower's full length.
    """

    name: str
    build: Callable[[int], Any]
    save: Callable[..., None]
    padding: bool | str


WIDTH = 128
_TOWER = {"width": WIDTH, "layers": 6, "head_dim": 32}
CLIP = Kind(
    "clip", lambda words: build_clip(words, **_TOWER, text_width=128, text_layers=4, projection=128), save_clip, True
)
SIGLIP = Kind(
    "siglip", lambda words: build_siglip(words, **_TOWER, text_width=96, text_layers=4), save_siglip, "max_length"
)
_DENSE_SHAPES = (*SHAPES, "bar", "region")
_DENSE_COLOURS = ("ground", *COLOUR_NAMES)
_DENSE_SIZES = ("small", "large")
_MAX_OBJECTS = 7
_NO_LABEL = -100
_PATCH_CENTERS = torch.stack(torch.meshgrid(*[torch.arange(8) + 0.5] * 2, indexing="xy"), dim=2).view(64, 2)
_EIGHTHS = (np.arange(8) + 0.5) / 8
_MAX_WORDS = 24  # longer captions cost more than they teach


def dense_targets(scenes: list[Scene]) -> DenseTargets:
    """What every 8 x 8 patch shows, from the generator's owner maps.

    A patch counts for an object that owns at least 30 % of it, for the ground (a colour of its own, no shape) if no
    object owns any of it, and is left out otherwise. Silhouettes are those of shapes and bars, not of map regions.
    """
    owner = _patches(np.stack([scene.owner for scene in scenes]))  # [B, patch, pixel]
    counts = torch.stack([(owner == index).sum(dim=2) for index in range(_MAX_OBJECTS)], dim=2)
    most, index = counts.max(dim=2)
    index[most < 0.3 * 64] = _MAX_OBJECTS + 1  # too little to say
    index[counts.sum(dim=2) == 0] = _MAX_OBJECTS  # ground
    table = torch.full((len(scenes), _MAX_OBJECTS + 2, 3), _NO_LABEL)
    table[:, _MAX_OBJECTS, 1] = 0
    boxes = torch.full((len(scenes), _MAX_OBJECTS + 2, 4), float("nan"))
    forms = torch.zeros(len(scenes), _MAX_OBJECTS + 2, 64)
    silhouettes = np.zeros((len(scenes), 64, 64), dtype=np.float32)
    for row, scene in enumerate(scenes):
        for column, thing in enumerate(scene.objects):
            table[row, column, 0] = _DENSE_SHAPES.index(thing.shape)
            table[row, column, 1] = _DENSE_COLOURS.index(thing.colour)
            if thing.shape == "region":
                continue
            silhouettes[row][scene.owner == column] = 1
            if thing.shape in SHAPES:
                table[row, column, 2] = _DENSE_SIZES.index(thing.size)
                x0, y0, x1, y1 = thing.box
                boxes[row, column] = torch.tensor((x0 + x1, y0 + y1, 2 * (x1 - x0), 2 * (y1 - y0))) / 16
                rows, columns = y0 + ((y1 - y0) * _EIGHTHS).astype(int), x0 + ((x1 - x0) * _EIGHTHS).astype(int)
                forms[row, column] = torch.from_numpy(scene.owner[rows[:, None], columns] == column).flatten()
    boxes = boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
    boxes[..., :2] -= _PATCH_CENTERS
    return DenseTargets(
        labels=table.gather(1, index[:, :, None].expand(-1, -1, 3)),
        silhouettes=_patches(silhouettes),
        boxes=boxes,
        forms=forms.gather(1, index[:, :, None].expand(-1, -1, 64)),
    )


def dense_head() -> DenseHead:
    """Read-outs for the classes of :func:`dense_targets`."""
    return DenseHead(WIDTH, (len(_DENSE_SHAPES), len(_DENSE_COLOURS), len(_DENSE_SIZES)))


def _patches(maps: np.ndarray) -> Tensor:
    """(B, 64, 64) maps cut into (B, 64 patches, 64 pixels)."""
    return torch.from_numpy(maps).view(-1, 8, 8, 8, 8).transpose(2, 3).reshape(-1, 64, 64)


def held_out(domain: str, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Single-object pictures in turn of all classes: images (N, 64, 64, 3) uint8, labels (N,)."""
    labels = [index % len(CLASS_NAMES) for index in range(count)]
    images = [draw_scene(WORLD_SEED, index, domain, split, label).image for index, label in enumerate(labels)]
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def train_teacher(kind: Kind, config: TrainingConfig, run_dir: Path) -> dict[str, float]:
    """Train, save the model directory ``run_dir / kind.name``, and return the accuracies on the test split."""
    torch.manual_seed(config.seed)
    tokenizer = build_tokenizer(VOCABULARY)
    model = kind.build(len(tokenizer))
    head = dense_head()

    def encode(texts: list[str]) -> Tensor:
        return tokenizer(texts, padding=kind.padding, return_tensors="pt").input_ids

    prompts = [encode([template.format(name) for template in TEMPLATES]) for name in CLASS_NAMES]

    def make_batch(step: int) -> Batch:
        pick = np.random.default_rng((config.seed, step))
        first = step * config.batch_size
        scenes = [
            draw_scene(WORLD_SEED, index, DOMAINS[index % 2]) for index in range(first, first + config.batch_size)
        ]
        choices = [[text for text in captions(scene) if text.count(" ") < _MAX_WORDS] for scene in scenes]
        texts = [texts[pick.integers(len(texts))] for texts in choices]
        numbers = {text: number for number, text in enumerate(texts)}
        return Batch(
            images=torch.from_numpy(np.stack([scene.image for scene in scenes])),
            input_ids=encode(texts),
            groups=torch.tensor([numbers[text] for text in texts]),
            dense=dense_targets(scenes),
        )

    def measure(model: Any, split: str, count: int) -> dict[str, float]:
        return {domain: zero_shot_accuracy(model, *held_out(domain, split, count), prompts) for domain in DOMAINS}

    seconds = train(model, head, make_batch, lambda model: measure(model, "validation", 512), config, run_dir)
    results = measure(model, "test", 2560) | {"seconds": round(seconds)}

    write_directory(
        run_dir / kind.name, lambda directory: kind.save(model, tokenizer, directory, CLASS_NAMES, TEMPLATES)
    )
    write_json(run_dir / "results.json", results)
    return results
