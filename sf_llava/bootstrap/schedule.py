"""Steps, and learning rates as a pure function of the step, so that a resumed run needs no scheduler state."""

import math

from sf_llava.bootstrap.config import OptimiserConfig


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


def count_steps(config: OptimiserConfig, num_images: int) -> tuple[int, int]:
    """Turn epochs into steps: (steps, warm-up steps)."""
    per_epoch = max(1, num_images // config.batch_size)
    steps = config.steps or max(1, round((config.epochs or 0) * per_epoch))
    warmup = config.warmup_steps
    if warmup is None:
        warmup = round((config.warmup_epochs or 0) * per_epoch)
    return steps, min(warmup, steps)
