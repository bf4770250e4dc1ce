"""Trains a small ViT classifier of timm on the drawn world (``scripts/train_mini.py vit``): AugReg in small.

The result is a directory as ``timm.models.save_for_hf`` writes it, which ``load_teacher`` opens.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sf_llava.files import write_directory, write_json
from sf_llava.mini.training.clip_model import MEAN, STD, look_nearby, normalise
from sf_llava.mini.training.clip_teacher import WIDTH, dense_head, dense_targets, held_out
from sf_llava.mini.training.clip_training import Batch, DenseHead, TrainingConfig, train
from sf_llava.mini.world.scenes import DOMAINS, WORLD_SEED, draw_scene
from sf_llava.mini.world.shapes import CLASS_NAMES
from sf_llava.teachers.timm_classifier import build_classifier, save_classifier

RECIPE = TrainingConfig(steps=500, batch_size=96, muon_lr=0.015, adamw_lr=1.5e-3)
GEOMETRY = {"img_size": 64, "patch_size": 8, "embed_dim": WIDTH, "depth": 6, "num_heads": 4}


def build_vit(num_classes: int) -> Any:
    """A ``VisionTransformer`` of timm for 64 px pictures in patches of 8, as large as the mini CLIP's image tower."""
    vit = build_classifier(num_classes, GEOMETRY, {"mean": MEAN, "std": STD, "crop_pct": 1.0})
    look_nearby(vit.pos_embed[0], [block.attn.qkv.weight.chunk(3)[:2] for block in vit.blocks], GEOMETRY["num_heads"])
    return vit


def training_step(vit: Any, head: DenseHead | None, batch: Batch) -> dict[str, Tensor]:
    """Forward pass of one batch under bf16 autocast: cross-entropy of the classes, and dense losses."""
    with torch.autocast("cpu", torch.bfloat16):
        last, inside = vit.forward_intermediates(normalise(batch.images), indices=list(range(5)), output_fmt="NLC")
        logits = vit.forward_head(last)  # [B, C]
        # ``inside`` begins behind the first block; what enters it no read-out asks for.
        dense = head([inside[0], *inside], batch.dense) if head is not None and batch.dense is not None else {}
    loss = F.cross_entropy(logits.float(), batch.groups)
    return {"loss": loss + sum(dense.values()), "class": loss, **dense}


@torch.no_grad()
def accuracy(vit: Any, images: Tensor, labels: Tensor, batch_size: int = 256) -> float:
    """Top-1 share of ``images`` (N, 64, 64, 3) uint8."""
    vit.eval()
    right = 0
    with torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(images), batch_size):
            predicted = vit(normalise(images[start : start + batch_size])).argmax(dim=1)
            right += predicted.eq(labels[start : start + batch_size]).sum().item()
    vit.train()
    return right / len(images)


def make_batch(step: int, config: TrainingConfig) -> Batch:
    """Draw training pictures of one shape each, scenes and diagrams in turn; ``groups`` are their classes."""
    labels = np.random.default_rng((config.seed, step)).integers(len(CLASS_NAMES), size=config.batch_size)
    first = step * config.batch_size
    scenes = [
        draw_scene(WORLD_SEED, first + row, DOMAINS[row % 2], "train", int(label)) for row, label in enumerate(labels)
    ]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    return Batch(images, torch.empty(0), torch.from_numpy(labels), dense_targets(scenes))


def train_vit(config: TrainingConfig, run_dir: Path) -> dict[str, float]:
    """Train, save timm's directory ``run_dir/vit``, and return the accuracies on the test split."""
    torch.manual_seed(config.seed)
    vit = build_vit(len(CLASS_NAMES))

    def measure(vit: Any, split: str, count: int) -> dict[str, float]:
        return {domain: accuracy(vit, *held_out(domain, split, count)) for domain in DOMAINS}

    seconds = train(
        vit,
        dense_head(),
        lambda step: make_batch(step, config),
        lambda vit: measure(vit, "validation", 512),
        config,
        run_dir,
        training_step,
    )
    results = measure(vit, "test", 2560) | {"seconds": round(seconds)}
    write_directory(run_dir / "vit", lambda directory: save_classifier(vit, GEOMETRY, directory))
    write_json(run_dir / "results.json", results)
    return results
