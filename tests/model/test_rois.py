"""RoIs: their start, Eq. 2-3, their encoding, the points inside them."""

import math

import pytest
import torch

from sf_llava.configuration import preset
from sf_llava.model import SparseFormerModel
from sf_llava.model.rois import adjust_rois, encode_positions, initial_rois
from sf_llava.ops import place_points, sample_points


@pytest.mark.parametrize("num_latents", range(1, 201))
def test_all_initial_rois_are_distinct_and_inside_the_image(num_latents):
    rois = initial_rois(num_latents)
    assert rois.shape == (num_latents, 4)
    assert len({tuple(roi) for roi in rois.half().tolist()}) == num_latents
    assert rois.min() >= 0
    assert rois.max() <= 1
    assert torch.allclose(rois[:, 2:] - rois[:, :2], torch.tensor(0.5))


def test_square_numbers_start_as_the_official_grid():
    rois = initial_rois(9).view(3, 3, 4)
    ticks = torch.tensor([0.0, 0.25, 0.5])
    assert torch.allclose(rois[..., 0], ticks.expand(3, 3))
    assert torch.allclose(rois[..., 1], ticks[:, None].expand(3, 3))


def test_rois_stay_distinct_after_training_steps():
    torch.manual_seed(0)
    model = SparseFormerModel(preset("sf-mini", num_latents=15))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    images, target = torch.randn(4, 3, 64, 64), torch.randn(4, 128)
    start = model.focusing.initial_rois.detach().clone()
    for _ in range(5):
        loss = 1 - torch.cosine_similarity(model(images).image_embeds, target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rois = model.focusing.initial_rois.detach()
    assert not torch.equal(rois, start)
    assert len({tuple(roi) for roi in rois.tolist()}) == 15
    assert torch.pdist(rois).min() > 1e-3


def test_unit_shift_moves_by_one_roi_width():
    rois = torch.tensor([[[0.1, 0.2, 0.5, 0.4]]])
    moved = adjust_rois(rois, torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]))
    torch.testing.assert_close(moved, torch.tensor([[[0.5, 0.2, 0.9, 0.4]]]))


def test_log_scale_doubles_about_the_centre():
    rois = torch.tensor([[[0.4, 0.4, 0.6, 0.6]]])
    scaled = adjust_rois(rois, torch.tensor([[[0.0, 0.0, math.log(2), 0.0]]]))
    torch.testing.assert_close(scaled, torch.tensor([[[0.3, 0.4, 0.7, 0.6]]]))


def test_rois_are_not_clamped_and_stay_float32():
    moved = adjust_rois(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), torch.tensor([[[3.0, -2.0, 0.0, 0.0]]]).half())
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, torch.tensor([[[3.0, -2.0, 4.0, -1.0]]]))


def test_positions_are_encoded_by_even_sines_and_odd_cosines():
    roi = [0.1, -0.2, 0.7, 1.3]
    width = 32
    encoding = encode_positions(torch.tensor([[roi]], dtype=torch.float64), width)[0, 0].tolist()
    frequencies = [128 ** (i / (width // 4 - 1)) for i in range(width // 4)]
    expected = []
    for value in roi:
        expected += [math.sin(math.pi * value * f) for f in frequencies[0::2]]
        expected += [math.cos(math.pi * value * f) for f in frequencies[1::2]]
    assert encoding == pytest.approx(expected, abs=1e-9)


def test_no_gradient_flows_through_the_position_encoding():
    rois = torch.rand(1, 2, 4, requires_grad=True)
    assert not encode_positions(rois, 16).requires_grad


def test_points_are_centred_in_the_roi_with_a_third_of_its_size_as_spread():
    rois = torch.tensor([[[0.2, 0.0, 0.6, 1.0]]], dtype=torch.float64)
    offsets = torch.randn(1, 1, 16, 2, dtype=torch.float64) * 5 + 3
    points = place_points(rois, offsets)
    torch.testing.assert_close(points.mean(2)[0, 0], torch.tensor([0.4, 0.5], dtype=torch.float64))
    torch.testing.assert_close(
        points.std(2)[0, 0], torch.tensor([0.4, 1.0], dtype=torch.float64) / 3, rtol=1e-4, atol=1e-6
    )


def test_samples_equal_bilinear_reading_by_hand():
    features = torch.randn(1, 5, 7, 3, dtype=torch.float64)
    rois = torch.tensor([[[-0.5, 0.2, 0.9, 1.6]]], dtype=torch.float64)
    offsets = torch.randn(1, 1, 4, 2, dtype=torch.float64)
    samples = sample_points(features, rois, offsets)
    height, width = 5, 7
    for point, sample in zip(place_points(rois, offsets)[0, 0], samples[0, 0], strict=True):
        x = min(max(point[0].item() * width - 0.5, 0), width - 1)
        y = min(max(point[1].item() * height - 0.5, 0), height - 1)
        left, top = int(x), int(y)
        right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
        fx, fy = x - left, y - top
        upper = features[0, top, left] * (1 - fx) + features[0, top, right] * fx
        lower = features[0, bottom, left] * (1 - fx) + features[0, bottom, right] * fx
        torch.testing.assert_close(sample, upper * (1 - fy) + lower * fy)


def test_unequal_batches_are_refused():
    with pytest.raises(ValueError, match=r"got \(1, 4, 4, 2\), \(2, 1, 4\)"):
        sample_points(torch.zeros(1, 4, 4, 2), torch.zeros(2, 1, 4), torch.zeros(2, 1, 4, 2))
