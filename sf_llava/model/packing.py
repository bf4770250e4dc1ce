"""Weights laid out once for the CPU's matrix products, which otherwise do so at every call.

    encoder = pack_for_cpu(load_encoder("runs/sf-l-64"))    # float32; for inference alone

A product with few rows, as those of one image's latents, spends a third of its time on bringing the weights into the
order in which it reads them. PyTorch has no public name for a layer that keeps them so; the operation used here is the
one that its compiler puts into frozen graphs.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sf_llava.model.cortex import QUICK_GELU_SCALE, Mlp, is_plain
from sf_llava.model.sparseformer import SparseFormerModel


def pack_for_cpu(encoder: SparseFormerModel) -> SparseFormerModel:
    """Copy an encoder with the weights of its linear layers packed; outputs are the same within rounding.

    Args:
        encoder: on the CPU, in float32.

    Returns:
        A copy that gives no gradients, and can be neither moved, converted nor saved: keep the encoder for that.

    Raises:
        ValueError: the encoder is elsewhere or in another precision, or PyTorch was built without oneDNN.
    """
    if encoder.device.type != "cpu" or encoder.dtype != torch.float32:
        raise ValueError(
            f"expected an encoder in float32 on the CPU, got {str(encoder.dtype).removeprefix('torch.')} on "
            f"{encoder.device}: load it with `dtype` fp32 and `device` cpu"
        )
    if not is_available():
        raise ValueError("this build of PyTorch has no oneDNN, which packs the weights: use the encoder as it is")
    packed = copy.deepcopy(encoder).eval().requires_grad_(False)
    _pack_children(packed)
    packed._apply = _stay
    return packed


def is_available() -> bool:
    """Tell whether this build of PyTorch can pack."""
    operations = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(operations, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


class PackedLinear(nn.Module):
    """A linear layer on the CPU, its weight packed, with an activation behind it.

    Args:
        linear: what it stands for.
        activation: ``none`` or ``swish``.
        scale: of the product.
        bias_scale: of the bias.
    """

    def __init__(
        self, linear: nn.Linear, activation: str = "none", scale: float = 1.0, bias_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.activation = activation
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach() * scale, None)
        self.bias = None if linear.bias is None else linear.bias.detach() * bias_scale

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., in_features) to (..., out_features)."""
        return torch.ops.mkldnn._linear_pointwise(tokens, self.packed, self.bias, self.activation, [], "none")

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.activation}"

    def _save_to_state_dict(self, *_: Any) -> None:
        raise ValueError("packed weights are not saved: save the encoder that they were packed from")


def _stay(*_: Any, **__: Any) -> nn.Module:
    raise ValueError("packed weights stay in float32 on the CPU: move or convert the encoder, then pack that")


def _pack_children(module: nn.Module) -> None:
    """Put packed layers in the place of the plain linear ones below a module; quantised, adapted, hooked ones stay."""
    for name, child in list(module.named_children()):
        if isinstance(child, Mlp) and child.is_quick_gelu and is_plain(child.fc1) and is_plain(child.fc2):
            _pack_mlp(child)
        elif is_plain(child):
            setattr(module, name, PackedLinear(child))
        else:
            _pack_children(child)


def _pack_mlp(mlp: Mlp) -> None:
    """Pack a feed-forward network; QuickGELU, folded as in the network itself, becomes part of the first product."""
    mlp.add_module("fc1", PackedLinear(mlp.fc1, "swish", QUICK_GELU_SCALE, QUICK_GELU_SCALE))
    mlp.add_module("fc2", PackedLinear(mlp.fc2, scale=1 / QUICK_GELU_SCALE))
    mlp.act, mlp.is_quick_gelu = nn.Identity(), False
