"""Decoding images as they are found on the web: one function, one recipe for all of the project."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageColor, UnidentifiedImageError

# Of several images under one key the first of these counts: in a pool, and in an evaluation set, where
# CLIP_benchmark reads webp before png before jpg.
IMAGE_FORMATS = ("jpg", "jpeg", "png", "webp", "gif", "jfif", "bmp", "tif", "tiff", "avif")
EVALUATION_FORMATS = ("webp", "png", "jpg", "jpeg", "gif")
# What a file may be, whatever its extension says. Others that Pillow knows run programs (EPS calls
# Ghostscript) or are not images of the web.
CONTENTS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
DROP = "drop"  # no background: colours without their alpha
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # Pillow's modes of one channel of more than 8 bits
FEW_BITS = {"L;2": 85, "L;4": 17}  # from a grey value of 2 or 4 bits to one of 8
# What an index and `dbp init` count by.
DEEP_IMAGES = "deep images, scaled to 8 bits"
TRANSPARENT_IMAGES = "images with an alpha channel or transparency chunk"
# Our own cap is checked against the header, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


# What a file of each kind begins with.
SIGNS = (
    (0, b"\xff\xd8\xff", "jpg"), (0, b"\x89PNG\r\n", "png"), (8, b"WEBP", "webp"), (0, b"GIF8", "gif"),
    (0, b"BM", "bmp"), (0, b"II*\0", "tif"), (0, b"MM\0*", "tif"), (4, b"ftypavi", "avif"),
)  # fmt: skip


def extension_of(content: bytes) -> str:
    """The extension for an image's file, by its first bytes; `jpg` for what is of no known kind."""
    return next((kind for at, sign, kind in SIGNS if content[at : at + len(sign)] == sign), "jpg")


class Undecodable(ValueError):
    """An image that cannot be turned into pixels; the message is the reason, in a few words."""


class Header(NamedTuple):
    """What an image's header says."""

    format: str  # lower case
    width: int  # pixels as stored
    height: int
    orientation: int  # of EXIF; 1 is upright
    is_deep: bool  # one channel of more than 8 bits: grey of 16 bits, integers of 32, or floats
    has_alpha: bool  # an alpha channel or a transparency chunk, whether or not a pixel uses it


def header(content: bytes, max_pixels: int) -> Header:
    """Read an image's header without decoding it; more than `max_pixels` are refused: a small file can expand.

    Raises:
        Undecodable: The reason, one of a few fixed words.
    """
    with _opened(content, max_pixels, "broken image header") as image:
        width, height = image.size
        if width * height == 0:
            raise Undecodable("broken image header")
        orientation = _orientation(image) if b"Exif" in content[:65_536] else 1
        kind = (image.format or "unknown").lower()
        return Header(kind, width, height, orientation, image.mode in DEEP, has_alpha(image))


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


def decode_rgb(content: bytes, max_pixels: int, background: str = DROP) -> Image.Image:
    """Decode an image to RGB: the first frame, 8 bits a channel, on a background or without its alpha.

    The EXIF orientation is ignored, as by open_clip's and DataComp's loaders, so that an image looks
    the same to curation, training and evaluation.

    Raises:
        Undecodable: The pixels cannot be read.
    """
    with _opened(content, max_pixels, "undecodable image") as image:
        return to_rgb(image, background)


def to_rgb(image: Image.Image, background: str = DROP) -> Image.Image:
    """An opened image, not loaded yet, as RGB of 8 bits.

    Pillow's conversion, except for deep images, which it clips at 255: nearly all of a 16-bit image becomes white.
    16 bits keep their high byte, as Pillow and libpng do for colour. Integers of 32 bits and floats have no range
    of their own: floats in [0, 1] are multiplied by 255; values in [0, 255] stay; integers in [0, 65535] keep their
    high byte; all others are stretched from their least to their greatest. What is not finite becomes 0.

    Args:
        background: What lies behind transparent pixels: `drop`, a colour's name, or `#rrggbb`. `drop` takes the
            colours of the file without their alpha, as open_clip does: what they are below alpha 0 is accidental,
            often black.
    """
    tile: Any = getattr(image, "tile", None)
    depth = tile[0].args if tile else None
    depth = depth[0] if isinstance(depth, tuple) else depth
    transparent: Any = image.info.get("transparency")
    is_seen = background != DROP and has_alpha(image)
    if image.mode in DEEP:
        values = np.asarray(image)
        grey = Image.fromarray(_eight_bits(values, is_16=image.mode.startswith("I;16")))
        if not is_seen:
            return grey.convert("RGB")
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        image = Image.merge("LA", (grey, alpha))
    elif not is_seen:
        return image.convert("RGB")
    elif depth in FEW_BITS and isinstance(transparent, int):
        image.load()
        image.info["transparency"] = transparent * FEW_BITS[depth]  # Pillow has scaled the pixels alone
    elif depth == "RGB;16B" and isinstance(transparent, tuple):
        image.load()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    ground = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    """Whether an opened image has an alpha channel or a transparency chunk; no pixel is decoded."""
    return image.has_transparency_data


def is_background(name: str) -> bool:
    """Whether a name is `drop`, one of CSS' colours, or `#rrggbb`."""
    return name == DROP or name.lower() in ImageColor.colormap or bool(re.fullmatch("#[0-9a-fA-F]{6}", name))


def background_key(name: str) -> str:
    """What names a background in a digest: equal for two names of one colour, empty for `drop`."""
    return "" if name == DROP else "#{:02x}{:02x}{:02x}".format(*ImageColor.getrgb(name)[:3])


def _eight_bits(values: Shaped[np.ndarray, "h w"], is_16: bool) -> UInt8[np.ndarray, "h w"]:
    """A deep image's values in 8 bits, as `to_rgb` describes."""
    if is_16:
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    found = values.astype(np.float64)
    whole = found[np.isfinite(found)]
    low, high = (float(whole.min()), float(whole.max())) if whole.size else (0.0, 0.0)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif values.dtype.kind != "f" and low >= 0 and high <= 65_535:
        return (values >> 8).astype(np.uint8)
    found = np.where(np.isfinite(found), found, low).clip(low, high)
    return np.rint((found - low) * 255 / ((high - low) or 1)).astype(np.uint8)
