"""Where every latent looks: sampling points from RoIs and offsets, and the gradient of that.

Letters: B images, N latents, P points.
"""

from torch import Tensor

OFFSET_EPS = 1e-5
MINIMAL_VARIANCE = 1e-30


def place_points(rois: Tensor, offsets: Tensor) -> Tensor:
    """Place every latent's sampling points in its RoI: normalise the offsets per token, scale by the RoI's size.

    The offsets of a token are centred and divided by three times their unbiased standard deviation, so that most of
    them fall inside the RoI; points may leave the RoI and the image, and are never clamped.

    Args:
        rois: (B, N, 4) corners ``x0, y0, x1, y1`` as image fractions; in clips (B, N, 6) ``x0, y0, t0, x1, y1, t1``.
        offsets: (B, N, P, 2) raw offsets, x before y; in clips (B, N, P, 3), time last.

    Returns:
        (B, N, P, 2) points as image fractions, x before y, float32 (float64 where the inputs are); in clips
        (B, N, P, 3).
    """
    rois, offsets = to_geometry(rois), to_geometry(offsets)
    deviations = offsets - offsets.mean(dim=-2, keepdim=True)
    normalised = deviations / (3 * (_spread(deviations) + OFFSET_EPS))
    axes = offsets.shape[-1]
    centres = (rois[..., :axes] + rois[..., axes:]) / 2  # [B, N, 2]
    sizes = rois[..., axes:] - rois[..., :axes]
    return centres[:, :, None] + normalised * sizes[:, :, None]


def place_points_backward(d_points: Tensor, rois: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Carry the gradient of the points (B, N, P, 2) back to RoIs (B, N, 4) and offsets (B, N, P, 2)."""
    sizes = (rois[..., 2:] - rois[..., :2])[:, :, None]  # [B, N, 1, 2]
    deviations = offsets - offsets.mean(dim=-2, keepdim=True)  # [B, N, P, 2]
    spread = _spread(deviations)  # [B, N, 1, 2]
    scale = 1 / (3 * (spread + OFFSET_EPS))
    d_centres = d_points.sum(dim=-2)  # [B, N, 2]
    d_sizes = (d_points * deviations * scale).sum(dim=-2)
    d_rois = (d_centres / 2).repeat(1, 1, 2)
    d_rois[..., :2] -= d_sizes
    d_rois[..., 2:] += d_sizes
    # The normalised offsets are deviations * scale; scale falls with the spread, the spread grows with deviations.
    d_spread = -d_sizes[:, :, None] * sizes / (spread + OFFSET_EPS)  # [B, N, 1, 2]
    d_spread = d_spread / ((offsets.shape[-2] - 1) * spread)
    d_offsets = (d_points - d_centres[:, :, None] / offsets.shape[-2]) * sizes * scale + deviations * d_spread
    return d_rois, d_offsets


def _spread(deviations: Tensor) -> Tensor:
    """Unbiased standard deviation of deviations (B, N, P, 2) over the points, (B, N, 1, 2); ten times ``std``'s speed.

    Where all offsets of a token are equal, it has no gradient: the lower limit of the variance makes it zero.
    """
    variance = deviations.square().sum(dim=-2, keepdim=True) / (deviations.shape[-2] - 1)
    return variance.clamp(min=MINIMAL_VARIANCE).sqrt()


def to_geometry(x: Tensor) -> Tensor:
    """Promote half precision to float32; float32 and float64 stay."""
    return x.float() if x.element_size() < 4 else x


def prepare_map(features: Tensor) -> Tensor:
    """Bring a feature map into the form in which it is read again and again.

    The CPU reads in float32: a half-precision map is converted once here, not at every read.
    """
    return to_geometry(features) if features.device.type == "cpu" else features
