"""Time functions against each other on a machine that others may be using, and measure their memory.

Runs are interleaved and repeated; medians count.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


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
    functions: dict[str, Callable[[], object]], device: str, repeats: int, warmup: int = 2, calls: int = 1
) -> dict[str, Timing]:
    """Run every function in turn, ``repeats`` times after ``warmup``, so that a slow spell hits all of them.

    On a GPU a repetition lasts until the device is done. On the CPU it is the processor time of this process: with one
    thread that is the wall-clock time of an idle machine, and other processes do not count.

    Args:
        functions: by name.
        device: where they run.
        repeats: how often each is timed.
        warmup: how often each runs before.
        calls: what a function does so often at once, see :func:`capture`; seconds are those of one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repetition in range(warmup + repeats):
        for name, function in functions.items():
            elapsed = _time(function, device) / calls
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


def capture(function: Callable[[], object], calls: int = 1) -> Callable[[], None]:
    """Record ``calls`` calls of a function in a CUDA graph, whose replay needs no work of the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    return graph.replay


def peak_memory(function: Callable[[], object], device: str) -> int:
    """Bytes of tensors at the peak of one call, beyond what was there before it."""
    if device == "cpu":
        return _peak_on_cpu(function)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(function: Callable[[], object]) -> int:
    """Add up what PyTorch's allocator gives and takes during the call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    allocated = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            allocated += event.nbytes()
            peak = max(peak, allocated)
    return peak


def kept_for_backward(function: Callable[[], object], inputs: Iterable[Tensor]) -> int:
    """Bytes that a forward pass keeps for its backward; ``inputs``, weights among them, are there anyway."""
    there = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)  # so that no address is used twice
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(kept.values())
