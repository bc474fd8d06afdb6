"""Decoding images as they are found on the web: one function, one recipe for all of the project."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

# Of several images under one key the first of these counts: in a pool, and in an evaluation set, where
# CLIP_benchmark reads webp before png before jpg.
IMAGE_FORMATS = ("jpg", "jpeg", "png", "webp", "gif")
EVALUATION_FORMATS = ("webp", "png", "jpg", "jpeg", "gif")
# What a file may be, whatever its extension says. Others that Pillow knows run programs (EPS calls
# Ghostscript) or are not images of the web.
CONTENTS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# Our own cap is checked against the header, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


class Undecodable(ValueError):
    """An image that cannot be turned into pixels; the message is the reason, in a few words."""


def header(content: bytes, max_pixels: int) -> tuple[str, int, int, int]:
    """Read an image's header without decoding it; more than `max_pixels` are refused: a small file can expand.

    Returns:
        Format (lower case), width, height in pixels as stored, EXIF orientation (1 is upright).

    Raises:
        Undecodable: The reason, one of a few fixed words.
    """
    with _opened(content, max_pixels, "broken image header") as image:
        width, height = image.size
        if width * height == 0:
            raise Undecodable("broken image header")
        orientation = _orientation(image) if b"Exif" in content[:65_536] else 1
        return (image.format or "unknown").lower(), width, height, orientation


@contextmanager
def _opened(content: bytes, max_pixels: int, otherwise: str) -> Iterator[Image.Image]:
    """An image of few enough pixels; what goes wrong becomes `Undecodable`."""
    if not content:
        raise Undecodable("empty image")
    try:
        with Image.open(io.BytesIO(content), formats=CONTENTS) as image:
            if image.size[0] * image.size[1] > max_pixels:
                raise Undecodable("too many pixels")
            yield image
    except Undecodable:
        raise
    except UnidentifiedImageError:
        raise Undecodable("not an image") from None
    except Exception:  # a damaged file can raise anything: struct.error, SyntaxError, OSError
        raise Undecodable(otherwise) from None


def _orientation(image: Image.Image) -> int:
    if image.format not in ("JPEG", "MPO"):
        return 1
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block does not make the picture unreadable
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def decode_rgb(content: bytes, max_pixels: int) -> Image.Image:
    """Decode an image to RGB: the first frame, colours converted, alpha dropped, as open_clip does.

    The EXIF orientation is ignored, as by open_clip's and DataComp's loaders, so that an image looks
    the same to curation, training and evaluation.

    Raises:
        Undecodable: The pixels cannot be read.
    """
    with _opened(content, max_pixels, "undecodable image") as image:
        return image.convert("RGB")
