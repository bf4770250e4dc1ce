"""How fast a run goes, and how much of its time it waits for data, since the last line that was told."""

import math

from sf_llava.data.loading import share_of_cores

STARVED = 0.1
"""Share of the time spent waiting for data above which a run is told what would help."""


class Pace:
    """Counts the steps between two lines; the first step of a run, which starts processes and warms up, is left out.

    Args:
        batch_size: images of one step, over all processes.
        workers: data loading processes of this process.
    """

    def __init__(self, batch_size: int, workers: int) -> None:
        self.batch_size, self.workers = batch_size, workers
        self.first: tuple[float, float] | None = None
        self.restart()

    def restart(self) -> None:
        """Begin the next line."""
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0

    def add(self, seconds: float, waited: float) -> None:
        """Count one step and the seconds in which it waited for data."""
        if self.first is None:
            self.first = seconds, waited
            return
        self.steps, self.seconds, self.waited = self.steps + 1, self.seconds + seconds, self.waited + waited

    @property
    def images_per_second(self) -> float:
        steps, (seconds, _) = self._measured
        return steps * self.batch_size / seconds if seconds else 0.0

    @property
    def waiting(self) -> float:
        """Share of the time, 0 to 1."""
        _, (seconds, waited) = self._measured
        return waited / seconds if seconds else 0.0

    @property
    def _measured(self) -> tuple[int, tuple[float, float]]:
        """Steps, and their seconds; where the first step is all there is, that one."""
        return (self.steps, (self.seconds, self.waited)) if self.steps else (1, self.first or (0.0, 0.0))

    @property
    def is_starved(self) -> bool:
        """Whether so much of the time is spent waiting that something should be done."""
        return self.waiting > STARVED

    def advice(self) -> str:
        """Say whether data loading keeps up; if not, how many processes would, and whether there are cores for them."""
        share = f"{self.waiting:.0%} of the time is spent waiting for data"
        if not self.is_starved:
            return f"data loading keeps up (`workers` {self.workers}): {share}"
        wanted, cores = math.ceil(self.wanted_workers), share_of_cores()
        limit = f", but there are cores for {cores}: smaller pictures, or decode them once" if wanted > cores else ""
        return f"{share}: about {wanted} `workers` would keep up (there are {self.workers}){limit}"

    @property
    def wanted_workers(self) -> float:
        """Data loading processes that give a batch in the time that a step computes."""
        working = max(1 - self.waiting, 1e-3)
        return self.workers / working if self.workers else self.waiting / working
