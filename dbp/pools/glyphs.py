"""The embedded pool: the characters of matplotlib's fonts, captioned by their Unicode names.

Real image-text data without a download, with the ills of the web: concepts of very unequal size,
near duplicates (one character in regular and oblique), homoglyphs (Latin A, Greek Alpha: one
picture, two captions). On top come exact copies, re-encoded copies and swapped captions, in shares
that the plan sets; `truth.parquet` tells which row is what.

There is no random generator: every choice is a hash of the seed and of what is chosen. So a pool of
600 pairs draws from the same order of glyphs as one of 20,000, and the tests are the same for both.
The bytes also depend on the versions of Pillow (PNG, JPEG, hinting) and of Python (Unicode names).
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from dbp.config import require
from dbp.errors import ConfigError, StoreError, nearest
from dbp.formats.tars import write_members
from dbp.pools.glyph_fonts import Glyph, all_glyphs, base_letter, caption_of, encode, hashed, look_alikes, reencode

# Shares kept for the tests: Latin letters enough for 2,000 pictures, the rest for every script.
RESERVED_LETTERS = 0.25
RESERVED_OTHERS = 0.10


@dataclass(frozen=True)
class GlyphPlan:
    """What to render: how many pairs, what is planted among them, what is kept for the tests.

    Args:
        num_pairs: Rows of the pool, copies included.
        exact_copies: Share of the rows that repeat an original's image bytes.
        reencoded_copies: Share that repeat an original's picture in other bytes. Each original is
            copied at most once, so both shares together are at most 0.5.
        swapped_captions: Share, of originals and copies alike, that carry another row's caption.
        image_size: Side of a picture in pixels.
        samples_per_shard: At most 10,000: a key has four digits for the sample.
        held_out_faces: Faces that only the shift and retrieval tasks show.
        task_pictures: Pictures in each test set.
        seed: Changes what is taken, copied, swapped and reserved, and the order.

    Raises:
        ConfigError: A field is out of its range.
    """

    num_pairs: int = 20_000
    exact_copies: float = 0.10
    reencoded_copies: float = 0.15
    swapped_captions: float = 0.20
    image_size: int = 32
    samples_per_shard: int = 2_000
    held_out_faces: tuple[str, ...] = ("DejaVu Sans Mono Oblique", "DejaVu Serif Bold Italic", "STIX General")
    task_pictures: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_pairs", 1, 1_000_000),
            ("exact_copies", 0, 0.5),
            ("reencoded_copies", 0, 0.5),
            ("swapped_captions", 0, 1),
            ("image_size", 16, 256),
            ("samples_per_shard", 1, 10_000),
            ("task_pictures", 1, 1_000_000),
        ):
            value = getattr(self, name)
            require(low <= value <= high, name, value, f"from {low:,} to {high:,}")
        room = Decimal("0.5") - Decimal(str(self.exact_copies))
        is_once = Decimal(str(self.reencoded_copies)) <= room
        must = f"at most {room} beside exact_copies={self.exact_copies} (one copy each); lower one"
        require(is_once, "reencoded_copies", self.reencoded_copies, must)

    def count(self, share: float) -> int:
        """The rows in a share: the floor of its exact decimal product with num_pairs."""
        return int(Decimal(str(share)) * self.num_pairs)


class Split(NamedTuple):
    """Who may show a glyph. No picture, pixel for pixel, is in two of the three."""

    pool: list[Glyph]
    reserved: list[Glyph]
    shifted: list[Glyph]


class _Row(NamedTuple):
    """What one sample shows, before its caption is perhaps swapped."""

    glyph: Glyph
    kind: str
    source: int | None  # the row of a copy's original


def render_pool(plan: GlyphPlan, folder: Path) -> dict[str, int]:
    """Write `shards/00000.tar ...` as img2dataset does, and `truth.parquet` beside.

    A sample is KEY.png (KEY.jpg for half of the re-encoded copies), KEY.txt and KEY.json; the JSON
    says what is drawn, never what was planted. `truth.parquet` has a row per sample: `uid` (the
    key), `kind` (original, exact, reencoded), `source_uid` (a copy's original), `caption_swapped`,
    `true_caption`, `character` (code point), `face`, and two group numbers: `same_picture` (equal
    renderings; a copy has its original's) and `same_character` (one character in any face).

    Raises:
        ConfigError: The fonts have too few glyphs for the plan, or too few rows to swap captions.
        StoreError: The folder already holds shards.
    """
    rows = _plan_rows(plan)
    donors = _swap_captions(plan, rows)
    shards = Path(folder, "shards")
    if shards.is_dir() and any(shards.iterdir()):
        raise StoreError(f"{shards} is not empty. Delete it, or render into another folder.")
    shards.mkdir(parents=True, exist_ok=True)
    size = plan.samples_per_shard
    uids = [f"{row // size:05}{row % size:04}" for row in range(len(rows))]
    for start in range(0, len(rows), size):
        members = (
            member
            for row in range(start, min(start + size, len(rows)))
            for member in _sample(plan, uids[row], rows[row], rows[donors.get(row, row)].glyph)
        )
        write_members(shards / f"{start // size:05}.tar", members)
    _write_truth(plan, Path(folder, "truth.parquet"), rows, uids, donors)
    kinds = Counter(row.kind for row in rows)
    return {
        "pairs": len(rows),
        **{kind: kinds[kind] for kind in ("original", "exact", "reencoded")},
        "swapped": len(donors),
        "characters": len({row.glyph.character for row in rows}),
        "faces": len({row.glyph.face for row in rows}),
        "pictures": len({row.glyph.picture for row in rows}),
        "shards": -(-len(rows) // size),
    }


def split_glyphs(plan: GlyphPlan) -> Split:
    """Share out the glyphs: for the pool, for tests on known faces, for tests on held-out faces.

    Glyphs that look the same (homoglyphs; outlines that faces share) go together: to `reserved` if
    the first of them falls there, and to `shifted` only if no other face draws the same. Neither
    the size of the pool nor what is planted plays a part.

    Raises:
        ConfigError: A held-out face does not exist.
    """
    glyphs, _ = all_glyphs(plan.image_size)
    faces = {glyph.face for glyph in glyphs}
    for face in plan.held_out_faces:
        if face not in faces:
            raise ConfigError(f"held_out_faces={face!r} is no face. {nearest(face, faces)}")
    reserved = _reserved(plan.image_size, plan.seed)
    known = [glyph for glyph in glyphs if glyph.face not in plan.held_out_faces]
    seen = {glyph.picture for glyph in known}
    return Split(
        pool=[glyph for glyph in known if glyph.picture not in reserved],
        reserved=[glyph for glyph in known if glyph.picture in reserved],
        shifted=[glyph for glyph in glyphs if glyph.picture not in seen],
    )


@lru_cache(maxsize=2)
def _reserved(image_size: int, seed: int) -> frozenset[int]:
    """The pictures kept for the tests."""
    first: dict[int, Glyph] = {}
    for glyph in sorted(all_glyphs(image_size)[0], key=lambda g: (g.character, g.face)):
        first.setdefault(glyph.picture, glyph)
    reserved = set()
    for picture, (face, character, _) in first.items():
        share = RESERVED_LETTERS if base_letter(character) else RESERVED_OTHERS
        if hashed(seed, "reserved", face, character) < share:
            reserved.add(picture)
    return frozenset(reserved)


def _plan_rows(plan: GlyphPlan) -> list[_Row]:
    """Originals and their copies, shuffled together, so that a copy is anywhere in the pool."""
    num_exact, num_reencoded = plan.count(plan.exact_copies), plan.count(plan.reencoded_copies)
    num_originals = plan.num_pairs - num_exact - num_reencoded
    glyphs = split_glyphs(plan).pool
    if num_originals > len(glyphs):
        raise ConfigError(
            f"num_pairs={plan.num_pairs:,} needs {num_originals:,} different glyphs: {len(glyphs):,} are left "
            "beside held_out_faces and the tests. Lower num_pairs, or raise exact_copies or reencoded_copies."
        )
    glyphs.sort(key=lambda glyph: hashed(plan.seed, "take", glyph.face, glyph.character))
    copies = ["exact"] * num_exact + ["reencoded"] * num_reencoded
    pieces = [*enumerate(["original"] * num_originals), *enumerate(copies)]
    pieces.sort(key=lambda piece: hashed(plan.seed, "order", *piece))
    row_of = {i: row for row, (i, kind) in enumerate(pieces) if kind == "original"}
    return [_Row(glyphs[i], kind, None if kind == "original" else row_of[i]) for i, kind in pieces]


def _swap_captions(plan: GlyphPlan, rows: list[_Row]) -> dict[int, int]:
    """For each row with a wrong caption, the row whose caption it carries.

    The chosen rows stand in a circle, look-alikes side by side, and each takes the caption of the
    row as many places on as the largest group has members: so it is always of another group.

    Raises:
        ConfigError: One group has more than half of the chosen rows.
    """
    order = sorted(range(len(rows)), key=lambda row: hashed(plan.seed, "swap", row))
    chosen = order[: plan.count(plan.swapped_captions)]
    look_alike = look_alikes(plan.image_size)
    groups = defaultdict(list)
    for row in chosen:
        groups[look_alike[rows[row].glyph.character]].append(row)
    circle = [row for group in groups.values() for row in group]
    step = max(map(len, groups.values()), default=0)
    if 2 * step > len(circle):
        raise ConfigError(
            f"swapped_captions={plan.swapped_captions} of num_pairs={plan.num_pairs:,} chooses "
            f"{len(circle)} rows, {step} of which look the same: they cannot all get a wrong "
            "caption. Raise num_pairs or swapped_captions, or set swapped_captions to 0."
        )
    return {row: circle[(i + step) % len(circle)] for i, row in enumerate(circle)}


def _sample(plan: GlyphPlan, uid: str, row: _Row, told: Glyph) -> Iterator[tuple[str, bytes]]:
    pixels = all_glyphs(plan.image_size)[1][row.glyph.picture]
    if row.kind == "reencoded":
        extension, image = reencode(pixels, plan.image_size, plan.seed, uid)
    else:
        extension, image = "png", encode(pixels, plan.image_size)
    caption = caption_of(told, plan.seed)
    fields = {
        "uid": uid,
        "key": uid,
        "caption": caption,
        "status": "success",
        "width": plan.image_size,
        "height": plan.image_size,
        "sha256": hashlib.sha256(image).hexdigest(),
        "face": row.glyph.face,
        "character": f"U+{row.glyph.character:04X}",
    }
    yield f"{uid}.{extension}", image
    yield f"{uid}.txt", caption.encode()
    yield f"{uid}.json", json.dumps(fields).encode()


def _write_truth(plan: GlyphPlan, path: Path, rows: list[_Row], uids: list[str], donors: dict[int, int]) -> None:
    pictures: dict[int, int] = {}
    characters: dict[int, int] = {}
    sources = [None if row.source is None else uids[row.source] for row in rows]
    columns = {
        "uid": uids,
        "kind": [row.kind for row in rows],
        "source_uid": pyarrow.array(sources, pyarrow.string()),  # typed: it may hold nulls alone
        "caption_swapped": [row in donors for row in range(len(rows))],
        "true_caption": [caption_of(row.glyph, plan.seed) for row in rows],
        "character": [row.glyph.character for row in rows],
        "face": [row.glyph.face for row in rows],
        "same_picture": [pictures.setdefault(r.glyph.picture, len(pictures)) for r in rows],
        "same_character": [characters.setdefault(r.glyph.character, len(characters)) for r in rows],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
