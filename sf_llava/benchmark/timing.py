"""Time functions against each other on a machine that others may be using: interleaved, repeated, medians."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Timing:
    """Seconds of every repetition of one function."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, relative to the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    def to_dict(self) -> dict[str, float | int]:
        return {"seconds": self.median, "spread": round(self.spread, 4), "repetitions": len(self.seconds)}


def interleave(
    functions: dict[str, Callable[[], object]], device: str, repeats: int, warmup: int = 2
) -> dict[str, Timing]:
    """Run every function in turn, ``repeats`` times after ``warmup``, so that a slow spell hits all of them.

    On a GPU a repetition lasts until the device is done. On the CPU it is the processor time of this process: with one
    thread that is the wall-clock time of an idle machine, and other processes do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repetition in range(warmup + repeats):
        for name, function in functions.items():
            elapsed = _time(function, device)
            if repetition >= warmup:
                seconds[name].append(elapsed)
    return {name: Timing(values) for name, values in seconds.items()}


def paired_ratio(numerator: Timing, denominator: Timing) -> float:
    """Median of the ratios of neighbouring repetitions."""
    return statistics.median(a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True))


def _time(function: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak_memory(function: Callable[[], object], device: str) -> int | None:
    """Bytes allocated at the peak of one call, weights and inputs included; None on the CPU, which does not tell."""
    if device == "cpu":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)
