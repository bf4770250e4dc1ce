"""A run's steps, and learning rates as a pure function of the step, so that a resumed run needs no scheduler state."""

import math
from dataclasses import dataclass

import torch

from sf_llava.bootstrap.config import OptimiserConfig, RunConfig


def learning_rate_factor(step: int, num_steps: int, num_warmup_steps: int, inherited: bool) -> float:
    """Factor on a parameter group's peak learning rate: linear warm-up, then half a cosine to zero.

    Args:
        step: optimiser step, from 0.
        num_steps: steps of the run.
        num_warmup_steps: steps of warm-up, in which inherited weights stay frozen (factor exactly 0).
        inherited: whether the group holds inherited weights.
    """
    if step < num_warmup_steps:
        return 0.0 if inherited else (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def draw_num_latents(lowest: int, highest: int, generator: torch.Generator) -> int:
    """Draw a number of latents from ``lowest`` to ``highest``, its logarithm evenly: 8 to 16 as often as 16 to 32.

    An even draw would show few latents seldom.
    """
    share = torch.rand((), generator=generator, dtype=torch.float64).item()
    return min(highest, int(lowest * ((highest + 1) / lowest) ** share))


@dataclass(frozen=True)
class Plan:
    """A run's steps in numbers, whatever they were asked for in.

    Attributes:
        num_steps: optimiser steps.
        num_warmup_steps: the first of them, in which inherited weights stay frozen.
        micro_batch_size: images that a process sees at once.
        accumulation: micro-batches of one optimiser step.
        log_every, eval_every, save_every: steps between log lines, validations and checkpoints. The latter two fall on
            log lines, so that no half-summed window needs saving.
    """

    num_steps: int
    num_warmup_steps: int
    micro_batch_size: int
    accumulation: int
    log_every: int
    eval_every: int
    save_every: int

    def is_due(self, step: int, every: int) -> bool:
        """Whether what happens every so many steps happens after ``step`` of them; after the last, all of it does."""
        return step % every == 0 or step == self.num_steps


def make_plan(config: OptimiserConfig, running: RunConfig, num_images: int | None, num_processes: int) -> Plan:
    """Turn what was asked for into a plan for ``num_images`` training images (None: unknown) and so many processes.

    Raises:
        ValueError: the batch of a step has no equal parts, or the length of an epoch is needed and unknown.
    """
    num_steps, num_warmup_steps = count_steps(config, num_images)
    micro = config.micro_batch_size or max(1, config.batch_size // num_processes)
    if config.batch_size % (micro * num_processes):
        raise ValueError(
            f"`batch_size` {config.batch_size} is not a multiple of {num_processes} processes x {micro} images"
        )
    return Plan(
        num_steps,
        num_warmup_steps,
        micro,
        config.batch_size // (micro * num_processes),
        running.log_every,
        _round_up(running.eval_every or num_steps / 10, running.log_every),
        _round_up(running.save_every or num_steps / 20, running.log_every),
    )


def count_steps(config: OptimiserConfig, num_images: int | None) -> tuple[int, int]:
    """Turn epochs into steps: (steps, warm-up steps)."""
    if num_images is None:
        if config.steps is None or (config.warmup_steps is None and config.warmup_epochs):
            raise ValueError("how many images a stream has is unknown: give `steps` and `warmup_steps`, not epochs")
        return config.steps, min(config.warmup_steps or 0, config.steps)
    per_epoch = max(1, num_images // config.batch_size)
    steps = config.steps or max(1, round((config.epochs or 0) * per_epoch))
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round((config.warmup_epochs or 0) * per_epoch)
    return steps, min(warmup, steps)


def _round_up(steps: float, unit: int) -> int:
    """Round up to a multiple of ``unit``."""
    return max(1, -(-int(steps) // unit)) * unit
