"""The Triton kernels against float64: in Triton's interpreter on any machine, on the device itself where there is one.

The interpreter must be chosen before Triton is imported, so on a machine without a GPU one test runs this file again in
a process of its own.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from ops_cases import draw

from sf_llava.ops import force, reference, sample_and_mix, sample_points, sampling

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
SIZES = [
    dict(height=14, width=14),
    dict(batch=3, latents=5, height=27, width=22),
    dict(batch=1, latents=6, height=84, width=84),
    dict(batch=1, latents=5, points=36, height=19, width=17),
    dict(batch=1, latents=6, points=9, channels=32, mixing_points=20, height=1, width=40),
]


def on_kernels(test):
    """Mark a test that runs the kernels: in the interpreter where it was chosen, otherwise on a GPU."""
    if INTERPRETED:
        return test
    reason = "needs a CUDA device of compute capability 8.0 and up"
    return pytest.mark.gpu(pytest.mark.skipif(not HAS_GPU, reason=reason)(test))


@pytest.mark.skipif(INTERPRETED or HAS_GPU, reason="the kernels are tested here already")
def test_kernels_agree_with_float64_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the norm; what was never written shows up as not a number."""
    return ((ours.cpu().double() - expected).norm() / expected.norm().clamp(min=1e-9)).item()


def exact(tensors, op, grad):
    tensors = [tensor.double().requires_grad_() for tensor in tensors]
    output = op(*tensors)
    return [output.detach(), *torch.autograd.grad(output, tensors, grad.double())]


def check(op_name, size, dtype, deterministic=False, feature_dtype=None, geometry_dtype=torch.float32):
    from sf_llava.ops import launch

    tensors = draw(**size)[: 3 if op_name == "sample" else 4]
    dtypes = [feature_dtype or dtype, geometry_dtype, geometry_dtype, dtype]
    tensors = [tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=False)]
    op = reference.sample_points if op_name == "sample" else reference.sample_and_mix
    grad = torch.randn(op(*tensors).shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    device = [tensor.to(DEVICE) for tensor in tensors]
    torch.use_deterministic_algorithms(deterministic)  # deterministic mode also fills fresh memory with NaN
    try:
        output = getattr(launch, f"{op_name}_forward")(*device)
        gradients = getattr(launch, f"{op_name}_backward")(grad.to(DEVICE), *device)
    finally:
        torch.use_deterministic_algorithms(False)
    names = ["output", "features", "rois", "offsets", "parameters"]
    for name, ours, expected in zip(names, [output, *gradients], exact(tensors, op, grad), strict=False):
        assert ours.shape == expected.shape
        assert error(ours, expected) < max(TOLERANCE[dtype], TOLERANCE[geometry_dtype]), (name, error(ours, expected))
    assert [gradient.dtype for gradient in gradients] == dtypes[: len(gradients)]


@on_kernels
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op_name", ["sample", "mix"])
def test_kernels_agree_with_float64(op_name, dtype, size):
    check(op_name, size, dtype)


@on_kernels
@pytest.mark.parametrize("size", SIZES[1:4:2])
@pytest.mark.parametrize("op_name", ["sample", "mix"])
def test_deterministic_kernels_agree_with_float64(op_name, size):
    check(op_name, size, torch.float32, deterministic=True)


@on_kernels
def test_autocast_may_give_features_and_parameters_of_two_dtypes():
    check("mix", SIZES[0], torch.float16, feature_dtype=torch.float32)


@on_kernels
@pytest.mark.parametrize("op_name", ["sample", "mix"])
def test_gradients_of_half_precision_geometry_have_its_dtype(op_name):
    check(op_name, SIZES[0], torch.float16, geometry_dtype=torch.bfloat16)


@on_kernels
@pytest.mark.parametrize("op", [sample_points, sample_and_mix])
def test_no_kernel_reads_past_tensors_that_do_not_belong_together(op, monkeypatch):
    from sf_llava.ops import launch

    monkeypatch.setattr(sampling, "analytic", launch)  # what the op calls in the interpreter; on a GPU it does itself
    features, rois, *others = (tensor.float().to(DEVICE) for tensor in draw()[: 3 if op is sample_points else 4])
    with force("op"):
        assert op(features, rois, *others).isfinite().all()
        with pytest.raises(ValueError, match=r"rois \(B, N, 4\)"):
            op(features, rois[:, :1], *others)


@on_kernels
def test_no_images_are_no_fault():
    from sf_llava.ops import launch

    tensors = [tensor.float().to(DEVICE) for tensor in draw(batch=0)]
    mixed = launch.mix_forward(*tensors)
    assert mixed.shape == (0, 5, 32 * 64)
    assert [x.shape for x in launch.mix_backward(mixed, *tensors)] == [x.shape for x in tensors]


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="compiling needs Triton without its interpreter")
def test_kernels_compile_without_a_gpu_to_wide_loads_and_no_stack_up_to_their_bounds():
    command = [sys.executable, str(Path(__file__).with_name("compile_kernels.py"))]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    compiled = [json.loads(line) for line in result.stdout.splitlines()]
    left_out = {100} if version("triton").startswith("3.7.") else set()  # docs/versions.md
    assert {kernel["capability"] for kernel in compiled} == {80, 90, 100, 120} - left_out
    for kernel in compiled:
        at_bounds = kernel["mixing_points"] > 32
        assert kernel["stack"] == 0, kernel
        assert kernel["shared"] < (99 if at_bounds else 48) * 1024, kernel
        assert kernel["wide_loads"] >= (1 if kernel["kernel"] == "feature_gradient" else 4), kernel
