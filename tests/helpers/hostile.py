"""Fifty uploads that nobody means well with, or that only look odd."""

import functools
import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Upload:
    """A file: what it is, its name, its bytes, and whether it is a picture after all."""

    what: str
    name: str
    data: bytes
    accepted: bool


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG with any header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def bmp(width: int, height: int) -> bytes:
    """A BMP header that promises what is not there."""
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


@functools.cache
def hostile_uploads() -> list[Upload]:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    photo = Image.fromarray(noise)
    jpeg, whole = encode(photo, "JPEG"), encode(photo, "PNG")
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    turned = photo.getexif()
    turned[0x0112] = 8
    palette = photo.quantize(16)
    broken_crc = bytearray(whole)
    broken_crc[40:60] = b"\x00" * 20
    bent = bytearray(jpeg)
    bent[2000:2200] = b"\xff" * 200
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><rect width="9" height="9"/></svg>'
    page = b"<html><script>alert(1)</script></html>"
    odd = [
        ("truncated JPEG", "cut.jpg", jpeg[: len(jpeg) // 2], False),
        ("JPEG of its first bytes", "start.jpg", jpeg[:20], False),
        ("JPEG without its last byte", "almost.jpg", jpeg[:-1], False),
        ("JPEG with a bent middle", "bent.jpg", bytes(bent), False),
        ("JPEG with a page behind it", "both.jpg", jpeg + page, True),
        ("truncated PNG", "cut.png", whole[: len(whole) // 2], False),
        ("PNG with zeros inside", "zeros.png", bytes(broken_crc), False),
        ("PNG signature alone", "signature.png", whole[:8], False),
        ("PNG without pixels", "nopixels.png", png(64, 64), False),
        ("text renamed .png", "notes.png", b"to buy: bread, milk\n" * 40, False),
        ("HTML renamed .jpg", "page.jpg", page, False),
        ("SVG", "drawing.svg", svg, False),
        ("SVG renamed .png", "drawing.png", svg, False),
        ("PDF", "paper.pdf", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", False),
        ("EPS", "figure.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) show\n", False),
        ("program", "run.png", b"\x7fELF" + bytes(200), False),
        ("archive", "pictures.zip", b"PK\x03\x04" + bytes(60), False),
        ("zip of zeros", "zeros.jpg", zlib.compress(bytes(10**6)), False),
        ("zero bytes", "empty.png", b"", False),
        ("one byte", "byte.png", b"\x89", False),
        ("random bytes", "random.webp", noise.tobytes()[:5000], False),
        ("50,000 x 50,000 PNG header", "bomb.png", png(50_000, 50_000), False),
        ("PNG of the largest header", "huge.png", png(2**31 - 1, 2**31 - 1), False),
        ("PNG of no width", "none.png", png(0, 10), False),
        ("BMP that promises gigabytes", "bomb.bmp", bmp(60_000, 60_000), False),
        ("BMP of negative size", "minus.bmp", bmp(-5, 5), False),
        ("highly compressed 9000 x 9000", "flat.png", png(9000, 9000, 1, 0, bytes(9000 * 1126)), False),
        ("one line of 20,000 pixels", "line.png", encode(Image.new("L", (20_000, 2)), "PNG"), False),
        ("one pixel", "pixel.png", encode(Image.new("RGB", (1, 1), "red"), "PNG"), True),
        ("3000 x 2000", "large.png", encode(Image.new("RGB", (3000, 2000), "teal"), "PNG"), True),
        ("animated GIF", "film.gif", encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), True),
        ("animated WebP", "film.webp", encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]), True),
        ("truncated GIF", "cut.gif", encode(photo.quantize(64), "GIF")[:900], False),
        ("TIFF of pages", "pages.tif", encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]), True),
        ("truncated TIFF", "cut.tif", encode(photo, "TIFF")[:3000], False),
        ("CMYK JPEG", "print.jpg", encode(photo.convert("CMYK"), "JPEG"), True),
        ("16-bit PNG", "deep.png", encode(Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG"), True),
        ("32-bit float TIFF", "float.tif", encode(Image.fromarray(noise[..., 0].astype(np.float32)), "TIFF"), True),
        ("1-bit PNG", "fax.png", encode(photo.convert("1"), "PNG"), True),
        ("palette with transparency", "icon.png", encode(palette, "PNG", transparency=3), True),
        ("palette with an alpha a colour", "icon2.png", encode(palette, "PNG", transparency=bytes(range(16))), True),
        ("grey with alpha", "grey.png", encode(photo.convert("LA"), "PNG"), True),
        ("transparent PNG", "clear.png", encode(Image.new("RGBA", (40, 40), (9, 9, 9, 0)), "PNG"), True),
        ("EXIF-rotated", "phone.jpg", encode(photo, "JPEG", exif=turned), True),
        ("broken EXIF", "exif.jpg", encode(photo, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"), True),
        ("path in its name", "../../../etc/cron.d/evil.png", whole, True),
        ("Windows path in its name", "..\\..\\system32\\evil.png", whole, True),
        ("name of markup", '"><img src=x onerror=alert(1)>.png', whole, True),
        ("name of 300 letters", "n" * 300 + ".png", whole, True),
        ("name in other scripts", "猫 🐈 кот\u202egnp.png", whole, True),
    ]
    return [Upload(*entry) for entry in odd]
