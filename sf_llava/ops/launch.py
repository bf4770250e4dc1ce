"""Launch the Triton kernels on tensors: shapes in, outputs allocated, one program for each token.

Imported only where Triton is there. Letters: B images, N latents, P points, Q mixing points, H x W x C feature map.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from sf_llava.ops import kernels

OPTIONS = {
    "num_warps": 4,
    "enable_fp_fusion": True,  # named, because releases of Triton differ in what they take where nothing is said
}
PIXELS_PER_PROGRAM = 16  # of the deterministic feature gradient


def sample_forward(features: Tensor, rois: Tensor, offsets: Tensor) -> Tensor:
    """See :func:`sf_llava.ops.sample_points`."""
    features, rois, offsets = _prepare(features, rois, offsets)
    samples = features.new_empty(*offsets.shape[:3], features.shape[3])
    _run(kernels.sample_forward_kernel, features, offsets, (features, rois, offsets, samples))
    return samples


def sample_backward(grad: Tensor, features: Tensor, rois: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features, RoIs and offsets."""
    dtypes = rois.dtype, offsets.dtype
    features, rois, offsets = _prepare(features, rois, offsets)
    grad = grad.contiguous()
    atomic, d_features, pixels = _feature_gradient(features, offsets)
    d_rois, d_offsets = torch.empty_like(rois), torch.empty_like(offsets)
    tensors = (grad, features, d_features, rois, offsets, d_rois, d_offsets, pixels)
    _run(kernels.sample_backward_kernel, features, offsets, tensors, ATOMIC=atomic)
    if not atomic:
        _gather_feature_gradient(grad, pixels, d_features)
    return d_features.to(features.dtype), d_rois.to(dtypes[0]), d_offsets.to(dtypes[1])


def mix_forward(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor) -> Tensor:
    """See :func:`sf_llava.ops.sample_and_mix`."""
    features, rois, offsets = _prepare(features, rois, offsets)
    parameters = parameters.contiguous()
    sizes = _mixing_sizes(features, offsets, parameters)
    mixed = parameters.new_empty(*offsets.shape[:2], sizes["Q"] * features.shape[3])
    _run(kernels.mix_forward_kernel, features, offsets, (features, rois, offsets, parameters, mixed), **sizes)
    return mixed


def mix_backward(
    grad: Tensor, features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features, RoIs, offsets and parameters."""
    dtypes = rois.dtype, offsets.dtype
    features, rois, offsets = _prepare(features, rois, offsets)
    parameters, grad = parameters.contiguous(), grad.contiguous()
    sizes = _mixing_sizes(features, offsets, parameters)
    atomic, d_features, pixels = _feature_gradient(features, offsets)
    d_rois, d_offsets, d_parameters = map(torch.empty_like, (rois, offsets, parameters))
    shape = (0,) if atomic else (*offsets.shape[:3], features.shape[3])
    d_samples = features.new_empty(shape, dtype=torch.float32)
    tensors = (
        grad,
        features,
        d_features,
        rois,
        offsets,
        parameters,
        d_rois,
        d_offsets,
        d_parameters,
        d_samples,
        pixels,
    )
    _run(kernels.mix_backward_kernel, features, offsets, tensors, ATOMIC=atomic, **sizes)
    if not atomic:
        _gather_feature_gradient(d_samples, pixels, d_features)
    return d_features.to(features.dtype), d_rois.to(dtypes[0]), d_offsets.to(dtypes[1]), d_parameters


def _prepare(features: Tensor, rois: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out what the kernels read: geometry in float32, so gradients of half-precision geometry are cast back."""
    return features.contiguous(), rois.float().contiguous(), offsets.float().contiguous()


def _feature_gradient(features: Tensor, offsets: Tensor) -> tuple[bool, Tensor, Tensor]:
    """Choose atomics, or the deterministic path where PyTorch is told to be; allocate what either needs."""
    if torch.are_deterministic_algorithms_enabled():
        return False, torch.empty_like(features), torch.empty_like(offsets)
    return True, torch.zeros_like(features, dtype=torch.float32), offsets.new_empty(0)


def _gather_feature_gradient(grad: Tensor, pixels: Tensor, d_features: Tensor) -> None:
    batch, height, width, channels = d_features.shape
    latents, points = pixels.shape[1:3]
    with _device(d_features):
        kernels.feature_gradient_kernel[batch * height, triton.cdiv(width, PIXELS_PER_PROGRAM)](
            grad, pixels, d_features, latents, height, width,
            P=points, BP=_tile(points), C=channels, BX=PIXELS_PER_PROGRAM, **OPTIONS,
        )  # fmt: skip


def _mixing_sizes(features: Tensor, offsets: Tensor, parameters: Tensor) -> dict[str, int]:
    mixing_points = (parameters.shape[2] - features.shape[3] ** 2) // offsets.shape[2]
    return {"Q": mixing_points, "BQ": _tile(mixing_points)}


def _run(kernel: Any, features: Tensor, offsets: Tensor, tensors: tuple[Tensor, ...], **constants: int | bool) -> None:
    """Run one program for each of the B N tokens."""
    _, height, width, channels = features.shape
    batch, latents, points, _ = offsets.shape
    with _device(features):
        kernel[(batch * latents,)](
            *tensors, latents, height, width, P=points, BP=_tile(points), C=channels, **OPTIONS, **constants
        )


def _tile(size: int) -> int:
    """Round up to what a matrix product in a kernel can take."""
    return max(16, triton.next_power_of_2(size))


def _device(tensor: Tensor) -> Any:
    """Make the tensor's GPU the current one; in Triton's interpreter there is none."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
