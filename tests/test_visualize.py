"""Pictures say what the numbers say: colours, places, sizes, and clear errors."""

import time

import numpy as np
import pytest
import torch
from PIL import Image

from sf_llava.configuration import preset
from sf_llava.model import SparseFormerModel
from sf_llava.teachers.attention import cls_attention
from sf_llava.visualize import (
    MARGIN,
    draw_grid,
    draw_heat,
    draw_places,
    draw_rois,
    focus_sheet,
    heat_sheet,
    iteration_sheet,
    latent_colours,
    pictures_from_pixels,
    plain,
)

GREY = Image.new("RGB", (64, 64), (128, 128, 128))


def at(picture: Image.Image, x: float, y: float) -> np.ndarray:
    """The pixel at image fractions (x, y)."""
    margin = round(picture.width * MARGIN)
    inner = picture.width - 2 * margin
    return np.array(picture.getpixel((round(margin + x * inner), round(margin + y * inner))), dtype=int)


def test_every_place_has_the_colour_of_the_latent_that_is_read_there():
    weights = torch.full((4, 3), 0.01)
    for place, latent in enumerate((2, 0, 1, 2)):
        weights[place, latent] = 0.98
    grey = Image.new("RGB", (32, 32), (128, 128, 128))
    drawn = np.asarray(draw_places(grey, weights, size=100), dtype=float)
    empty = np.asarray(draw_places(grey, torch.zeros(4, 3), size=100), dtype=float)
    colours = np.asarray(latent_colours(3), dtype=float)
    for place, latent in enumerate((2, 0, 1, 2)):
        y, x = 8 + 21 + 42 * (place // 2), 8 + 21 + 42 * (place % 2)  # margin, middle of the cell
        nearest = np.abs(colours - drawn[y, x]).sum(axis=1).argmin()
        assert nearest == latent and np.abs(drawn[y, x] - empty[y, x]).sum() > 30


def test_a_box_stands_where_its_roi_is_in_its_latents_colour():
    picture = draw_rois(GREY, torch.tensor([[0.25, 0.5, 0.75, 1.0]]), size=512)
    colour = np.array(latent_colours(1)[0])
    for x, y in ((0.25, 0.7), (0.75, 0.7), (0.5, 0.5), (0.5, 1.0), (0.5, 0.75)):  # four sides and the centre
        assert np.abs(at(picture, x, y) - colour).max() < 40, (x, y)
    assert np.ptp(at(picture, 0.4, 0.2)) < 20  # nothing is drawn here


def test_points_outside_the_image_show_in_the_margin():
    points = torch.tensor([[[-0.05, 0.5], [0.5, 0.5]]])
    picture = draw_rois(GREY, None, points, size=512)
    for x in (-0.05, 0.5):
        assert np.abs(at(picture, x, 0.5) - np.array(latent_colours(1)[0])).max() < 40


def test_rois_far_outside_the_image_do_no_harm():
    rois = torch.tensor([[-1e6, 0.2, 1e6, 0.8], [0.9, 0.1, 0.4, 0.2], [torch.inf, 0, torch.inf, 1]])
    assert draw_rois(GREY, rois.nan_to_num(posinf=1e30)).size == plain(GREY).size


def test_a_history_draws_the_way_of_the_centre():
    history = torch.tensor([[[0.0, 0.4, 0.2, 0.6]], [[0.8, 0.4, 1.0, 0.6]]])
    way = at(draw_rois(GREY, history, size=512), 0.5, 0.5)
    assert np.abs(way - np.array(latent_colours(1)[0])).max() < 40
    assert np.ptp(at(draw_rois(GREY, history[-1], size=512), 0.5, 0.5)) < 20


def test_latents_have_distinct_bright_colours():
    colours = latent_colours(196)
    assert len(set(colours)) == 196
    assert min(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colours) > 100


def test_heat_is_where_the_points_are_and_follows_the_weights():
    points = torch.tensor([[[0.2, 0.5]], [[0.8, 0.5]]])
    even = draw_heat(GREY, points, size=256)
    assert at(even, 0.2, 0.5).sum() > at(even, 0.5, 0.5).sum() + 150
    left = draw_heat(GREY, points, torch.tensor([1.0, 0.1]), size=256)
    assert at(left, 0.2, 0.5).sum() > at(left, 0.8, 0.5).sum() + 150
    grid = draw_grid(GREY, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), size=256)
    assert at(grid, 0.8, 0.8).sum() > at(grid, 0.2, 0.2).sum() + 150


def test_a_map_of_zeros_is_drawn_cold():
    assert draw_grid(GREY, torch.zeros(4, 4)).size == plain(GREY).size


def test_pictures_come_back_from_normalised_pixels():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    mean, std = (0.48, 0.45, 0.41), (0.26, 0.27, 0.28)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    pixels = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert np.array_equal(np.array(pictures_from_pixels(pixels[None], mean, std)[0]), np.array(image))


@pytest.mark.parametrize("num_latents", [16, 196])
def test_the_sheet_of_four_images_comes_in_two_seconds(num_latents):
    torch.manual_seed(0)
    rois = torch.rand(4, 5, num_latents, 4)
    points = torch.rand(4, num_latents, 16, 2)
    start = time.process_time()
    sheet = focus_sheet([GREY] * 4, rois, points)
    heat = heat_sheet([GREY] * 4, points, torch.rand(4, num_latents), torch.rand(4, 8, 8))
    strip = iteration_sheet([GREY] * 4, rois)
    assert time.process_time() - start < 6
    panel = plain(GREY).width
    assert sheet.width > 5 * panel and sheet.height > 4 * panel
    assert heat.width > 4 * panel and strip.width > 6 * panel


def test_the_sheet_takes_what_the_model_gives():
    model = SparseFormerModel(preset("sf-mini", num_hidden_layers=1)).eval()
    with torch.no_grad():
        output = model(torch.randn(2, 3, 64, 64), output_sampling_points=True)
    assert focus_sheet([GREY, GREY], output.rois, output.sampling_points).mode == "RGB"


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"expected rois \(B, I \+ 1, N, 4\) for 1 images"):
        focus_sheet([GREY], torch.rand(2, 5, 16, 4), torch.rand(2, 16, 16, 2))
    with pytest.raises(ValueError, match="sampling_points"):
        focus_sheet([GREY], torch.rand(1, 5, 16, 4), torch.rand(1, 8, 16, 2))
    with pytest.raises(ValueError, match="rois of one image"):
        draw_rois(GREY, torch.rand(16, 2))


def test_cls_attention_is_that_of_the_cortex():
    torch.manual_seed(0)
    config = preset("sf-mini", num_hidden_layers=1)
    block = SparseFormerModel(config).cortex[0].eval()
    tokens = torch.randn(2, 17, config.hidden_size)
    norm = block.norm1(tokens)
    query, key, _ = block.attn.qkv(norm).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-1, -2) * block.attn.scaling).softmax(-1)[:, :, 0, 1:]
    weights = (weights / weights.sum(-1, keepdim=True)).mean(1)
    attention = cls_attention(tokens, block.state_dict(), config.num_attention_heads, config.cortex_layer_norm_eps)
    torch.testing.assert_close(attention, weights)
