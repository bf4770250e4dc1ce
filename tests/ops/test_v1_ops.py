"""What SparseFormer v1 asks of the ops: zeros outside the image, biases in the mixing, 36 points, clips."""

import pytest
import torch
import torch.nn.functional as F
from ops_cases import draw

from sf_llava.ops import (
    add_zero_border,
    force,
    inside_border,
    mix_with_biases,
    place_points,
    sample_clips,
    sample_points,
)
from sf_llava.ops.limits import kernels_fit


def gradients(samples, tensors):
    weights = torch.randn(samples.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [samples, *torch.autograd.grad(samples, tensors, weights)]


@pytest.mark.parametrize(
    "size", [dict(points=36, channels=6), dict(points=36, height=7, width=19, latents=9, channels=3)]
)
@pytest.mark.parametrize("path", ["reference", "op"])
def test_a_border_of_zeros_reads_as_zero_padding_does(path, size):
    features, rois, offsets = (tensor.requires_grad_() for tensor in draw(**size)[:3])
    padded = F.grid_sample(
        features.permute(0, 3, 1, 2),
        place_points(rois, offsets) * 2 - 1,
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    expected = gradients(padded.permute(0, 2, 3, 1), (features, rois, offsets))
    with force(path):
        bordered = add_zero_border(features)
        ours = gradients(sample_points(bordered, inside_border(rois, bordered), offsets), (features, rois, offsets))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_mixing_with_biases_is_two_products_with_a_gelu_behind_each():
    _, _, _, parameters = draw(points=36, channels=6, mixing_points=36)
    samples, (channel_bias, point_bias) = torch.randn(2, 5, 36, 6).double(), (torch.randn(6), torch.randn(36))
    mixed = mix_with_biases(samples, parameters, channel_bias.double(), point_bias.double())
    for image in range(2):
        for latent in range(5):
            over_channels, over_points = parameters[image, latent].split([36, 36 * 36])
            hidden = F.gelu(samples[image, latent] @ over_channels.view(6, 6) + channel_bias)
            expected = F.gelu(over_points.view(36, 36) @ hidden + point_bias[:, None])
            torch.testing.assert_close(mixed[image, latent].view(36, 6), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_leave_v1_to_tensor_operations(dtype):
    features, rois, offsets, _ = draw(points=36, channels=96, dtype=dtype)
    assert not kernels_fit(features, rois.float(), offsets.float())
    features, rois, offsets, _ = draw(points=36, channels=64, dtype=dtype)
    assert not kernels_fit(features, rois.float(), offsets.float())  # nor 36 points of the bootstrapped ones' channels


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_a_number_stays_visible_in_a_clip(value):
    features, rois, offsets, _ = draw(channels=6)
    clip = features.unflatten(1, (2, 7))  # [B, F, H, W, C]
    rois = torch.cat([rois[..., :2], torch.zeros(2, 5, 1), rois[..., 2:], torch.ones(2, 5, 1)], dim=-1).double()
    rois[0, 0] = value
    samples = sample_clips(clip, rois, torch.cat([offsets, offsets[..., :1]], dim=-1))
    assert samples[0, 0].isnan().all() and samples[0, 1:].isfinite().all()


def test_a_clip_of_one_frame_reads_it_at_its_middle_alone():
    features, rois, offsets, _ = draw(channels=6)
    corners = [rois[..., :2], torch.zeros(2, 5, 1), rois[..., 2:], torch.ones(2, 5, 1)]
    still = torch.cat([offsets, torch.zeros_like(offsets[..., :1])], dim=-1)
    bordered = add_zero_border(features)
    expected = sample_points(bordered, inside_border(rois, bordered), offsets)
    torch.testing.assert_close(sample_clips(features[:, None], torch.cat(corners, dim=-1), still), expected)
