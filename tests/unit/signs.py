"""A stranger's folder of tars: coloured characters, captions, a json with script, ground and source."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dbp.formats.tars import write_members
from dbp.pools.glyph_fonts import all_glyphs, hashed, name_of
from dbp.pools.glyph_tasks import script

COLOURS = {
    "red": (200, 40, 30), "green": (30, 150, 60), "blue": (30, 60, 200), "yellow": (240, 210, 60),
    "black": (15, 15, 15), "white": (245, 245, 245), "orange": (240, 130, 20), "purple": (130, 50, 160),
}  # fmt: skip
PHRASES = (
    "a {ink} {name} on {ground} ground",
    "{name}, {ink} on {ground}",
    "sign with the {name} in {ink}, {ground} ground",
)
SOURCES = ("museum", "shop", "forum", "wiki")


def write_signs(
    folder: Path, count: int, shards: int, sides: tuple[int, ...] = (64, 80, 96), seed: int = 0
) -> None:
    """Write tars: a tenth of the images are copies, a seventh of the captions belong to another image."""
    glyphs, pixels = all_glyphs(48)
    chosen = [glyph for glyph in glyphs if script(glyph.character)]
    chosen.sort(key=lambda glyph: hashed(seed, "take", glyph.face, glyph.character))
    shown = [chosen[row if hashed(seed, "copy", row) > 0.1 else row // 2] for row in range(count)]
    copied = [row if hashed(seed, "copy", row) > 0.1 else row // 2 for row in range(count)]
    captions = [_caption(name_of(glyph.character), row, seed) for glyph, row in zip(shown, copied, strict=True)]
    folder.mkdir(parents=True)
    for shard in range(shards):
        members = []
        for row in range(shard, count, shards):
            told = row if hashed(seed, "swap", row) > 0.15 else (row + 17) % count
            side = sides[int(hashed(seed, "side", copied[row]) * len(sides))]
            fields = {
                "caption": captions[told], "script": script(shown[row].character), "width": side, "height": side,
                "ground": _inks(copied[row], seed)[1],
                "source": SOURCES[int(hashed(seed, "source", row) * len(SOURCES))], "status": "success",
            }  # fmt: skip
            key = f"{shard:05d}{row:06d}"
            members += [
                (f"{key}.jpg", _draw(pixels[shown[row].picture], side, copied[row], seed)),
                (f"{key}.txt", captions[told].encode()),
                (f"{key}.json", json.dumps(fields).encode()),
            ]
        write_members(folder / f"{shard:05d}.tar", members)


def _inks(row: int, seed: int) -> tuple[str, str]:
    names = list(COLOURS)
    ink = int(hashed(seed, "ink", row) * len(names))
    return names[ink], names[(ink + 1 + int(hashed(seed, "ground", row) * (len(names) - 1))) % len(names)]


def _caption(name: str, row: int, seed: int) -> str:
    ink, ground = _inks(row, seed)
    phrase = PHRASES[int(hashed(seed, "phrase", row) * len(PHRASES))]
    return phrase.format(ink=ink, ground=ground, name=name)


def _draw(grey: bytes, side: int, row: int, seed: int) -> bytes:
    """The character somewhere on a noisy ground, turned a little."""
    ink, ground = (np.array(COLOURS[name], float) for name in _inks(row, seed))
    glyph = Image.frombytes("L", (48, 48), grey).rotate(30 * hashed(seed, "turn", row) - 15)
    canvas = Image.new("L", (side, side))
    room = side - 48
    canvas.paste(glyph, tuple(int(hashed(seed, axis, row) * room) for axis in "xy"))
    share = np.asarray(canvas, float)[..., None] / 255
    noise = np.random.default_rng(row).normal(0, 8, (side, side, 3))
    made = ground * (1 - share) + ink * share + noise
    content = io.BytesIO()
    Image.fromarray(made.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=85)
    return content.getvalue()
