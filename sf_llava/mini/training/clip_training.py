"""Trains a small CLIP or SigLIP: a loss with several right answers, Muon on the blocks' matrices, AdamW on the rest.

What the trainings (drawn world, CIFAR-10) share. A batch is a function of the step, so a run that was killed
continues from its last checkpoint with the same numbers it would have seen.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPModel, SiglipModel

from sf_llava.mini.training.clip_model import normalise
from sf_llava.mini.training.progress import ADVICE, Progress

BLOCKS = re.compile(r"(^|\.)(layers|blocks)\.")
"""In names of parameters: transformers' blocks, timm's."""
LOGITS = ("logit_scale", "logit_bias")

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class TrainingConfig:
    """The numbers of one training."""

    steps: int
    batch_size: int
    seed: int = 0
    muon_lr: float = 0.02
    adamw_lr: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of the steps
    logit_lr_scale: float = 1.0  # of a SigLIP's scale and bias: to ``adamw_lr``
    evaluate_every: int = 250
    save_every: int = 100


@dataclass
class DenseTargets:
    """What every patch of a drawn picture shows.

    Attributes:
        labels: (B, M, 3) int64, class of shape, colour and size of the object in the patch; -100 where there is none.
        silhouettes: (B, M, 64) float32, 1 for the patch's pixels that belong to an object.
        boxes: (B, M, 4) float32, way from the patch's centre to that of its object's box, width and height, all in
            patches; NaN where there is none.
        forms: (B, M, 64) float32, the silhouette of the patch's object, its box scaled to 8 x 8.
    """

    labels: Tensor
    silhouettes: Tensor
    boxes: Tensor
    forms: Tensor


@dataclass
class Batch:
    """What one step sees.

    Attributes:
        images: (B, 64, 64, 3) uint8.
        input_ids: (B, T) int64, each row with its end token.
        groups: (B,) int64; rows of one group have the same caption, so each is a right answer for the others.
        dense: targets of the dense head, or None.
    """

    images: Tensor
    input_ids: Tensor
    groups: Tensor
    dense: DenseTargets | None = None


class DenseHead(nn.Module):
    """Read-outs of the patch tokens, used in training only, then thrown away.

    A ladder towards shapes: after two blocks a patch tells the silhouette inside it, after three the box of its
    object, after four the object's whole silhouette, and at the penultimate layer its shape, colour and size.
    """

    def __init__(self, width: int, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.silhouette = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64))
        self.box = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4))
        self.form = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64))
        self.labels = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, count)) for count in classes)

    def forward(self, hidden_states: Sequence[Tensor], targets: DenseTargets) -> dict[str, Tensor]:
        """Weighted losses by name. hidden_states: each layer's (B, M, D), or with CLS first (B, 1 + M, D)."""
        patches = targets.labels.shape[1]
        second, third, fourth, fifth = (hidden_states[layer][:, -patches:] for layer in (2, 3, 4, 5))  # [B, M, D]
        losses = [
            F.cross_entropy(head(fifth).float().flatten(0, 1), targets.labels[..., kind].flatten(), ignore_index=-100)
            for kind, head in enumerate(self.labels)
        ]
        known = ~targets.boxes[..., 0].isnan()
        return {
            "label": torch.stack(losses).sum(),
            "silhouette": 2 * F.binary_cross_entropy_with_logits(self.silhouette(second).float(), targets.silhouettes),
            "box": 0.5 * F.l1_loss(self.box(third[known]).float(), targets.boxes[known]),
            "form": F.binary_cross_entropy_with_logits(self.form(fourth[known]).float(), targets.forms[known]),
        }


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    """CLIP's symmetric loss; the target is spread evenly over all rows with an equal caption."""
    logits = scale * F.normalize(image_embeds.float(), dim=-1) @ F.normalize(text_embeds.float(), dim=-1).T  # [B, B]
    equal = (groups[:, None] == groups[None]).float()
    target = equal / equal.sum(dim=1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def sigmoid_loss(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, bias: Tensor, groups: Tensor) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, Eq. 1): every pair by itself right or wrong, summed, over B pictures.

    Args:
        image_embeds, text_embeds: (B, E), not normalised.
        scale, bias: of the logits; ``scale`` is the paper's t behind its exponential.
        groups: (B,); a picture and a text are a right pair where theirs are equal.
    """
    logits = scale * F.normalize(image_embeds.float(), dim=-1) @ F.normalize(text_embeds.float(), dim=-1).T + bias
    signs = torch.where(groups[:, None] == groups[None], 1.0, -1.0)  # [B, B]
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def build_optimizers(model: nn.Module, head: nn.Module | None, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformers' blocks, AdamW for everything else that is to be trained.

    Every group of parameters has its ``lr_scale``, by which its learning rate is multiplied.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    logits: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim == 2 and BLOCKS.search(name)
            (matrices if is_matrix else logits if name in LOGITS else others).append(parameter)
    if head is not None:
        others += list(head.parameters())
    groups: list[dict[str, Any]] = [{"params": others, "lr_scale": 1.0}]
    if logits:
        groups.append({"params": logits, "lr_scale": config.logit_lr_scale})
    return [
        torch.optim.Muon([{"params": matrices, "lr_scale": 1.0}], lr=config.muon_lr, weight_decay=config.weight_decay),
        torch.optim.AdamW(groups, lr=config.adamw_lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True),
    ]


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = max(1, int(config.warmup * config.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def training_step(model: CLIPModel | SiglipModel, head: DenseHead | None, batch: Batch) -> dict[str, Tensor]:
    """Forward pass of one batch under bf16 autocast. ``loss`` is what to minimise, the rest is for the log."""
    with torch.autocast("cpu", torch.bfloat16):
        vision = model.get_image_features(normalise(batch.images), output_hidden_states=head is not None)
        text = model.get_text_features(batch.input_ids)
        dense = head(vision.hidden_states, batch.dense) if head is not None else {}
    embeds, scale = (vision.pooler_output, text.pooler_output), model.logit_scale.exp().clamp(max=100)  # [B, E] each
    if isinstance(model, SiglipModel):
        contrast = sigmoid_loss(*embeds, scale, model.logit_bias, batch.groups)
    else:
        contrast = contrastive_loss(*embeds, scale, batch.groups)
    return {"loss": contrast + sum(dense.values()), "contrastive": contrast, **dense}


@torch.no_grad()
def zero_shot_accuracy(
    model: CLIPModel | SiglipModel, images: Tensor, labels: Tensor, prompts: list[Tensor], batch_size: int = 256
) -> float:
    """Top-1 share of ``images`` (N, 64, 64, 3) uint8; ``prompts`` holds per class the (T', T) ids of its sentences."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        weights = []
        for ids in prompts:
            embeds = F.normalize(model.get_text_features(ids).pooler_output.float(), dim=-1)
            weights.append(F.normalize(embeds.mean(dim=0), dim=0))
        classifier = torch.stack(weights)  # [C, E]
        right = 0
        for start in range(0, len(images), batch_size):
            pixels = normalise(images[start : start + batch_size])
            embeds = model.get_image_features(pixels).pooler_output.float()
            right += (embeds @ classifier.T).argmax(dim=1).eq(labels[start : start + batch_size]).sum().item()
    model.train()
    return right / len(images)


def train(
    model: Model,
    head: nn.Module | None,
    make_batch: Callable[[int], Any],
    evaluate: Callable[[Model], dict[str, float]],
    config: TrainingConfig,
    run_dir: Path,
    step_losses: Callable[[Model, Any, Any], dict[str, Tensor]] = training_step,
    data: str = "",
) -> float:
    """Train in place, with a progress bar; returns the seconds spent, earlier parts of a resumed run included.

    ``step_losses(model, head, make_batch(step))`` gives the ``loss`` to minimise and others for the log.
    ``run_dir`` receives ``log.jsonl`` and checkpoints (written atomically); what is found there is resumed. ``data``
    names the data, where they are not drawn: with other data a run is not continued.

    Raises:
        ValueError: ``run_dir`` holds a training with other numbers or data, or damaged checkpoints alone.
        RuntimeError: the loss or the weights are no longer finite.
    """
    optimizers = build_optimizers(model, head, config)
    parts = {"model": model, "head": head, "muon": optimizers[0], "adamw": optimizers[1]}
    parts = {name: part for name, part in parts.items() if part is not None}
    progress = Progress(run_dir, parts, asdict(config) | ({"data": data} if data else {}))
    first_step, seconds = progress.resume()
    model.train()
    started = time.perf_counter() - seconds
    measured: dict[str, float] = {}
    with tqdm(total=config.steps, initial=first_step, unit="step", mininterval=2) as bar:
        for step in range(first_step, config.steps):
            factor = learning_rate_factor(step, config)
            for optimizer, rate in zip(optimizers, (config.muon_lr, config.adamw_lr), strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor * group["lr_scale"]
            losses = step_losses(model, head, make_batch(step))
            losses["loss"].backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if not losses["loss"].isfinite():
                raise RuntimeError(f"training has diverged: the loss is {losses['loss']:.4g} at step {step}; {ADVICE}")
            record = {"step": step, **{name: round(loss.item(), 4) for name, loss in losses.items()}}
            if (step + 1) % config.evaluate_every == 0 or step + 1 == config.steps:
                measured = {name: round(value, 4) for name, value in evaluate(model).items()}
                record |= measured
                bar.write(f"step {step + 1}: {measured}")
            bar.set_postfix({**{k: v for k, v in record.items() if k != "step"}, **measured})
            record["seconds"] = round(time.perf_counter() - started, 1)
            progress.log(record)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                progress.save(step + 1, time.perf_counter() - started)
            bar.update()
    return time.perf_counter() - started
