"""A folder of tars, scanned before anything is set: counts, sizes, captions, formats, what is broken.

All shards are read where that takes seconds; otherwise some, spread over the folder, and what is said of
the rest is an estimate from their sizes. Images are not decoded, only their headers read.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dbp.data.caption_text import NO_CAPTION, Caption, read_caption, read_json
from dbp.data.images import DEEP_IMAGES, TRANSPARENT_IMAGES, Undecodable, header
from dbp.data.pool import uid_from
from dbp.engine.progress import progress
from dbp.errors import PoolError
from dbp.formats.tars import image_format, samples

PATIENCE = 15.0  # seconds that reading may take
FIELDS = ("caption", "text", "alt", "title", "description")  # of a json, in this order, else the longest
MAX_PIXELS = 178_956_970
NONE = Caption(None, NO_CAPTION)
RECORD = 512  # bytes that a tar's size is a multiple of


@dataclass
class Look:
    """What was found in a folder."""

    shards: list[Path]  # all tars, in order
    total_bytes: int
    broken: dict[Path, str] = field(default_factory=dict)  # what is wrong; of unread shards, by size
    num_read: int = 0  # shards that were read
    read_bytes: int = 0
    num_samples: int = 0  # in those
    captions: str | None = None  # `txt`, `json:FIELD`, or none
    words: list[int] = field(default_factory=list)  # of each caption that was read
    characters: list[int] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)  # of images; undecodable ones by extension
    problems: Counter[str] = field(default_factory=Counter)  # samples that cannot be used, by reason
    notes: Counter[str] = field(default_factory=Counter)  # what is used, but not as it lies there
    short_sides: list[int] = field(default_factory=list)  # of each image, in pixels
    picture_bytes: list[int] = field(default_factory=list)
    repeated_keys: int = 0  # samples whose key came before
    has_uids: bool = False  # whether each json has a `uid` of its own
    keys: set[str] = field(default_factory=set, repr=False)
    fields: Counter[str] = field(default_factory=Counter, repr=False)  # text fields of the json
    texts: list[tuple[Caption, bytes | None]] = field(default_factory=list, repr=False)  # `txt` and json

    @property
    def is_whole(self) -> bool:
        """Whether every shard was read."""
        return self.num_read == len(self.shards)

    @property
    def rows(self) -> int:
        """Samples of the folder, estimated by size where not all was read."""
        if self.is_whole or not self.read_bytes:
            return self.num_samples
        return round(self.num_samples * self.total_bytes / self.read_bytes)

    @property
    def usable(self) -> int:
        """Rows with a caption and a sound picture header, estimated likewise."""
        bad = sum(self.problems.values()) / max(self.num_samples, 1)
        return round(self.rows * (1 - bad))


def find_tars(folder: Path) -> list[Path]:
    """The tars of a folder, or of the folders right below it.

    Raises:
        PoolError: There is no such folder, it cannot be read, or no tar is in it.
    """
    if not folder.exists():
        raise PoolError(f"{folder} does not exist. Name the folder that holds the tars.")
    if not folder.is_dir():
        raise PoolError(f"{folder} is a file. Name the folder that holds it: {folder.parent}.")
    try:
        inside = sorted(folder.iterdir())
        for pattern in ("[!.]*.tar", "*/[!.]*.tar"):
            if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
                return found
    except OSError as error:
        raise PoolError(f"{folder} cannot be read: {error.strerror or error}.") from error
    kinds = Counter(path.suffix or ("folder" if path.is_dir() else "no extension") for path in inside)
    there = ", ".join(f"{number} x {kind}" for kind, number in kinds.most_common(5)) or "nothing"
    if kinds[".parquet"]:
        way_out = "A folder of DataComp's metadata is a pool of its own: pool=datacomp pool.metadata=FOLDER."
    else:
        way_out = (
            "Make webdataset tars of pictures and captions first, as img2dataset does with "
            "output_format=webdataset."
        )
    raise PoolError(f"no tar lies in {folder} or in a folder right below it, but {there}. {way_out}")


def look(folder: Path, patience: float = PATIENCE) -> Look:
    """Scan a folder of tars; no further shard is begun after `patience` seconds.

    Raises:
        PoolError: No tar is there, none can be read, or no sample has a picture or a caption.
    """
    shards = find_tars(folder)
    found = Look(shards, sum(shard.stat().st_size for shard in shards))
    began = time.monotonic()
    unread = set(shards)
    with progress("look", len(shards), "shards") as bar:
        for shard in _spread(shards):
            if found.num_read and time.monotonic() - began > patience:
                break
            _read(found, shard)
            unread.discard(shard)
            bar.advance()
    for shard in sorted(unread):
        if (size := shard.stat().st_size) == 0:
            found.broken[shard] = f"shard {shard} is empty"
        elif size % RECORD:
            found.broken[shard] = f"shard {shard} has {size:,} bytes, no multiple of {RECORD}"
    if not found.num_samples:
        first = next(iter(found.broken.values()), "no member has a known extension")
        raise PoolError(f"no sample can be read from the {len(shards):,} tars in {folder}; the first: {first}")
    if not found.picture_bytes:
        kinds = ", ".join(sorted(found.formats)) or "none of a known kind"
        raise PoolError(
            f"the {found.num_samples:,} samples read from {folder} have no picture (members: {kinds}). "
            "Pictures are jpg, jpeg, png, webp or gif."
        )
    _captions(found, folder)
    return found


def _spread(shards: Sequence[Path]) -> list[Path]:
    """The shards in an order whose beginning is spread over all: first, last, middle, quarters, …"""
    count = len(shards)
    at, step = [0, count - 1], count
    while step > 1:
        step = (step + 1) // 2
        at += range(step, count, step)
    return [shards[i] for i in dict.fromkeys(at)]


def _read(found: Look, shard: Path) -> None:
    """Add a shard to what was found."""
    damage: list[str] = []
    for sample in samples(str(shard), damage.append):
        found.num_samples += 1
        found.repeated_keys += sample.key in found.keys
        found.keys.add(sample.key)
        if kind := image_format(sample.members):
            _image(found, kind, sample.members[kind].content)
        else:
            found.problems["no picture"] += 1
        text, described = (sample.members.get(kind) for kind in ("txt", "json"))
        found.fields.update(_text_fields(described.content) if described else ())
        caption = read_caption(text.content, "txt") if text else NONE
        found.texts.append((caption, described.content if described else None))
    found.num_read += 1
    found.read_bytes += shard.stat().st_size
    if damage:
        found.broken[shard] = damage[0]


def _image(found: Look, kind: str, content: bytes) -> None:
    found.picture_bytes.append(len(content))
    try:
        said = header(content, MAX_PIXELS)
        kind = said.format
        found.short_sides.append(min(said.width, said.height))
        found.notes[TRANSPARENT_IMAGES] += said.has_alpha
        found.notes[DEEP_IMAGES] += said.is_deep
    except Undecodable as error:
        found.problems[str(error)] += 1
    found.formats[kind] += 1


def _text_fields(content: bytes) -> list[str]:
    """The names of a json's fields that hold text."""
    value, _ = read_json(content)
    return [k for k, v in value.items() if isinstance(v, str)] if isinstance(value, dict) else []


