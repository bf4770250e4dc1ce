"""The encoder's two ops: ``sample_points`` and ``sample_and_mix``, and the choice of what computes them.

- Triton kernels on CUDA devices of compute capability 8.0 and up; points, samples and products stay in the chip, and
  the backward recomputes them;
- analytic tensor operations on the CPU and wherever the kernels do not fit;
- the plain PyTorch reference for few samples on the CPU, in a graph that is exported (ONNX knows its operations, and
  no size is read as a number), and when ``force("reference")`` says so.

There is no autocast registration: it would cast the RoIs, whose float32 matters.
Letters: B images, N latents, P points, Q mixing points, H x W x C feature map (channels last).
"""

import functools
import importlib
import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sf_llava.ops import analytic, reference
from sf_llava.ops.limits import check, is_known, kernels_fit

PATHS = ("auto", "reference", "op")
MINIMAL_CAPABILITY = (8, 0)
FEW_SAMPLES = 8192
"""Below this many, an op costs the CPU more to dispatch (0.1 ms, 0.5 ms with the backward) than it saves."""
_LIBRARY = re.sub(r"\W", "_", __name__.removesuffix(".ops.sampling"))
"""Whose ops they are in torch: ``sf_llava``'s, and of every published copy of this file its own."""
_LAUNCH = f"{__package__}.launch"  # with the kernels; a published copy of this file stands without it
_path = "auto"


@contextmanager
def force(path: str) -> Iterator[None]:
    """Force what computes the ops inside a ``with`` block: ``reference`` is plain PyTorch, ``op`` the fused ops.

    Raises:
        ValueError: another word.
    """
    global _path
    if path not in PATHS:
        raise ValueError(f"unknown path {path!r} for the ops; expected {', '.join(PATHS)}")
    before, _path = _path, path
    try:
        yield
    finally:
        _path = before


def sample_points(features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
    """Read the feature map bilinearly at every latent's sampling points; the border is repeated outside the image.

    Args:
        features: (B, H, W, C) feature map, channels last, any float dtype.
        rois: (B, N, 4) corners as image fractions, see :func:`place_points`.
        offsets: (B, N, P, 2) raw sampling offsets.

    Returns:
        (B, N, P, C) samples in the dtype of ``features``; the geometry is computed in float32 at least.

    Raises:
        ValueError: other shapes (nothing is broadcast), a dtype that is no float, or tensors on several devices.
    """
    check(features, rois, offsets)
    return _sample(features, rois, offsets)


def _sample(features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
    """Do what :func:`sample_points` does with what was checked."""
    if _wants_reference() or (_path == "auto" and _is_little_work(features, offsets)):
        return reference.sample_points(features, rois, offsets)
    return _sample_points(features, rois, offsets)


def sample_and_mix(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor) -> Tensor:
    """Sample features under every latent's RoI and decode them with the matrices the latent generated.

    One GELU follows both products: ``gelu(point_mixing @ (samples @ channel_mixing))``.

    Args:
        features: (B, H, W, C) feature map, channels last, any float dtype.
        rois: (B, N, 4) corners as image fractions.
        offsets: (B, N, P, 2) raw sampling offsets.
        parameters: (B, N, C C + Q P) channel mixing (C, C), then point mixing (Q, P), flattened.

    Returns:
        (B, N, Q C) in the dtype of ``parameters``, in which the products are computed too.

    Raises:
        ValueError: as of :func:`sample_points`.
    """
    check(features, rois, offsets, parameters)
    if _wants_reference():
        return reference.sample_and_mix(features, rois, offsets, parameters)
    # Without a fused kernel, keeping the samples for the backward is faster than reading them again.
    if _path == "op" or (features.is_cuda and _has_kernels_for(features, rois, offsets, parameters)):
        return _sample_and_mix(features, rois, offsets, parameters)
    return reference.mix(_sample(features, rois, offsets), parameters)


def _wants_reference() -> bool:
    """Tell whether plain PyTorch is asked for, or needed: an exported graph must serve any batch, in any runtime."""
    is_exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return _path == "reference" or (_path == "auto" and is_exporting)


def _is_little_work(features: Tensor, offsets: Tensor) -> bool:
    return features.device.type == "cpu" and is_known(offsets.shape[:3].numel() < FEW_SAMPLES)


def _has_kernels_for(features: Tensor, *others: Tensor) -> bool:
    """Tell whether Triton, the GPU, and the kernels' bounds allow the kernels."""
    return kernels_fit(features, *others) and _gpu_fits(features.device.index)


@torch.compiler.assume_constant_result
def _gpu_fits(index: int) -> bool:
    """Tell whether Triton is there and serves this GPU; ``torch.compile`` takes the answer as it is."""
    return _has_kernels() and torch.cuda.get_device_capability(index) >= MINIMAL_CAPABILITY


@functools.cache
def _has_kernels() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("triton", _LAUNCH))


def _kernels_for(features: Tensor, *others: Tensor) -> ModuleType:
    """Give the module that computes the ops on a CUDA device."""
    return importlib.import_module(_LAUNCH) if _has_kernels_for(features, *others) else analytic


@torch.library.custom_op(f"{_LIBRARY}::sample_points", mutates_args=())
def _sample_points(features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
    return analytic.sample_forward(features, rois, offsets)


@torch.library.custom_op(f"{_LIBRARY}::sample_points_backward", mutates_args=())
def _sample_points_backward(
    grad: Tensor, features: Tensor, rois: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return analytic.sample_backward(grad, features, rois, offsets)


@torch.library.custom_op(f"{_LIBRARY}::sample_and_mix", mutates_args=())
def _sample_and_mix(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor) -> Tensor:
    return analytic.mix_forward(features, rois, offsets, parameters)


@torch.library.custom_op(f"{_LIBRARY}::sample_and_mix_backward", mutates_args=())
def _sample_and_mix_backward(
    grad: Tensor, features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return analytic.mix_backward(grad, features, rois, offsets, parameters)


@_sample_points.register_kernel("cuda")
def _(features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
    return _kernels_for(features, rois, offsets).sample_forward(features, rois, offsets)


@_sample_points_backward.register_kernel("cuda")
def _(grad: Tensor, features: Tensor, rois: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _kernels_for(features, rois, offsets).sample_backward(grad, features, rois, offsets)


@_sample_and_mix.register_kernel("cuda")
def _(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor) -> Tensor:
    return _kernels_for(features, rois, offsets, parameters).mix_forward(features, rois, offsets, parameters)


@_sample_and_mix_backward.register_kernel("cuda")
def _(
    grad: Tensor, features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _kernels_for(features, rois, offsets, parameters).mix_backward(grad, features, rois, offsets, parameters)


@_sample_points.register_fake
def _(features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
    return features.new_empty(*offsets.shape[:3], features.shape[3])


@_sample_and_mix.register_fake
def _(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor) -> Tensor:
    channels = features.shape[3]
    mixing_points = (parameters.shape[2] - channels * channels) // offsets.shape[2]
    return parameters.new_empty(*offsets.shape[:2], mixing_points * channels)


@_sample_points_backward.register_fake
@_sample_and_mix_backward.register_fake
def _(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_sample_points.register_autograd(
    lambda ctx, grad: _sample_points_backward(grad, *ctx.saved_tensors), setup_context=_keep_inputs
)
_sample_and_mix.register_autograd(
    lambda ctx, grad: _sample_and_mix_backward(grad, *ctx.saved_tensors), setup_context=_keep_inputs
)
