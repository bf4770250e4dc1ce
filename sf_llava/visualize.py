"""Pictures of what the encoder looks at: RoIs, sampling points, heat maps, attention (the paper's Figures 3-7).

Arrays and pictures in, ``PIL`` pictures out; nothing here knows a model. RoIs and points are image fractions and may
leave the image, so every panel has a margin around it. One colour is one latent, the same in every panel.
Letters: B images, I iterations, N latents, P points.
"""

import colorsys
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

PANEL, LARGE_PANEL = 248, 372  # side of a panel in pixels, margin included; in sheets of more than 64 latents
MARGIN = 0.08  # of the panel, on each side
SUPERSAMPLING = 3  # drawn this much larger, then averaged down
GAP, TITLE, LEGEND = 10, 26, 30
PAPER, INK, FAINT = (255, 255, 255), (32, 36, 44), (112, 118, 130)
HEAT_SPREAD = 0.03  # standard deviation of one point in a heat map, as an image fraction
HEAT_COLOURS = ((0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164))


def pictures_from_pixels(pixel_values: Tensor, mean: Sequence[float], std: Sequence[float]) -> list[Image.Image]:
    """Turn normalised pixels (B, 3, S, S) back into B pictures."""
    offset, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    pixels = (pixel_values.detach().float().cpu() * scale + offset).clamp(0, 1) * 255
    return [Image.fromarray(array) for array in pixels.round().byte().permute(0, 2, 3, 1).numpy()]


def latent_colours(num_latents: int) -> list[tuple[int, int, int]]:
    """One colour a latent: hues a golden angle apart, so that neighbours in number differ most; none is dark."""
    colours = []
    for index in range(num_latents):
        colour = np.array(colorsys.hsv_to_rgb(0.02 + index * 0.61803399 % 1, (0.75, 0.9, 0.6)[index % 3], 1))
        luminance = colour @ (0.2126, 0.7152, 0.0722)
        colour += (1 - colour) * max(0, 0.42 - luminance) / (1 - luminance)
        red, green, blue = (int(channel) for channel in (colour * 255).round())
        colours.append((red, green, blue))
    return colours


def draw_rois(
    image: Image.Image, rois: Tensor | None, sampling_points: Tensor | None = None, *, size: int = PANEL
) -> Image.Image:
    """Draw the RoIs of one image, its sampling points, or both, over the faded image.

    Args:
        image: the square view that the encoder saw; the centre is cropped out of another shape, as CLIP does.
        rois: (N, 4) corners as image fractions; or (K, N, 4), a history: its last RoIs are drawn, and a line for the
            way that each centre has come. None for points alone.
        sampling_points: (N, P, 2) image fractions, x before y.
        size: side of the picture that comes back, in pixels.
    """
    panel = _Panel(image, size, faded=True)
    if rois is not None:
        history = _array(rois)
        if history.ndim not in (2, 3) or history.shape[-1] != 4:
            raise ValueError(f"rois of one image must be (N, 4) or (K, N, 4), got {history.shape}")
        panel.boxes(history[None] if history.ndim == 2 else history)
    if sampling_points is not None:
        panel.points(_points(sampling_points))
    return panel.finish()


def draw_heat(
    image: Image.Image, sampling_points: Tensor, weights: Tensor | None = None, *, size: int = PANEL
) -> Image.Image:
    """Draw where the sampling points (N, P, 2) of one image are dense, as a heat map over the greyed image.

    Args:
        weights: (N,) weight of each latent, its attention say; equal ones if None.
    """
    points = _points(sampling_points)
    heights = np.ones(len(points)) if weights is None else _array(weights)
    axis = (np.arange(96) + 0.5) / 96
    # A Gaussian is separable: one matrix of rows, one of columns, and their product is the density.
    x, y = (np.exp(-0.5 * ((points[..., i].reshape(-1, 1) - axis) / HEAT_SPREAD) ** 2) for i in (0, 1))
    return draw_grid(image, (y * np.repeat(heights, points.shape[1])[:, None]).T @ x, size=size)


def draw_grid(image: Image.Image, grid: Tensor | np.ndarray, *, size: int = PANEL) -> Image.Image:
    """Draw a map (H, W) of weights, such as the attention to a ViT's patches, as heat over the greyed image."""
    panel = _Panel(image, size, faded=True, grey=True)
    panel.heat(_array(grid))
    return panel.finish()


