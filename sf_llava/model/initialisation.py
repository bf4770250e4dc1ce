"""How the layers that all models have begin."""

import torch
from torch import nn
from transformers import initialization as init


@torch.no_grad()
def init_layer(module: nn.Module, std: float) -> None:
    """Initialise a linear, LayerNorm or convolution layer in place, unless its weights were loaded; leave all others.

    Args:
        module: the layer.
        std: of the truncated normal distribution of linear weights.
    """
    if isinstance(module, nn.Linear):
        init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        init.zeros_(module.bias)
