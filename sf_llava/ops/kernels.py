"""Triton kernels: bilinear sampling under RoIs, and sampling fused with adaptive mixing, forward and backward.

One program serves one token (or, for the deterministic feature gradient, one piece of a row of the map). Geometry is
computed in float32 inside the kernel from RoIs and offsets, so points never reach memory; a pixel's C channels are
contiguous, 128 bytes for 64 half-precision channels, and are read with wide loads. The mixing matrices meet the samples
on tensor cores with float32 accumulation.

Imported only where Triton is there (or its interpreter: TRITON_INTERPRET=1). Letters: N latents, P points, Q mixing
points, H x W x C feature map; BP and BQ are P and Q rounded up to a power of two (at least 16).
"""

import triton
import triton.language as tl

from sf_llava.ops.geometry import OFFSET_EPS as _OFFSET_EPS

OFFSET_EPS = tl.constexpr(_OFFSET_EPS)
SQRT_HALF = tl.constexpr(0.7071067811865476)
NORMAL = tl.constexpr(0.3989422804014327)  # density of the standard normal distribution at 0


@triton.jit
def _axis(rois, offsets, token, axis: tl.constexpr, P: tl.constexpr, BP: tl.constexpr):
    """Load one axis of a token's geometry: offset deviations [BP], their spread, the RoI's low and high corner."""
    p = tl.arange(0, BP)
    valid = p < P
    offset = tl.load(offsets + token * (2 * P) + 2 * p + axis, mask=valid, other=0.0)
    deviations = tl.where(valid, offset - tl.sum(offset, 0) / P, 0.0)
    spread = tl.sqrt_rn(tl.sum(deviations * deviations, 0) / (P - 1))
    low = tl.load(rois + token * 4 + axis)
    high = tl.load(rois + token * 4 + axis + 2)
    return deviations, spread, low, high


@triton.jit
def _pixels(deviations, spread, low, high, size):
    """Place points along one axis, in pixels of a map of ``size``: what is clipped to the border, and where it was."""
    point = (low + high) * 0.5 + deviations / (3 * (spread + OFFSET_EPS)) * (high - low)
    pixel = point * size - 0.5
    clipped = tl.minimum(tl.maximum(pixel, 0.0), size - 1.0)
    inside = (pixel > 0.0) & (pixel < size - 1.0)
    whole = tl.floor(clipped)
    first = tl.minimum(tl.maximum(whole.to(tl.int32), 0), size - 1)
    second = tl.minimum(first + 1, size - 1)
    # Not a number must stay visible in the samples: the fraction takes it from the pixel that was not clipped.
    fraction = tl.where(pixel == pixel, clipped - whole, pixel)
    return clipped, fraction, first, second, inside


@triton.jit
def _read(image, x0, x1, y0, y1, W, C: tl.constexpr):
    """Read the four pixels around every point: four tiles [BP, C] in the map's dtype."""
    c = tl.arange(0, C)[None, :]
    top_left = tl.load(image + ((y0 * W + x0) * C)[:, None] + c)
    top_right = tl.load(image + ((y0 * W + x1) * C)[:, None] + c)
    bottom_left = tl.load(image + ((y1 * W + x0) * C)[:, None] + c)
    bottom_right = tl.load(image + ((y1 * W + x1) * C)[:, None] + c)
    return top_left, top_right, bottom_left, bottom_right


@triton.jit
def _sample(image, rois, offsets, token, H, W, P: tl.constexpr, BP: tl.constexpr, C: tl.constexpr):
    """Sample one token: [BP, C] float32; rows beyond P repeat the RoI's centre."""
    deviations, spread, low, high = _axis(rois, offsets, token, 0, P, BP)
    _, x, x0, x1, _ = _pixels(deviations, spread, low, high, W)
    deviations, spread, low, high = _axis(rois, offsets, token, 1, P, BP)
    _, y, y0, y1, _ = _pixels(deviations, spread, low, high, H)
    top_left, top_right, bottom_left, bottom_right = _read(image, x0, x1, y0, y1, W, C)
    x = x[:, None]
    y = y[:, None]
    top = top_left.to(tl.float32) * (1 - x) + top_right.to(tl.float32) * x
    bottom = bottom_left.to(tl.float32) * (1 - x) + bottom_right.to(tl.float32) * x
    return top * (1 - y) + bottom * y


