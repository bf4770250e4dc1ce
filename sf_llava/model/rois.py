"""Regions of interest: their start, their movement, their position encoding.

RoIs are corners ``x0, y0, x1, y1`` as image fractions, always float32 (float64 in a float64 model).
"""

import math

import torch
from torch import Tensor

from sf_llava.ops.geometry import to_geometry

ROI_SIDE = 0.5
MAX_FREQUENCY = 128


def initial_rois(num_latents: int) -> Tensor:
    """Lay ``num_latents`` boxes, half the image wide, on a balanced grid: all distinct for every N.

    Rows differ by one box at most. Unlike the official code, no box is a duplicate: latents share their embedding, so
    equal RoIs would get equal gradients and stay equal for ever.

    Returns:
        (N, 4) corners as image fractions, float32.
    """
    rows = max(1, round(math.sqrt(num_latents)))
    shorter, longer_rows = divmod(num_latents, rows)
    corners = []
    for row, y in enumerate(_starts(rows)):
        corners += [(x, y) for x in _starts(shorter + (row >= rows - longer_rows))]
    starts = torch.tensor(corners, dtype=torch.float32)  # whatever the default: bfloat16 would move them by pixels
    return torch.cat([starts, starts + ROI_SIDE], dim=-1)


def _starts(count: int) -> list[float]:
    """Spread ``count`` boxes from edge to edge; a single one is centred."""
    free = 1 - ROI_SIDE
    return [free / 2] if count == 1 else [free * i / (count - 1) for i in range(count)]


def initial_offsets(num_points: int) -> Tensor:
    """Lay the first sampling offsets (P, 2) on a centred grid; for a P that is no square, draw them at random."""
    side = math.isqrt(num_points)
    if side**2 != num_points:
        return torch.rand(num_points, 2, dtype=torch.float32) - 0.5
    ticks = (torch.arange(side, dtype=torch.float32) + 0.5) / side - 0.5
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def adjust_rois(rois: Tensor, deltas: Tensor) -> Tensor:
    """Move and rescale every latent's RoI by its predicted delta (Eq. 2-3).

    Args:
        rois: (B, N, 4) corners ``x0, y0, x1, y1`` as image fractions; they may leave [0, 1]. In clips (B, N, 6),
            ``x0, y0, t0, x1, y1, t1``.
        deltas: (B, N, 4) ``dx, dy, dw, dh``; dx, dy in units of the RoI's own size, dw, dh as log-scales. In clips
            (B, N, 6), ``dx, dy, dt, dw, dh, dl``.

    Returns:
        (B, N, 4) or (B, N, 6) corners, float32 at least, even under autocast.
    """
    rois = to_geometry(rois)
    deltas = deltas.to(rois.dtype)
    axes = rois.shape[-1] // 2
    centres = (rois[..., :axes] + rois[..., axes:]) / 2
    sizes = (rois[..., axes:] - rois[..., :axes]).abs()
    centres = centres + deltas[..., :axes] * sizes
    sizes = sizes * deltas[..., axes:].exp()
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)


@torch.no_grad()
def encode_positions(rois: Tensor, width: int) -> Tensor:
    """Encode the four corners of every RoI by sines and cosines; no gradient flows back into the RoIs.

    ``width / 4`` frequencies for each corner value, spaced exponentially from pi to 128 pi; the even ones give sines,
    the odd ones cosines (the official code's choice; the paper describes sine and cosine of the same frequencies).

    Args:
        rois: (B, N, 4) corners as image fractions.
        width: size of the encoding, a multiple of 8.

    Returns:
        (B, N, width) in the dtype of ``rois``.
    """
    exponents = torch.linspace(0, math.log(MAX_FREQUENCY), width // 4, dtype=rois.dtype, device=rois.device)
    phases = rois[..., None] * math.pi * exponents.exp()  # [B, N, 4, width / 4]
    return torch.cat([phases[..., 0::2].sin(), phases[..., 1::2].cos()], dim=-1).flatten(-2)
