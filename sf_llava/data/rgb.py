"""Pictures of any mode in RGB, and the interpolations that resize them: needs NumPy and Pillow alone."""

import numpy as np
from PIL import Image

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF files


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of 8 or 16 bits a channel to RGB.

    Unlike ``image.convert("RGB")``, 16-bit greyscale keeps its high byte; Pillow turns every value above 255 white.

    Raises:
        TypeError: no Pillow picture.
        ValueError: it cannot be decoded, or its mode does not say which values are black and white (32-bit, float).
    """
    if not isinstance(image, Image.Image):
        kind = f"{type(image).__module__}.{type(image).__name__}"
        raise TypeError(f"expected a Pillow picture, got {kind}: Image.fromarray makes one of (H, W, 3) uint8")
    try:
        image.load()
    except Exception as error:  # see decode
        raise ValueError(f"the picture cannot be decoded: {reason(error)}") from error
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = _high_byte(image)
    elif image.mode in ("I", "F"):
        raise ValueError(
            f"a picture of mode {image.mode} (32 bits a pixel) does not say which values are black and white: convert "
            "it to 8 or 16 bits"
        )
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours as without this step, but without Pillow's warning
    elif image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())  # Pillow has no direct way
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"a picture of mode {image.mode} cannot be converted to RGB ({error})") from error


def _high_byte(image: Image.Image) -> Image.Image:
    """Take the upper 8 of a grey picture's 16 bits, or of the 12 that a TIFF file may have; there 0 may be white."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image).astype(np.uint16)
    values >>= tags.get(BITS_PER_SAMPLE, (16,))[0] - 8
    if tags.get(PHOTOMETRIC) == 0:
        values = 255 - values
    return Image.fromarray(values.astype(np.uint8))


def reason(error: Exception) -> str:
    """Say why a picture could not be decoded."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a known format"
    return str(error) or type(error).__name__