def draw_places(image: Image.Image, weights: Tensor | np.ndarray, *, size: int = PANEL) -> Image.Image:
    """Draw which latent is read at every place of a grid, in its colour, the fuller the more it is read.

    Args:
        image: the square view that the encoder saw.
        weights: (M, N) of N latents at M places, a square number in raster order.
        size: side of the picture that comes back, in pixels.
    """
    panel = _Panel(image, size, faded=True, grey=True)
    panel.cells(_array(weights))
    return panel.finish()


def places_sheet(images: Sequence[Image.Image], rois: Tensor, weights: Tensor) -> Image.Image:
    """Draw what is read at every place: a row an image, with the last RoIs and the latent that speaks for each place.

    Args:
        images: B square views as the encoder saw them.
        rois: (B, I + 1, N, 4) as ``SparseFormerOutput.rois``.
        weights: (B, M, N) of the latents at the places of the teacher's grid.
    """
    _check_batch(images, rois, None)
    size = _panel_side(rois.shape[2])
    rows = [
        [plain(image, size=size), draw_rois(image, boxes[-1], size=size), draw_places(image, read, size=size)]
        for image, boxes, read in zip(images, _array(rois), _array(weights), strict=True)
    ]
    places = f"{weights.shape[1]} places of the teacher's grid"
    legend = f"{places}, each in the colour of the latent whose token says what is there"
    return sheet(["input", "RoIs, last", "read at each place"], rows, legend)


def focus_sheet(images: Sequence[Image.Image], rois: Tensor, sampling_points: Tensor) -> Image.Image:
    """Draw the paper's figure: a row an image, with the RoIs of the {first, third, last} iteration and the points.

    The RoIs of an iteration are those that it samples under: the first ones are learned and the same for all images,
    the last ones are where the final, full-width sampling reads.

    Args:
        images: B square views as the encoder saw them.
        rois: (B, I + 1, N, 4) as ``SparseFormerOutput.rois``.
        sampling_points: (B, N, P, 2) as ``SparseFormerOutput.sampling_points``.
    """
    _check_batch(images, rois, sampling_points)
    stages = sorted({0, min(2, rois.shape[1] - 1), rois.shape[1] - 1})
    titles = ["input", *(_stage_title(stage, rois.shape[1] - 1) for stage in stages), "sampling points, last"]
    size = _panel_side(rois.shape[2])
    rows = []
    for image, boxes, points in zip(images, _array(rois), _array(sampling_points), strict=True):
        panels = [draw_rois(image, boxes[stage], size=size) for stage in stages]
        rows.append([plain(image, size=size), *panels, draw_rois(image, None, points, size=size)])
    return sheet(titles, rows, _legend(rois.shape[2], sampling_points.shape[2]))


def iteration_sheet(images: Sequence[Image.Image], rois: Tensor) -> Image.Image:
    """Draw a row an image with the RoIs of every iteration, and the way of their centres (the paper's Figures 4-5)."""
    _check_batch(images, rois, None)
    stages, size = range(rois.shape[1]), _panel_side(rois.shape[2])
    rows = []
    for image, boxes in zip(images, _array(rois), strict=True):
        panels = [draw_rois(image, boxes[: stage + 1], size=size) for stage in stages]
        rows.append([plain(image, size=size), *panels])
    titles = ["input", *(_stage_title(stage, len(stages) - 1) for stage in stages)]
    return sheet(titles, rows, f"{rois.shape[2]} latents, one colour each; a line is the way of a RoI's centre")


