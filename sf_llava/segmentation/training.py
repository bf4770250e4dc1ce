"""The training loop of a segmenter, exactly resumable.

Every step is a function of (weights, optimiser state, step): views and their order come from (seed, epoch, index), drop
path from (seed, step), rates from the step. A killed run therefore resumes to the bit on a CPU.
"""

import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from sf_llava.bootstrap.batches import MicroBatches
from sf_llava.bootstrap.checkpoints import Checkpoints
from sf_llava.bootstrap.run_directory import RunDirectory
from sf_llava.data.loading import processes_of, watch
from sf_llava.data.mask_transforms import MaskedViews, collate_masked
from sf_llava.data.sampler import BootstrapSampler, generator_of
from sf_llava.segmentation.config import SegmentConfig
from sf_llava.segmentation.loss import dense_cross_entropy
from sf_llava.segmentation.segmenter import Segmenter, TokenNet

NOT_DECAYED = ("initial_rois", "stage_embedding", "latent_embedding", "cls_token", "position_embedding.weight")


class SegmentTrainer:
    """Runs the steps of one training.

    Args:
        config: all numbers.
        accelerator: devices, processes, precision.
        segmenter: what is trained, with ``requires_grad`` set.
        views: training views.
        run: where log and checkpoints lie.
    """

    def __init__(
        self,
        config: SegmentConfig,
        accelerator: Accelerator,
        segmenter: Segmenter,
        views: MaskedViews,
        run: RunDirectory,
    ) -> None:
        self.config, self.accelerator, self.views, self.run = config, accelerator, views, run
        self.preprocessing = segmenter.preprocessing
        self.micro_batch_size, self.accumulation = share_batch(config, accelerator.num_processes)
        groups = parameter_groups(segmenter.net, config)
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)
        self.net, self.optimizer = accelerator.prepare(segmenter.net, optimizer)
        self.checkpoints = Checkpoints(run, accelerator, self.optimizer, None, config.keep_checkpoints)
        self.step = 0
        self.newly_skipped: set[str] = set()

    def resume(self) -> list[str]:
        """Go on from the newest whole checkpoint, if there is any; give a sentence for each that is damaged."""
        remarks = self.checkpoints.resume(self._is_finite)
        self.step = self.checkpoints.step
        return remarks

    def train(self) -> None:
        """Run all remaining steps.

        Raises:
            RuntimeError: training diverged.
        """
        config, batches = self.config, self._batches()
        total = torch.zeros((), device=self.accelerator.device)
        hidden = not self.accelerator.is_main_process
        bar = tqdm(total=config.steps, initial=self.step, desc="segment", unit="step", disable=hidden,
                   mininterval=0.5 if sys.stderr.isatty() else 30)  # fmt: skip
        self.net.train()
        with bar:
            while self.step < config.steps:
                total += self._take_step(batches)
                self.step += 1
                bar.update()
                if self.step % config.log_every == 0 or self.step == config.steps:
                    self._log(total / ((self.step - 1) % config.log_every + 1), bar)
                    total.zero_()
                if self.step % config.save_every == 0 or self.step == config.steps:
                    self.checkpoints.save(self.step, 0.0, self.newly_skipped)
                    self.newly_skipped.clear()

    def _batches(self) -> Iterator[dict[str, Any]]:
        config, accelerator = self.config, self.accelerator
        share = self.micro_batch_size * self.accumulation
        rank, processes = accelerator.process_index, accelerator.num_processes
        sampler = BootstrapSampler(len(self.views), share, config.seed, rank, processes, self.step)
        loader = DataLoader(
            self.views,
            batch_sampler=MicroBatches(sampler, self.micro_batch_size),
            collate_fn=collate_masked,
            **processes_of(config.workers),
            persistent_workers=config.workers > 0,
            pin_memory=accelerator.device.type == "cuda",
        )
        return watch(loader)

    def _take_step(self, batches: Iterator[dict[str, Any]]) -> Tensor:
        config, accelerator = self.config, self.accelerator
        factor = learning_rate_factor(self.step, config.steps, config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        total = torch.zeros((), device=accelerator.device)
        for part in range(self.accumulation):
            batch = next(batches)
            self.newly_skipped.update(batch["skipped"])
            pixels, labels = (batch[name].to(accelerator.device, non_blocking=True) for name in ("pixels", "labels"))
            torch.manual_seed(generator_of(config.seed, self.step, part, accelerator.process_index).initial_seed())
            loss = dense_cross_entropy(self.net(self.preprocessing.normalise_pixels(pixels)), labels)
            accelerator.backward(loss / self.accumulation)
            total += loss.detach() / self.accumulation
        accelerator.clip_grad_norm_(self.net.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def _log(self, mean: Tensor, bar: tqdm) -> None:
        loss = float(self.accelerator.reduce(mean, "mean"))
        if not math.isfinite(loss) or not self._is_finite():
            raise RuntimeError(
                f"training has diverged: the loss is {loss} at step {self.step}; start again, or with `resume` go on "
                f"from the newest checkpoint, with a lower `lr` (it was {self.config.lr:g}) or `dtype` fp32"
            )
        if self.accelerator.is_main_process:
            self.run.log({"step": self.step, "loss": loss, "lr": max(g["lr"] for g in self.optimizer.param_groups)})
        bar.set_postfix(loss=f"{loss:.4f}")

    def _is_finite(self) -> bool:
        return all(bool(weight.isfinite().all()) for weight in self.net.parameters())


def share_batch(config: SegmentConfig, processes: int) -> tuple[int, int]:
    """Say how many views a process takes at once, and how often in a step.

    Raises:
        ValueError: the batch has no such parts.
    """
    share, rest = divmod(config.batch_size, processes)
    at_once = config.micro_batch_size or share
    if rest or not share or share % at_once:
        raise ValueError(
            f"`batch_size` {config.batch_size} is no multiple of {processes} process(es) times {at_once} views"
        )
    return at_once, share // at_once


def learning_rate_factor(step: int, num_steps: int, num_warmup_steps: int) -> float:
    """Factor on a peak learning rate: linear warm-up, times linear decay to zero (mmsegmentation's poly, power 1)."""
    warmup = min(1.0, (step + 1) / num_warmup_steps) if num_warmup_steps else 1.0
    return warmup * (1 - step / num_steps)


def parameter_groups(net: nn.Module, config: SegmentConfig) -> list[dict[str, Any]]:
    """Split what is trained: backbone at its lower rate, vectors and embeddings without weight decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            inherited = isinstance(net, TokenNet) and name.startswith(("backbone.encoder.", "backbone.teacher."))
            decayed = parameter.ndim > 1 and not name.endswith(NOT_DECAYED)
            groups.setdefault((inherited, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": config.lr * (config.encoder_lr_scale if inherited else 1.0),
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (inherited, decayed), parameters in groups.items()
    ]
