"""The characters of matplotlib's fonts as small pictures, with their Unicode names."""

import hashlib
import io
import re
import unicodedata
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

# The name comes first: a small text tower reads 16 tokens, and a long name fills them.
CAPTIONS = ("{name}, {face}", "{name} in {face}", "{name} ({face})", "the {name}, set in {face}")

_LETTER = re.compile(
    r"(?:(?:CIRCLED |PARENTHESIZED |FULLWIDTH )?LATIN|MATHEMATICAL|DOUBLE-STRUCK|SCRIPT"
    r"|BLACK-LETTER|MODIFIER LETTER) (?:[A-Z-]+ )*(?:CAPITAL|SMALL) (?:LETTER )?([A-Z])"
    r"(?: WITH .+)?"
)


class Glyph(NamedTuple):
    """One character in one face; `picture` numbers the distinct renderings."""

    face: str
    character: int
    picture: int


def name_of(character: int) -> str:
    """The Unicode name in lower case, "greek small letter alpha"."""
    return unicodedata.name(chr(character)).lower()


@cache
def base_letter(character: int) -> str | None:
    """The letter a-z of a Latin character, whatever its case, accents or style; None for others."""
    match = _LETTER.fullmatch(unicodedata.name(chr(character)))
    return match[1].lower() if match else None


def caption_of(glyph: Glyph, seed: int) -> str:
    """The true caption: name and face in words, in one of four phrasings."""
    choice = int(hashed(seed, "caption", glyph.face, glyph.character) * len(CAPTIONS))
    return CAPTIONS[choice].format(name=name_of(glyph.character), face=glyph.face.lower())


def hashed(*words: object) -> float:
    """A number in [0, 1) that depends on nothing but the words, joined as text."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@lru_cache(maxsize=1)
def all_glyphs(image_size: int) -> tuple[list[Glyph], list[bytes]]:
    """Every glyph of DejaVu and STIX, by file and code point, and the distinct images: grey, white on black.

    About 4 s and, at 32 pixels a side, 50 MB.

    Left out: empty pictures, the box for missing glyphs, characters without a name or for private
    use; and Computer Modern, whose files put symbols at the code points of plain letters.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font

    glyphs: list[Glyph] = []
    number: dict[bytes, int] = {}
    for path in sorted(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")):
        if not path.name.startswith(("DejaVu", "STIX")):
            continue
        font = FT2Font(str(path))
        face = _face_name(font.family_name, font.style_name)
        sizes: dict[int, ImageFont.FreeTypeFont] = {}
        for character, index in sorted(font.get_charmap().items()):
            is_named = unicodedata.name(chr(character), "") != ""
            if index == 0 or not is_named or unicodedata.category(chr(character))[0] in "CZ":
                continue
            picture = _draw(path, chr(character), image_size, sizes)
            if picture is not None:
                glyphs.append(Glyph(face, character, number.setdefault(picture, len(number))))
    return glyphs, list(number)


@lru_cache(maxsize=1)
def look_alikes(image_size: int) -> dict[int, int]:
    """A group number for each character: those that share a picture in any face are one group."""
    glyphs, _ = all_glyphs(image_size)
    parent = {glyph.character: glyph.character for glyph in glyphs}

    def root(character: int) -> int:
        while parent[character] != character:
            character = parent[character]
        return character

    first: dict[int, int] = {}
    for glyph in glyphs:
        parent[root(glyph.character)] = root(first.setdefault(glyph.picture, glyph.character))
    return {character: root(character) for character in parent}


def _face_name(family: str, style: str) -> str:
    """Family and style in words: STIXSizeOneSym and Regular make "STIX Size One Sym"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=STIX)", " ", family).replace("Deja Vu", "DejaVu")
    return words if style in ("Book", "Regular", "Display") else f"{words} {style}"


def _draw(path: Path, text: str, image_size: int, sizes: dict[int, ImageFont.FreeTypeFont]) -> bytes | None:
    """Draw at three quarters of the picture's height, or smaller so that it fits; None without ink.

    Ink is centred from left to right and stands on one baseline for all, since height is what tells
    a comma from an apostrophe; it moves up or down only as far as it must to leave a pixel free.
    """
    points = baseline = image_size * 3 // 4
    room = image_size - 2
    while True:
        if points not in sizes:
            # The basic layout: Raqm is not in every build of Pillow, and it reorders marks.
            layout = ImageFont.Layout.BASIC
            sizes[points] = ImageFont.truetype(str(path), points, layout_engine=layout)
        canvas = Image.new("L", (4 * image_size, 4 * image_size))
        origin = 2 * image_size
        ImageDraw.Draw(canvas).text((origin, origin), text, 255, sizes[points], anchor="ls")
        ink = canvas.getbbox()
        if ink is None:
            return None
        left, top, right, bottom = ink
        extent = max(right - left, bottom - top)
        if extent <= room:
            break
        points = min(points - 1, points * room // extent)
    x = left - (image_size - (right - left)) // 2
    y = min(max(origin - baseline, bottom + 1 - image_size), top - 1)
    return canvas.crop((x, y, x + image_size, y + image_size)).tobytes()


def encode(pixels: bytes, image_size: int) -> bytes:
    """A picture as PNG, without loss."""
    file = io.BytesIO()
    Image.frombytes("L", (image_size, image_size), pixels).save(file, "PNG")
    return file.getvalue()


def reencode(pixels: bytes, image_size: int, *words: object) -> tuple[str, bytes]:
    """The extension and file of an image as the web hands it on: visibly the same, other bytes than `encode` makes.

    Half are JPEG of quality 60 to 85, half are cropped by up to a pixel on each side and resized; `words` decide.
    """
    picture, file = Image.frombytes("L", (image_size, image_size), pixels), io.BytesIO()
    chance = hashed("reencode", *words)
    if chance < 0.5:
        picture.save(file, "JPEG", quality=60 + int(chance * 2 * 26))
        return "jpg", file.getvalue()
    left, top, right, bottom = (
        0.25 + 0.75 * hashed("crop", side, *words) for side in ("left", "top", "right", "bottom")
    )
    box = (left, top, image_size - right, image_size - bottom)
    picture.resize(picture.size, Image.Resampling.BICUBIC, box).save(file, "PNG")
    return "png", file.getvalue()
