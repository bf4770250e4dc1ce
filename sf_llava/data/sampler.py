"""Which pictures make up which step: a pure function of (seed, step), for any number of processes.

The stream of positions 0, 1, 2, ... runs through one shuffled epoch after another. Step k takes the next
``batch_size * world_size`` positions, and rank r the r-th part of them: two processes with batch B see together what
one process with batch 2B sees. What is left of an epoch that fills no batch is dropped; a set smaller than one batch
fills it from several epochs.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


class BootstrapSampler(Sampler[list[tuple[int, int]]]):
    """An endless batch sampler of (epoch, index) pairs that starts at any step.

    It shards by itself: use it in a DataLoader that accelerate does not prepare.

    Args:
        num_images: size of the data set.
        batch_size: per process.
        seed: of the shuffling.
        rank: this process.
        world_size: number of processes.
        start_step: first step to yield; resuming is starting there.
    """

    def __init__(
        self, num_images: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, start_step: int = 0
    ) -> None:
        if num_images < 1 or batch_size < 1:
            raise ValueError(f"num_images and batch_size must be at least 1, got {num_images} and {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0 .. {world_size - 1}, got {rank}")
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step
        self._order = (-1, np.empty(0, dtype=np.int64))  # the last epoch used, its permutation

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every picture (but the dropped rest) was seen; 1 when one batch holds several epochs."""
        return max(1, self.num_images // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> list[tuple[int, int]]:
        """Return this rank's (epoch, index) pairs of step ``step``."""
        total = self.batch_size * self.world_size
        used = self.num_images // total * total or self.num_images  # positions an epoch contributes
        start = step * total + self.rank * self.batch_size
        pairs = []
        for position in range(start, start + self.batch_size):
            epoch, place = divmod(position, used)
            pairs.append((epoch, int(self._permutation(epoch)[place])))
        return pairs

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            order = torch.randperm(self.num_images, generator=generator_of(self.seed, epoch))
            self._order = (epoch, order.numpy())
        return self._order[1]


def generator_of(*key: int) -> torch.Generator:
    """Return a generator whose numbers are a function of ``key``: (seed, epoch) or (seed, epoch, index)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