def _captions(found: Look, folder: Path) -> None:
    """Choose where captions stand, and measure them."""

    def of(choice: str) -> list[Caption]:
        if choice == "txt":
            return [text for text, _ in found.texts]
        return [read_caption(content, choice) if content else NONE for _, content in found.texts]

    uids = [uid_from(content, "json:uid") if content else None for _, content in found.texts]
    found.has_uids = all(uids) and len(set(uids)) == len(uids)
    choices = ["txt", *(f"json:{name}" for name in FIELDS if name in found.fields)]
    counts = {choice: sum(not caption.reason for caption in of(choice)) for choice in choices}
    best = max(choices, key=lambda choice: counts[choice])
    if not counts[best]:
        others = ", ".join(sorted(found.fields)) or "none"
        raise PoolError(
            f"the {found.num_samples:,} samples read from {folder} have no caption: no txt member with text, and "
            f"no json field {', '.join(FIELDS)}. Text fields of the json: {others}. If one of them is the "
            "caption, curate with pool.caption=json:FIELD."
        )
    found.captions = best
    for text, reason, note in of(best):
        found.notes[note] += bool(note)
        if reason or text is None:
            found.problems[reason] += 1
        else:
            found.words.append(len(text.split()))
            found.characters.append(len(text))


def lines_of(found: Look) -> list[str]:
    """What was found, for people."""
    about = "" if found.is_whole else "about "
    read = "all read" if found.is_whole else f"{found.num_read:,} of them read, the rest by their sizes"
    total = sum(found.formats.values())
    formats = ", ".join(f"{kind} {number / total:.0%}" for kind, number in found.formats.most_common())
    lines = [
        f"{len(found.shards):,} tars, {found.total_bytes / 1e6:,.1f} MB, {about}{found.rows:,} samples ({read})",
        f"pictures: {formats}; {_quantiles(found.picture_bytes, 'bytes')}; shorter side "
        f"{_quantiles(found.short_sides, 'pixels')}",
        f"captions in {found.captions}: {_quantiles(found.words, 'words')}; "
        f"{_quantiles(found.characters, 'characters')}",
    ]
    if found.problems:
        counts = ", ".join(f"{number:,} {reason}" for reason, number in found.problems.most_common())
        lines.append(f"not usable, of {found.num_samples:,} read: {counts}")
    if notes := [f"{number:,} {what}" for what, number in found.notes.most_common() if number]:
        lines.append(f"of {found.num_samples:,} read: {', '.join(notes)}")
    if found.notes[TRANSPARENT_IMAGES]:
        lines.append(
            "pool.background sets what lies behind transparent pixels: drop (colours without alpha), white, …"
        )
    if found.repeated_keys:
        lines.append(f"{found.repeated_keys:,} samples have a key that came before")
    if found.broken:
        first = next(iter(found.broken.values()))
        lines.append(f"{len(found.broken):,} tars are broken; the first: {first}")
    return lines


def _quantiles(values: Sequence[int], unit: str) -> str:
    """Median and the middle 90 %."""
    if not values:
        return f"no {unit} known"
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"median {middle:,.0f} {unit} (5 to 95 %: {low:,.0f} to {high:,.0f})"