def heat_sheet(
    images: Sequence[Image.Image],
    sampling_points: Tensor,
    student_attention: Tensor | None = None,
    teacher_attention: Tensor | None = None,
) -> Image.Image:
    """Draw a row an image: where sampling mass goes, and what CLS (or the pooling) of student and teacher attends to.

    Args:
        sampling_points: (B, N, P, 2) image fractions.
        student_attention: (B, N) attention to the latents, spread over each latent's sampling points.
        teacher_attention: (B, H, W) attention to the patches.
    """
    titles = ["input", "sampling mass"]
    titles += ["student's attention"] * (student_attention is not None)
    titles += ["teacher's attention"] * (teacher_attention is not None)
    rows = []
    for index, (image, points) in enumerate(zip(images, _array(sampling_points), strict=True)):
        row = [plain(image), draw_heat(image, points)]
        if student_attention is not None:
            row.append(draw_heat(image, points, student_attention[index]))
        if teacher_attention is not None:
            row.append(draw_grid(image, teacher_attention[index]))
        rows.append(row)
    legend = (
        "each map is scaled to its own maximum; attention: CLS in the last block, or the pooling head, mean of heads"
    )
    return sheet(titles, rows, legend)


def plain(image: Image.Image, *, size: int = PANEL) -> Image.Image:
    """The image in a panel of its own, framed like the others."""
    return _Panel(image, size).finish()


def sheet(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]], legend: str) -> Image.Image:
    """Lay panels of one size out in rows, with a title above each column and a legend below."""
    width, height = rows[0][0].size
    size = (GAP + len(titles) * (width + GAP), TITLE + len(rows) * (height + GAP) + LEGEND)
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        x = GAP + column * (width + GAP)
        draw.text((x + width / 2, TITLE / 2 + 2), title, INK, _font(15), anchor="mm")
        for row, panels in enumerate(rows):
            canvas.paste(panels[column], (x, TITLE + row * (height + GAP)))
    draw.text((GAP, canvas.height - LEGEND / 2 - 4), legend, FAINT, _font(14), anchor="lm")
    return canvas


