"""What stays in float32 however coarse the rest of a model is, and what is a unit of its own when it is sharded."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class KeepsFloat32(nn.Module):
    """A module whose own parameters (not its children's) say where a latent looks: float32 at least.

    They are made so under any default dtype, and stay so through ``half()``, ``to()`` and the like.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KeepsFloat32":
        """Convert or move all weights; this module's own become no coarser than float32."""
        parameters = [parameter for parameter in self._parameters.values() if parameter is not None]
        kept = [tensor for parameter in parameters for tensor in (parameter, parameter.grad) if tensor is not None]

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            if converted.dtype.itemsize < 4 and any(tensor is one for one in kept):
                return tensor.to(converted.device, torch.float32)
            return converted

        return super()._apply(convert, recurse)


def empty_float32(*size: int) -> nn.Parameter:
    """Make a parameter of float32, of float64 where that is the default dtype."""
    return nn.Parameter(torch.empty(*size, dtype=torch.promote_types(torch.get_default_dtype(), torch.float32)))


class ShardedLinear(nn.Linear):
    """A linear layer beside parameters of another dtype: FSDP shards it alone, as a unit has one dtype."""


class ShardedLayerNorm(nn.LayerNorm):
    """A layer norm beside parameters of another dtype: FSDP shards it alone, as a unit has one dtype."""