@triton.jit
def _axis_backward(
    d_point, deviations, spread, low, high, d_offsets, d_rois, token, axis: tl.constexpr, P: tl.constexpr
):
    """Carry the gradient of one axis of the points [BP] (0 beyond P) to offsets and RoI, and store both."""
    scale = 1 / (3 * (spread + OFFSET_EPS))
    d_centre = tl.sum(d_point, 0)
    d_size = tl.sum(d_point * deviations, 0) * scale
    tl.store(d_rois + token * 4 + axis, d_centre * 0.5 - d_size)
    tl.store(d_rois + token * 4 + axis + 2, d_centre * 0.5 + d_size)
    d_spread = -d_size * (high - low) / (spread + OFFSET_EPS)
    d_spread = tl.where(spread > 0.0, d_spread / ((P - 1) * tl.where(spread > 0.0, spread, 1.0)), 0.0)
    d_offset = (d_point - d_centre / P) * (high - low) * scale + deviations * d_spread
    p = tl.arange(0, d_point.shape[0])
    tl.store(d_offsets + token * (2 * P) + 2 * p + axis, d_offset, mask=p < P)


@triton.jit
def _sample_backward(
    grad, image, d_image, rois, offsets, d_rois, d_offsets, pixels, token, H, W,
    P: tl.constexpr, BP: tl.constexpr, C: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """Carry the gradient [BP, C] of a token's samples (0 beyond P) to its RoI and offsets, and to the map.

    With ATOMIC the map's gradient is added where the points lie; otherwise the points are stored for
    :func:`feature_gradient_kernel`.
    """
    p = tl.arange(0, BP)
    deviations_x, spread_x, low_x, high_x = _axis(rois, offsets, token, 0, P, BP)
    deviations_y, spread_y, low_y, high_y = _axis(rois, offsets, token, 1, P, BP)
    at_x, fraction_x, x0, x1, inside_x = _pixels(deviations_x, spread_x, low_x, high_x, W)
    at_y, fraction_y, y0, y1, inside_y = _pixels(deviations_y, spread_y, low_y, high_y, H)
    x = fraction_x[:, None]
    y = fraction_y[:, None]
    if ATOMIC:
        c = tl.arange(0, C)[None, :]
        mask = (p < P)[:, None] & (c < C)
        tl.atomic_add(d_image + ((y0 * W + x0) * C)[:, None] + c, grad * (1 - x) * (1 - y), mask=mask, sem="relaxed")
        tl.atomic_add(d_image + ((y0 * W + x1) * C)[:, None] + c, grad * x * (1 - y), mask=mask, sem="relaxed")
        tl.atomic_add(d_image + ((y1 * W + x0) * C)[:, None] + c, grad * (1 - x) * y, mask=mask, sem="relaxed")
        tl.atomic_add(d_image + ((y1 * W + x1) * C)[:, None] + c, grad * x * y, mask=mask, sem="relaxed")
    else:
        tl.store(pixels + token * (2 * P) + 2 * p, at_x, mask=p < P)
        tl.store(pixels + token * (2 * P) + 2 * p + 1, at_y, mask=p < P)
    top_left, top_right, bottom_left, bottom_right = _read(image, x0, x1, y0, y1, W, C)
    right_minus_left_top = top_right.to(tl.float32) - top_left.to(tl.float32)
    right_minus_left_bottom = bottom_right.to(tl.float32) - bottom_left.to(tl.float32)
    d_x = tl.sum(grad * (right_minus_left_top * (1 - y) + right_minus_left_bottom * y), 1)
    left = bottom_left.to(tl.float32) - top_left.to(tl.float32)
    right = bottom_right.to(tl.float32) - top_right.to(tl.float32)
    d_y = tl.sum(grad * (left * (1 - x) + right * x), 1)
    d_x = tl.where(inside_x & (p < P), d_x, 0.0) * W
    d_y = tl.where(inside_y & (p < P), d_y, 0.0) * H
    _axis_backward(d_x, deviations_x, spread_x, low_x, high_x, d_offsets, d_rois, token, 0, P)
    _axis_backward(d_y, deviations_y, spread_y, low_y, high_y, d_offsets, d_rois, token, 1, P)


@triton.jit
def sample_forward_kernel(
    features, rois, offsets, samples, N, H, W, P: tl.constexpr, BP: tl.constexpr, C: tl.constexpr
):
    """Write one token's samples [P, C]."""
    token = tl.program_id(0).to(tl.int64)
    image = features + (tl.program_id(0) // N).to(tl.int64) * (H * W * C)
    tile = _sample(image, rois, offsets, token, H, W, P, BP, C)
    p = tl.arange(0, BP)[:, None]
    c = tl.arange(0, C)[None, :]
    tl.store(samples + token * (P * C) + p * C + c, tile.to(samples.dtype.element_ty), mask=p < P)


@triton.jit
def sample_backward_kernel(
    grad, features, d_features, rois, offsets, d_rois, d_offsets, pixels, N, H, W,
    P: tl.constexpr, BP: tl.constexpr, C: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """Carry one token's sample gradient [P, C] back."""
    token = tl.program_id(0).to(tl.int64)
    first = (tl.program_id(0) // N).to(tl.int64) * (H * W * C)
    p = tl.arange(0, BP)[:, None]
    c = tl.arange(0, C)[None, :]
    tile = tl.load(grad + token * (P * C) + p * C + c, mask=p < P, other=0.0).to(tl.float32)
    _sample_backward(
        tile, features + first, d_features + first, rois, offsets, d_rois, d_offsets, pixels, token, H, W,
        P, BP, C, ATOMIC,
    )  # fmt: skip


@triton.jit
def _matrices(parameters, token, P: tl.constexpr, BP: tl.constexpr, Q: tl.constexpr, BQ: tl.constexpr, C: tl.constexpr):
    """Load a token's channel mixing [C, C] and point mixing [BQ, BP], zero beyond Q and P."""
    start = parameters + token * (C * C + Q * P)
    c = tl.arange(0, C)
    channel_mixing = tl.load(start + (c * C)[:, None] + c[None, :])
    q = tl.arange(0, BQ)[:, None]
    p = tl.arange(0, BP)[None, :]
    point_mixing = tl.load(start + C * C + q * P + p, mask=(q < Q) & (p < P), other=0.0)
    return channel_mixing, point_mixing


@triton.jit
def mix_forward_kernel(
    features, rois, offsets, parameters, mixed, N, H, W,
    P: tl.constexpr, BP: tl.constexpr, Q: tl.constexpr, BQ: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Sample one token, mix channels, mix points, apply the GELU: write [Q, C]."""
    token = tl.program_id(0).to(tl.int64)
    image = features + (tl.program_id(0) // N).to(tl.int64) * (H * W * C)
    dtype = parameters.dtype.element_ty
    channel_mixing, point_mixing = _matrices(parameters, token, P, BP, Q, BQ, C)
    samples = _sample(image, rois, offsets, token, H, W, P, BP, C).to(dtype)
    channels_mixed = tl.dot(samples, channel_mixing, input_precision="ieee")  # [BP, C]
    tile = tl.dot(point_mixing, channels_mixed.to(dtype), input_precision="ieee")  # [BQ, C]
    tile = 0.5 * tile * (1 + tl.erf(tile * SQRT_HALF))
    q = tl.arange(0, BQ)[:, None]
    c = tl.arange(0, C)[None, :]
    tl.store(mixed + token * (Q * C) + q * C + c, tile.to(dtype), mask=q < Q)


@triton.jit
def mix_backward_kernel(
    grad, features, d_features, rois, offsets, parameters, d_rois, d_offsets, d_parameters, d_samples, pixels, N, H, W,
    P: tl.constexpr, BP: tl.constexpr, Q: tl.constexpr, BQ: tl.constexpr, C: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """Carry one token's gradient [Q, C] back through the GELU, both products and the sampling, all recomputed."""
    token = tl.program_id(0).to(tl.int64)
    first = (tl.program_id(0) // N).to(tl.int64) * (H * W * C)
    dtype = parameters.dtype.element_ty
    c = tl.arange(0, C)
    q = tl.arange(0, BQ)[:, None]
    p = tl.arange(0, BP)
    channel_mixing, point_mixing = _matrices(parameters, token, P, BP, Q, BQ, C)
    samples = _sample(features + first, rois, offsets, token, H, W, P, BP, C).to(dtype)
    channels_mixed = tl.dot(samples, channel_mixing, input_precision="ieee").to(dtype)  # [BP, C]
    mixed = tl.dot(point_mixing, channels_mixed, input_precision="ieee")  # [BQ, C]
    d_mixed = tl.load(grad + token * (Q * C) + q * C + c[None, :], mask=q < Q, other=0.0).to(tl.float32)
    cdf = 0.5 * (1 + tl.erf(mixed * SQRT_HALF))
    d_mixed = (d_mixed * (cdf + mixed * NORMAL * tl.exp(-0.5 * mixed * mixed))).to(dtype)
    d_matrices = d_parameters + token * (C * C + Q * P)
    d_point_mixing = tl.dot(d_mixed, tl.trans(channels_mixed), input_precision="ieee")  # [BQ, BP]
    p_row = p[None, :]
    tl.store(d_matrices + C * C + q * P + p_row, d_point_mixing.to(dtype), mask=(q < Q) & (p_row < P))
    d_channels_mixed = tl.dot(tl.trans(point_mixing), d_mixed, input_precision="ieee").to(dtype)  # [BP, C]
    d_channel_mixing = tl.dot(tl.trans(samples), d_channels_mixed, input_precision="ieee")  # [C, C]
    tl.store(d_matrices + (c * C)[:, None] + c[None, :], d_channel_mixing.to(dtype))
    tile = tl.dot(d_channels_mixed, tl.trans(channel_mixing), input_precision="ieee")  # [BP, C]
    if not ATOMIC:
        tl.store(d_samples + token * (P * C) + (p * C)[:, None] + c[None, :], tile, mask=(p < P)[:, None])
    _sample_backward(
        tile, features + first, d_features + first, rois, offsets, d_rois, d_offsets, pixels, token, H, W,
        P, BP, C, ATOMIC,
    )  # fmt: skip


@triton.jit
def feature_gradient_kernel(
    grad, pixels, d_features, N, H, W, P: tl.constexpr, BP: tl.constexpr, C: tl.constexpr, BX: tl.constexpr
):
    """Gather the map's gradient for BX pixels of one row, in the order of the tokens: no atomics.

    A bilinear weight is a product of two hat functions, so the gradient of a row piece is a matrix product of hats
    [BX, P] with the samples' gradients [P, C]; tokens that have no point near the piece are skipped.
    """
    row = tl.program_id(0).to(tl.int64)
    image = (tl.program_id(0) // H).to(tl.int64)
    y = (tl.program_id(0) % H).to(tl.float32)
    first = tl.program_id(1) * BX
    x = first + tl.arange(0, BX)
    p = tl.arange(0, BP)
    c = tl.arange(0, C)
    total = tl.zeros([BX, C], tl.float32)
    for latent in range(N):
        token = image * N + latent
        at_x = tl.load(pixels + token * (2 * P) + 2 * p, mask=p < P, other=-2.0)
        at_y = tl.load(pixels + token * (2 * P) + 2 * p + 1, mask=p < P, other=-2.0)
        hat_y = tl.maximum(1 - tl.abs(at_y - y), 0.0)
        near = (hat_y > 0.0) & (at_x > first - 1) & (at_x < first + BX)
        if tl.max(near.to(tl.int32), 0) > 0:
            hat_x = tl.maximum(1 - tl.abs(x[:, None].to(tl.float32) - at_x[None, :]), 0.0)  # [BX, BP]
            tile = tl.load(
                grad + token * (P * C) + (p * C)[:, None] + c[None, :], mask=(p < P)[:, None], other=0.0
            )  # [BP, C]
            total += tl.dot(hat_x * hat_y[None, :], tile.to(tl.float32), input_precision="ieee")
    at = (row * W + x)[:, None] * C + c[None, :]
    tl.store(d_features + at, total.to(d_features.dtype.element_ty), mask=(x < W)[:, None])
