"""From latents back to pixels: attention of every place of a map to the latents, biased by their RoIs (Eq. 7).

Letters: B images, N latents, H x W places of the map (a quarter of the pixels), d width, L classes.
"""

import torch
from torch import Tensor

from sf_llava.ops.geometry import to_geometry

ROI_SPREAD = 0.25
"""Standard deviation of the Gaussian in sides of the RoI: two of them from its centre to its edge."""


def geometric_bias(rois: Tensor, height: int, width: int) -> Tensor:
    """Weigh the places of a map by a Gaussian in every latent's RoI: the logarithm of its height, 0 at the centre.

    RoIs narrower than a place of the map, those of no size among them, count as wide as one; RoIs and their centres may
    leave the image, and those far away weigh next to nothing. "Gaussian-like" is all that the paper says (B_geometric).

    Args:
        rois: (B, N, 4) corners ``x0, y0, x1, y1`` as image fractions, in either order.
        height, width: of the map; places lie at the centres of its cells.

    Returns:
        (B, H W, N) at most 0, float32 (float64 where the RoIs are).
    """
    rois = to_geometry(rois)
    centres = (rois[..., :2] + rois[..., 2:]) / 2  # [B, N, 2]
    sides = (rois[..., 2:] - rois[..., :2]).abs()
    parts = []
    for axis, count in enumerate((width, height)):
        places = (torch.arange(count, dtype=rois.dtype, device=rois.device) + 0.5) / count
        spread = ROI_SPREAD * sides[..., axis].clamp(min=1 / count)
        parts.append(-0.5 * ((places[:, None] - centres[..., None, :, axis]) / spread[..., None, :]).square())
    across, down = parts  # [B, W, N], [B, H, N]
    return (down[..., :, None, :] + across[..., None, :, :]).flatten(-3, -2)


def dense_attention(queries: Tensor, keys: Tensor, values: Tensor, rois: Tensor, importance: Tensor) -> Tensor:
    """Carry what latents say to every place of a map (Eq. 7): one head, scores biased by geometry and by importance.

    The scores and their softmax are computed in float32 at least. A latent of importance ``-inf`` is not read.

    Args:
        queries: (B, H, W, d) of the places.
        keys: (B, N, d) of the latents.
        values: (B, N, L) what they say: class logits.
        rois: (B, N, 4) corners as image fractions.
        importance: (B, N) added to the scores of all places (B_predictive).

    Returns:
        (B, H, W, L) in the dtype of ``values``.
    """
    height, width, size = queries.shape[1:]
    scores = to_geometry((queries.flatten(1, 2) * size**-0.5) @ keys.transpose(1, 2))  # [B, H W, N]
    scores = scores + geometric_bias(rois, height, width) + to_geometry(importance)[:, None]
    weights = scores.softmax(dim=-1).to(values.dtype)
    return (weights @ values).unflatten(1, (height, width))
