"""A run's steps in numbers: epochs into steps, batches into parts, what is due when."""

import math

import pytest
import torch

from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.schedule import Plan, draw_num_latents, make_plan


def plan(num_images: int = 1000, num_processes: int = 1, **asked) -> Plan:
    config = BootstrapConfig.of(**asked)
    return make_plan(config.optimiser, config.run, num_images, num_processes)


def test_epochs_become_steps_of_whole_batches():
    found = plan(epochs=2.0, warmup_epochs=0.5, batch_size=100)
    assert (found.num_steps, found.num_warmup_steps) == (20, 5)
    assert plan(num_images=3, epochs=2.0, batch_size=100).num_steps == 2  # fewer images than a batch


def test_steps_win_over_epochs_and_the_warm_up_is_no_longer_than_the_run():
    found = plan(steps=7, epochs=2.0, warmup_steps=50)
    assert (found.num_steps, found.num_warmup_steps) == (7, 7)


def test_a_batch_is_divided_over_processes_and_accumulation():
    found = plan(num_processes=2, batch_size=64, micro_batch_size=8)
    assert (found.micro_batch_size, found.accumulation) == (8, 4)
    found = plan(num_processes=2, batch_size=64)
    assert (found.micro_batch_size, found.accumulation) == (32, 1)
    with pytest.raises(ValueError, match="`batch_size` 60 is not a multiple of 1 processes x 8 images"):
        plan(batch_size=60, micro_batch_size=8)


def test_validations_and_checkpoints_fall_on_log_lines_and_all_on_the_last_step():
    found = plan(steps=365, log_every=10)
    assert (found.eval_every, found.save_every) == (40, 20)  # ten and twenty a run, rounded up
    assert plan(steps=365, log_every=10, save_every=11).save_every == 20
    assert [step for step in range(1, 366) if found.is_due(step, found.eval_every)] == [*range(40, 361, 40), 365]


def test_of_numbers_of_latents_few_are_drawn_as_often_as_many():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_num_latents(8, 31, generator) for _ in range(4000)]
    assert set(drawn) == set(range(8, 32))
    few = sum(count < 16 for count in drawn)  # 8 to 16 is an octave, as 16 to 32 is
    assert abs(few - 2000) < 4 * (4000 / 4) ** 0.5  # four standard deviations
    assert abs(drawn.count(8) - 4000 / 2 * math.log2(9 / 8)) < 4 * 400**0.5
    assert draw_num_latents(5, 5, generator) == 5
