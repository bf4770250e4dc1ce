"""Trains a small CLIP from scratch on CIFAR-10 with caption templates (``scripts/train_mini.py cifar10``).

A teacher of real photographs that needs no download of weights: captions are made of class names, all rows of one
class are right answers for each other, and the 32 px photographs are enlarged to 64 px, so that patches of 8 give
the 64 tokens of the mini teacher.
"""

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPModel, PreTrainedTokenizerBase

from sf_llava.files import write_directory, write_json
from sf_llava.mini.training.clip_model import build_clip, build_tokenizer, save_clip
from sf_llava.mini.training.clip_training import Batch, TrainingConfig, train, zero_shot_accuracy

RECIPE = TrainingConfig(steps=2400, batch_size=256, evaluate_every=200)
TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a small photo of a {}",
    "a photo of the {}",
    "there is a {} in the photo",
)
_SIZE = 64
_CROP_MARGIN = 8  # pixels of 64: four of CIFAR's own 32


class Labelled(Protocol):
    """What is needed of a labelled image set."""

    labels: list[int]
    class_names: list[str]

    def __len__(self) -> int: ...
    def load(self, index: int) -> Image.Image: ...


def decode_all(images: Labelled, description: str) -> np.ndarray:
    """Decode every picture once and enlarge it to 64 px, as the saved image processor does. (N, 64, 64, 3) uint8"""
    decoded = np.empty((len(images), _SIZE, _SIZE, 3), dtype=np.uint8)
    for index in tqdm(range(len(images)), desc=description, unit="image", mininterval=2):
        decoded[index] = np.asarray(images.load(index).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC))
    return decoded


def augment(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Flip half of the pictures and move each by up to 8 px, borders reflected. (B, 64, 64, 3) uint8"""
    margin = _CROP_MARGIN
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="reflect")
    moved = np.empty_like(images)
    moves = generator.integers((2 * margin + 1, 2 * margin + 1, 2), size=(len(images), 3))
    for index, (x, y, flip) in enumerate(moves):
        window = padded[index, y : y + _SIZE, x : x + _SIZE]
        moved[index] = window[:, ::-1] if flip else window
    return moved


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which one epoch sees the pictures."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def prompts_of(tokenizer: PreTrainedTokenizerBase, class_names: Sequence[str]) -> list[Tensor]:
    """Per class the token ids of all its captions."""
    return [
        tokenizer([template.format(name) for template in TEMPLATES], padding=True, return_tensors="pt").input_ids
        for name in class_names
    ]


def train_on_labelled(
    training: Labelled, validation: Labelled | None, config: TrainingConfig, run_dir: Path
) -> dict[str, float]:
    """Train on captions of the classes, save the CLIPModel directory ``run_dir/clip``, return validation accuracy."""
    torch.manual_seed(config.seed)
    names = [name.replace("_", " ") for name in training.class_names]
    sentences = [template.format(name) for template in TEMPLATES for name in names]
    tokenizer = build_tokenizer(sorted(set(re.findall(r"\w+", " ".join(sentences).lower()))))
    model = build_clip(len(tokenizer), width=192, layers=6, head_dim=64, text_width=128, text_layers=3, projection=128)
    per_epoch = len(training) // config.batch_size
    if per_epoch == 0:
        raise ValueError(f"{len(training)} training images do not fill one batch of {config.batch_size}")
    images, labels = decode_all(training, "decode training images"), np.array(training.labels)
    held_out = None
    if validation is not None:
        held_out = torch.from_numpy(decode_all(validation, "decode validation images")), torch.tensor(validation.labels)
    prompts = prompts_of(tokenizer, names)

    def make_batch(step: int) -> Batch:
        epoch, part = divmod(step, per_epoch)
        rows = epoch_order(config.seed, epoch, len(images))[part * config.batch_size : (part + 1) * config.batch_size]
        generator = np.random.default_rng((config.seed, 1, step))
        texts = [TEMPLATES[generator.integers(len(TEMPLATES))].format(names[labels[row]]) for row in rows]
        return Batch(
            images=torch.from_numpy(augment(images[rows], generator)),
            input_ids=tokenizer(texts, padding=True, return_tensors="pt").input_ids,
            groups=torch.from_numpy(labels[rows]),
        )

    def measure(model: CLIPModel, count: int | None = None) -> dict[str, float]:
        if held_out is None:
            return {}
        return {"validation": zero_shot_accuracy(model, held_out[0][:count], held_out[1][:count], prompts)}

    digest = hashlib.sha256(images.data)
    digest.update(labels.data)
    measure_some = functools.partial(measure, count=1000)
    seconds = train(model, None, make_batch, measure_some, config, run_dir, data=digest.hexdigest())
    write_directory(run_dir / "clip", lambda directory: save_clip(model, tokenizer, directory, names, TEMPLATES))
    results = measure(model) | {"images": config.steps * config.batch_size, "seconds": round(seconds)}
    write_json(run_dir / "results.json", results)
    return results
