"""Pictures of predictions beside ground truth."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from sf_llava.data.masks import IGNORED
from sf_llava.visualize import FAINT, INK, PAPER, latent_colours, sheet

PANEL = 320
SWATCH, LINE = 14, 22
IGNORED_COLOUR = (128, 128, 128)


def palette(num_classes: int) -> list[tuple[int, int, int]]:
    """One colour a class; 256 of them, grey for what is not counted."""
    colours = latent_colours(num_classes)
    return [*colours, *[IGNORED_COLOUR] * (IGNORED + 1 - num_classes)]


def colour_mask(labels: np.ndarray, num_classes: int) -> Image.Image:
    """Draw labels (H, W) in the colours of their classes, as a picture of numbers with a palette."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([channel for colour in palette(num_classes) for channel in colour])
    return image


def prediction_sheet(
    rows: Sequence[tuple[Image.Image, np.ndarray, np.ndarray]], class_names: Sequence[str]
) -> Image.Image:
    """Draw picture, ground truth and prediction side by side, a row a picture, and below the classes' colours.

    Args:
        rows: picture, labels (H, W), predicted (H, W).
        class_names: of all classes.
    """
    width, height = rows[0][0].size
    size = (PANEL, max(1, round(PANEL * height / width)))
    panels = []
    for image, labels, predicted in rows:
        drawn = [image, *(colour_mask(one, len(class_names)).convert("RGB") for one in (labels, predicted))]
        kept = [Image.Resampling.BICUBIC, Image.Resampling.NEAREST, Image.Resampling.NEAREST]
        panels.append([one.resize(size, how) for one, how in zip(drawn, kept, strict=True)])
    drawn_sheet = sheet(["picture", "ground truth", "prediction"], panels, "grey: not counted")
    return _with_legend(drawn_sheet, class_names)


def _with_legend(image: Image.Image, class_names: Sequence[str]) -> Image.Image:
    columns = max(1, image.width // 160)
    lines = -(-len(class_names) // columns)
    canvas = Image.new("RGB", (image.width, image.height + lines * LINE + 6), PAPER)
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for index, (name, colour) in enumerate(zip(class_names, palette(len(class_names)), strict=False)):
        x, y = 10 + index % columns * 160, image.height + index // columns * LINE
        draw.rectangle((x, y, x + SWATCH, y + SWATCH), fill=colour, outline=FAINT)
        draw.text((x + SWATCH + 6, y + SWATCH / 2), name[:20], INK, anchor="lm")
    return canvas
