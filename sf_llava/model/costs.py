"""Parameters and multiply-adds of encoders, counted from the running code (the paper's FLOPs are multiply-adds)."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    """Count all parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_multiply_adds(module: nn.Module, image_size: int, **options: Any) -> int:
    """Count multiply-adds of one forward pass over one image of ``image_size`` pixels a side.

    Matrix products, convolutions and attention count; element-wise work and the bilinear reads do not (as in the
    paper). Nothing is computed: a copy of the module runs on the meta device. ``options`` go to its forward: asked for
    the embedding alone, a SparseFormer saves most of its last block; ``output_hidden_states=True`` counts all of it.
    """
    meta = copy.deepcopy(module).to("meta").float().eval().requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        meta(torch.empty(1, 3, image_size, image_size, device="meta"), **options)
    return counter.get_total_flops() // 2
