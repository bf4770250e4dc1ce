"""Pictures of any size become masks of their size, every pixel once."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sf_llava.data.transforms import Preprocessing
from sf_llava.segmentation.inference import predict, window_starts
from sf_llava.segmentation.segmenter import Segmenter

SIDE = 24


class ByColour(nn.Module):
    """Says for every place of a map a quarter as fine which channel is the brightest, and notes what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.shown = []

    def forward(self, pixel_values):
        self.shown.append(tuple(pixel_values.shape))
        return nn.functional.avg_pool2d(pixel_values, 4, ceil_mode=True).permute(0, 2, 3, 1) * self.weight


def segmenter():
    return Segmenter(ByColour(), "unet", ("red", "green", "blue"), Preprocessing(SIDE, (0.5,) * 3, (0.5,) * 3), {})


def halves(width, height):
    """A picture whose left half is red and right half is blue."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("length", "side"), [(24, 24), (25, 24), (100, 24), (7, 24), (512, 512), (683, 512)])
def test_windows_cover_all_and_stay_inside(length, side):
    starts = window_starts(length, side)
    covered = set().union(*(range(start, min(start + side, length)) for start in starts))
    assert covered == set(range(length)) and starts[0] == 0
    assert all(0 <= start <= max(0, length - side) for start in starts)
    assert all(later - earlier <= side * 2 / 3 for earlier, later in itertools.pairwise(starts))


@pytest.mark.parametrize("mode", ["slide", "whole"])
@pytest.mark.parametrize("size", [(24, 24), (60, 40), (40, 90), (400, 20), (20, 300)])
def test_every_pixel_gets_its_class(mode, size):
    (found,) = predict(segmenter(), [halves(*size)], mode=mode, batch_size=2)
    assert found.shape == size[::-1] and found.dtype == np.uint8
    wanted = np.zeros(size[::-1], dtype=np.uint8)
    wanted[:, size[0] // 2 :] = 2
    assert (found == wanted).mean() > 0.75  # but for the edge, which a map of a quarter blurs
    assert (found[:, 0] == 0).all() and (found[:, -1] == 2).all()


def test_masks_come_in_the_size_that_is_asked_for_and_in_order():
    found = predict(segmenter(), [halves(60, 40), halves(24, 24)], [(80, 120), (10, 12)])
    assert [mask.shape for mask in found] == [(80, 120), (10, 12)]


def test_windows_of_several_pictures_run_together():
    ours = segmenter()
    predict(ours, [halves(24, 24)] * 5, batch_size=4)
    assert ours.net.shown == [(4, 3, SIDE, SIDE), (1, 3, SIDE, SIDE)]