class _Panel:
    """One square picture under construction, supersampled, with a margin for what leaves the image."""

    def __init__(self, image: Image.Image, size: int, *, faded: bool = False, grey: bool = False) -> None:
        self.size = size
        self.margin = round(size * MARGIN)
        self.inner = size - 2 * self.margin
        image = ImageOps.fit(image.convert("RGB"), (self.inner, self.inner), Image.Resampling.BICUBIC)
        if faded:  # so that the colours drawn on it stand out
            pale = ImageOps.grayscale(image).convert("RGB")
            image = pale if grey else Image.blend(image, pale, 0.45)
            image = Image.blend(image, Image.new("RGB", image.size, INK), 0.35)
        self.canvas = Image.new("RGB", (size, size), (236, 238, 241))
        self.canvas.paste(image, (self.margin, self.margin))
        self.overlay: Image.Image | None = None

    def _draw(self) -> ImageDraw.ImageDraw:
        if self.overlay is None:
            side = self.size * SUPERSAMPLING
            self.overlay = self.canvas.resize((side, side), Image.Resampling.NEAREST)
        return ImageDraw.Draw(self.overlay, "RGBA")

    def _pixels(self, fractions: np.ndarray) -> np.ndarray:
        """Image fractions to pixels of the supersampled picture, kept within a few sides of it."""
        return (self.margin + fractions.clip(-9, 9) * self.inner) * SUPERSAMPLING

    def boxes(self, history: np.ndarray) -> None:
        """Draw the last of (K, N, 4) RoIs, the way of their centres (K, N, 2), and where these are now."""
        num_latents = history.shape[1]
        unit = self.size * SUPERSAMPLING / PANEL
        width = unit * float(np.interp(num_latents, (16, 64, 196), (2.2, 1.4, 0.8)))
        opacity = int(np.interp(num_latents, (16, 64, 196), (235, 190, 90)))
        draw = self._draw()
        centres = self._pixels((history[..., :2] + history[..., 2:]) / 2)
        corners = self._pixels(np.sort(history[-1].reshape(-1, 2, 2), axis=1)).reshape(-1, 4)
        for latent, colour in enumerate(latent_colours(num_latents)):
            box = [*(corners[latent, :2] - width / 2), *(corners[latent, 2:] + width / 2)]
            draw.rectangle(box, outline=(*colour, opacity), width=max(1, round(width)))
        for latent, colour in enumerate(latent_colours(num_latents)):
            way = [tuple(centre) for centre in centres[:, latent]]
            if len(way) > 1:
                draw.line(way, fill=(*INK, 200), width=round(2.4 * width), joint="curve")
                draw.line(way, fill=(*colour, 255), width=round(1.4 * width), joint="curve")
            self._dot(draw, centres[-1, latent], 1.6 * width, colour)

    def points(self, points: np.ndarray) -> None:
        """Draw (N, P, 2) points, latent by latent."""
        count = points.shape[0] * points.shape[1]
        radius = self.size * SUPERSAMPLING / PANEL * float(np.interp(count, (256, 1024, 3136), (2.4, 1.7, 1.1)))
        draw = self._draw()
        pixels = self._pixels(points)
        # Point by point, not latent by latent, so that no latent lies on top of all others.
        colours = latent_colours(len(points))
        for point in range(points.shape[1]):
            for latent, colour in enumerate(colours):
                self._dot(draw, pixels[latent, point], radius, colour)

    def _dot(self, draw: ImageDraw.ImageDraw, centre: np.ndarray, radius: float, colour: tuple[int, int, int]) -> None:
        x, y = centre
        for reach, fill in ((radius * 1.4, (*INK, 170)), (radius, (*colour, 255))):
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)

    def cells(self, weights: np.ndarray) -> None:
        """Fill a square grid of places with the colours of the latents of most weight, (M, N)."""
        side = math.isqrt(len(weights))
        colours, cell = latent_colours(weights.shape[1]), 1 / side
        draw = self._draw()
        for place, row in enumerate(weights):
            corner = np.array([place % side, place // side]) * cell
            box = [*self._pixels(corner), *(self._pixels(corner + cell) - SUPERSAMPLING)]
            draw.rectangle(box, fill=(*colours[int(row.argmax())], round(40 + 190 * float(row.max()))))

    def heat(self, grid: np.ndarray) -> None:
        """Lay a map (H, W) over the image: the hotter, the more opaque."""
        grid = np.maximum(grid, 0) / max(float(grid.max()), 1e-12)
        heat = Image.fromarray(grid.astype(np.float32)).resize((self.inner, self.inner), Image.Resampling.BICUBIC)
        level = np.clip(np.asarray(heat), 0, 1)  # [inner, inner]
        stops = np.linspace(0, 1, len(HEAT_COLOURS))
        colour = np.stack([np.interp(level, stops, channel) for channel in zip(*HEAT_COLOURS, strict=True)], axis=-1)
        opacity = (0.35 + 0.5 * level)[..., None]
        box = (self.margin, self.margin, self.margin + self.inner, self.margin + self.inner)
        under = np.asarray(self.canvas.crop(box), dtype=np.float32)
        blended = under * (1 - opacity) + colour * opacity
        self.canvas.paste(Image.fromarray(blended.astype(np.uint8)), box)

    def finish(self) -> Image.Image:
        return self.canvas if self.overlay is None else self.overlay.reduce(SUPERSAMPLING)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _panel_side(num_latents: int) -> int:
    return PANEL if num_latents <= 64 else LARGE_PANEL


def _stage_title(stage: int, last: int) -> str:
    if stage == last:
        return "RoIs, last"
    return f"RoIs, iteration {stage + 1}" + (" (learned start)" if stage == 0 else "")


def _legend(num_latents: int, num_points: int) -> str:
    boxes = f"{num_latents} latents, one colour each: a box is a latent's RoI, a large dot its centre"
    return f"{boxes}; small dots are its {num_points} sampling points"


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float32)


def _points(values: Tensor | np.ndarray) -> np.ndarray:
    points = _array(values)
    if points.ndim != 3 or points.shape[-1] != 2:
        raise ValueError(f"sampling_points of one image must be (N, P, 2), got {points.shape}")
    return points


def _check_batch(images: Sequence, rois: Tensor, points: Tensor | None) -> None:
    if rois.ndim != 4 or rois.shape[-1] != 4 or len(images) != len(rois) or not len(images):
        raise ValueError(f"expected rois (B, I + 1, N, 4) for {len(images)} images, got {tuple(rois.shape)}")
    if points is not None and (points.ndim != 4 or points.shape[:2] != (len(images), rois.shape[2])):
        raise ValueError(
            f"expected sampling_points ({len(images)}, {rois.shape[2]}, P, 2) like rois, got {tuple(points.shape)}; "
            "call the model with output_sampling_points=True"
        )
