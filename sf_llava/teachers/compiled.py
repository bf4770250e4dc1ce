"""A frozen teacher compiled where that pays: in half precision on CUDA, in a run of many steps.

``TORCH_COMPILE_DISABLE=1`` switches it off. On one thread of a CPU a compiled ViT-B was slower (0.07 of the speed in
bfloat16, 0.68 in float32), so there nothing is compiled, and resuming stays exact to the bit.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MIN_STEPS = 2000
"""Compiling a ViT-L takes about a minute; shorter runs do not earn it back."""


def pays(device: torch.device, dtype: torch.dtype, num_steps: int) -> bool:
    """Tell whether compiling a teacher on ``device`` in ``dtype`` is worth its time in a run of ``num_steps``."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and num_steps >= MIN_STEPS


@torch.no_grad()
def compile_frozen(
    function: Callable[[Tensor], Any], example: Tensor, backend: str | Callable = "inductor"
) -> Callable[[Tensor], Any]:
    """Compile a frozen model, or one of its methods, for inputs like ``example``; it gives what ``function`` gives.

    Where compiling fails (no C compiler, say), a warning says so and ``function`` itself comes back.

    Args:
        function: (B, 3, S, S) pixels to tensors, called without gradients.
        example: pixels of the shape, dtype and device to come; they are run once.
        backend: of ``torch.compile``.
    """
    compiled = torch.compile(function, dynamic=False, backend=backend)
    try:
        compiled(example)
    except Exception as error:
        warnings.warn(f"the teacher runs uncompiled: {' '.join(str(error).split())[:200]}", stacklevel=2)
        return function
    return compiled
