"""What the ops take, on every path, and what the Triton kernels take of that.

No size that ``torch.export`` or ``torch.compile`` keeps open is branched on: there a wrong size becomes an assertion of
the graph, and a choice is made by what is known of every size.

Letters: B images, N latents, P points, Q mixing points, H x W x C feature map (channels last); BP and BQ are P and Q
rounded up to a power of two (at least 16).
"""

import torch
from torch import Tensor

EXPECTED = "expected features (B, H, W, C), rois (B, N, 4) and offsets (B, N, P, 2) with P of 2 and more"
EXPECTED_TO_MIX = f"{EXPECTED} and parameters (B, N, C C + Q P)"

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
POINTS = {2: {16: 64, 32: 64, 64: 32}, 4: {16: 32, 32: 32, 64: 16}}
"""Most points that the kernels take, by the bytes of a feature or parameter (the wider) and by channels. A program
holds a token's samples [BP, C] in registers: with twice as many the backward has some in memory on one GPU or another,
and tensor operations compute the ops instead. ``tests/ops/compile_kernels.py`` shows what every kernel takes."""
MIXING_POINTS = 64
"""Most of them that the kernels take, for the same reason."""


def check(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor | None = None) -> None:
    """Check what an op is given; nothing is broadcast.

    Raises:
        ValueError: shapes that do not belong together, a dtype that is no float, or several devices.
    """
    given = (features, rois, offsets) if parameters is None else (features, rois, offsets, parameters)
    device = features.device
    for tensor in given:
        if not tensor.is_floating_point() or tensor.device != device:
            kinds = ", ".join(f"{tensor.dtype} on {tensor.device}" for tensor in given)
            raise ValueError(f"expected floating-point tensors on one device, got {kinds}")
    expected = EXPECTED if parameters is None else EXPECTED_TO_MIX
    ranks_fit = tuple(tensor.dim() for tensor in given) == (4, 3, 4, 3)[: len(given)]
    sizes_fit = _compare_sizes(features, rois, offsets, parameters) if ranks_fit else (False,)
    if torch.compiler.is_compiling():
        for fits in sizes_fit:
            torch._check(fits, lambda: expected)
    elif not all(sizes_fit):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given)
        raise ValueError(f"{expected}, got {shapes}")


def _compare_sizes(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor | None) -> tuple[bool, ...]:
    """Compare what is given, of the right numbers of dimensions, with the shapes that belong together."""
    batch, height, width, channels = features.shape
    rois_batch, latents, corners = rois.shape
    offsets_batch, offsets_latents, points, axes = offsets.shape
    fits = (
        *(height > 0, width > 0, channels > 0),
        *(rois_batch == batch, corners == 4),
        *(offsets_batch == batch, offsets_latents == latents, points > 1, axes == 2),
    )
    if parameters is None:
        return fits
    parameters_batch, parameters_latents, length = parameters.shape
    rest = length - channels * channels
    return *fits, parameters_batch == batch, parameters_latents == latents, rest > 0, rest % points == 0


def is_known(condition: bool) -> bool:
    """Tell whether a condition on sizes holds; False where a graph keeps a size open, so that nothing is assumed."""
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(condition)
    return condition


def kernels_fit(features: Tensor, rois: Tensor, offsets: Tensor, parameters: Tensor | None = None) -> bool:
    """Tell whether tensors that :func:`check` has taken are within the bounds of the Triton kernels."""
    contents = [features] if parameters is None else [features, parameters]
    geometry_fits = rois.dtype != torch.float64 and offsets.dtype != torch.float64  # which promises float64 points
    if not geometry_fits or not all(tensor.dtype in DTYPES for tensor in contents):
        return False
    if not is_known(features.shape[1:].numel() < 2**31):  # a pixel's address in its map is an int32
        return False
    channels, points = features.shape[3], offsets.shape[2]
    if parameters is not None and not is_known(parameters.shape[2] <= channels * channels + MIXING_POINTS * points):
        return False
    most = POINTS[max(tensor.element_size() for tensor in contents)]
    return any(is_known(channels == number) and is_known(points <= most[number]) for number in most)
