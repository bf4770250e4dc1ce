"""At the door: what a person uploads becomes a picture, or a sentence that says why not.

Nothing is trusted: not the name, not the type that the browser claims, not the size that the header claims.
"""

import base64
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sf_llava.data.images import EXTENSIONS, to_rgb

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
MAX_SIDE = 1024  # of what is kept; encoders read 64 to 448 pixels
MAX_RATIO = 40  # of the longer to the shorter side
THUMBNAIL = 320
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")


class RefusedError(ValueError):
    """Something that is not accepted; the message is a sentence for the chat."""


@dataclass
class Picture:
    """An accepted picture.

    Attributes:
        image: RGB, upright, at most ``MAX_SIDE`` pixels a side.
        name: what the person called it, shortened.
        thumbnail: of the picture, as a data URI.
        note: what was changed on the way in, a sentence; perhaps empty.
        views: what each tower saw in it, filled when it is first asked about; a SparseFormer's by its latents.
    """

    image: Image.Image
    name: str
    thumbnail: str
    note: str = ""
    views: dict[str | int, Any] = field(default_factory=dict)


def accept(path: str | Path) -> Picture:
    """Read an uploaded file as a picture: the first frame, turned upright, transparency on white, 16 bits as 8.

    Raises:
        RefusedError: no file, no picture, a broken or an over-large one; the message is a sentence that names it.
    """
    path = Path(path)
    name = short_name(path.name)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RefusedError(f"{name} is no longer on the server: attach it once more.") from error
    if not data:
        raise RefusedError(f"{name} is an empty file.")
    if len(data) > MAX_BYTES:
        raise RefusedError(f"{name} is larger than {MAX_BYTES // 2**20} MB: send a smaller picture.")
    image, notes = _decode(data, name)
    if max(image.size) > MAX_SIDE:
        notes.append(f"{name} was scaled down from {image.width} x {image.height} pixels.")
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return Picture(image, name, data_uri(small(image)), " ".join(notes))


def _decode(data: bytes, name: str) -> tuple[Image.Image, list[str]]:
    """Decode the first frame to RGB, checking the header's size before any pixel is read."""
    notes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs; the bound here is lower and an error
            image = Image.open(io.BytesIO(data), formats=_formats())
            if image.width * image.height > MAX_PIXELS:
                raise RefusedError(
                    f"{name} has {image.width:,} x {image.height:,} pixels; more than {MAX_PIXELS:,} are not accepted."
                )
            if max(image.size) > MAX_RATIO * min(image.size):
                raise RefusedError(f"{name} is {image.width} x {image.height} pixels: too narrow to be seen.")
            if getattr(image, "n_frames", 1) > 1:
                notes.append(f"{name} is animated or has pages: the first one is read.")
                image.seek(0)
            image.load()
            return _on_white(ImageOps.exif_transpose(image)), notes
    except RefusedError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own bound, from the header too
        raise RefusedError(f"{name} has far more than {MAX_PIXELS:,} pixels, which are not accepted.") from error
    except Image.UnidentifiedImageError as error:
        raise RefusedError(f"{name} is no picture that can be read here (JPEG, PNG, WebP, GIF, BMP, TIFF).") from error
    except Exception as error:  # on broken bytes decoders raise OSError, SyntaxError, struct.error, EOFError and more
        raise RefusedError(f"{name} is broken or cut short and cannot be read as a picture.") from error


def _formats() -> list[str]:
    """The formats of ``FORMATS`` that this build of Pillow reads; none that hands its bytes to another program."""
    Image.init()
    return [format for format in FORMATS if format in Image.OPEN]


def _on_white(image: Image.Image) -> Image.Image:
    """Turn any mode into RGB; what is transparent becomes white."""
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return to_rgb(image)


def short_name(name: str, limit: int = 40) -> str:
    """A file name that a sentence can hold: printable, without folders, with its end kept."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name.replace("\\", "/").rsplit("/", 1)[-1])
    stem, dot, ending = name.rpartition(".")
    if dot and f".{ending.lower()}" in EXTENSIONS:
        return name if len(name) <= limit else f"{stem[: limit - len(ending) - 2]}….{ending}"
    return (name if len(name) <= limit else name[: limit - 1] + "…") or "The file"


def small(image: Image.Image) -> Image.Image:
    """A copy for the chat."""
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def data_uri(image: Image.Image) -> str:
    """Write a picture into an address of its own, so that no file has to be served."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88, lossless=max(image.size) <= 128)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
