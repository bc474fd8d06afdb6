"""A folder of tars, scanned before anything is set: counts, sizes, captions, formats, what is broken.

All shards are read where that takes seconds; otherwise some, spread over the folder, and what is said of
the rest is an estimate from their sizes. Images are not decoded, only their headers read. Shards are listed and
samples read by the functions that curate's index uses, so that both find the same ones.
"""

import glob
import os
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dbp.data.caption_text import NO_CAPTION, Caption, read_caption, read_json
from dbp.data.images import DEEP_IMAGES, IMAGE_FORMATS, TRANSPARENT_IMAGES, Undecodable, header
from dbp.data.pool import digest_16, hash_64, uid_from
from dbp.engine.paths import expand_shards, relative_names
from dbp.engine.progress import progress
from dbp.errors import PoolError
from dbp.formats.tar_headers import Damaged, spans
from dbp.formats.tars import image_format, samples
from dbp.pools.groups import Group, groups_of
from dbp.pools.identity import RULES, best_rule, num_shared, uid_by, way_out
from dbp.pools.index import DOTTED
from dbp.pools.packed import OPENERS
from dbp.pools.whole import counts_beside, disagreements, gaps

PATIENCE = 15.0  # seconds that reading may take
# Of a json, in this order, else the longest.
FIELDS = ("caption", "text", "alt", "title", "description", "captions")
MAX_PIXELS = 178_956_970
NONE = Caption(None, NO_CAPTION)
RECORD = 512  # bytes that a tar's size is a multiple of
DEEPEST = 3  # folders below the one that is named
PACKED = (*OPENERS, ".tar.zst")


@dataclass
class Look:
    """What was found in a folder."""

    shards: list[Path]  # all tars, in the order of curate's index
    total_bytes: int  # without those that are not tars
    patterns: list[str] = field(default_factory=list)  # that name the shards, as pool.shards takes them
    packed: list[str] = field(default_factory=list)  # compressed tars, which are not among the shards
    warnings: list[str] = field(default_factory=list)  # shards that are missing, counts beside shards that differ
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
    groups: list[Group] = field(default_factory=list)  # fields of the json that sort samples into a few groups
    dotted: int = 0  # image files that are not read, since their key would hold a dot
    shared: dict[str, int] = field(default_factory=dict)  # by rule of `pool.uid`: samples whose uid another one has
    has_uids: bool = False  # whether each json has a `uid` of its own
    fields: Counter[str] = field(default_factory=Counter, repr=False)  # text fields of the json
    texts: list[tuple[Caption, bytes | None]] = field(default_factory=list, repr=False)  # `txt` and json
    unsound: list[str] = field(default_factory=list, repr=False)  # why a sample's image cannot be used
    places: list[tuple[str, str, bytes]] = field(default_factory=list, repr=False)  # key, shard, image's digest

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
    def uid(self) -> str:
        """The rule that parts all samples, the plainest; where not all was read, names of shards count, too."""
        if self.has_uids:
            return "json:uid"
        names = [shard.name for shard in self.shards]
        is_open = not self.is_whole and len(set(names)) < len(names)  # keys of the unread ones may repeat
        left = {rule: count for rule, count in self.shared.items() if not (is_open and rule in ("key", "hash"))}
        return best_rule(left)

    @property
    def usable(self) -> int:
        """Rows with a caption and a sound image header, estimated likewise."""
        bad = sum(self.problems.values()) / max(self.num_samples, 1)
        return round(self.rows * (1 - bad))


def patterns_of(folder: Path, *endings: str) -> list[str]:
    """The wildcards, folder by folder downwards, that name the files with some endings in it and below."""
    steps = [f"{folder}/" + "*/" * depth + f"*{ending}" for depth in range(DEEPEST + 1) for ending in endings]
    root = glob.escape(f"{folder}/")
    return [step for step in steps if next(glob.iglob(root + step[len(f"{folder}/") :]), None)]


def find_tars(folder: Path) -> tuple[list[str], list[str]]:
    """The wildcards that name the tars in a folder and below, and the tars, as curate's index lists them.

    Raises:
        PoolError: There is no such folder, it cannot be read, or no tar is in it.
    """
    if not folder.exists():
        raise PoolError(f"{folder} does not exist. Name the folder that holds the tars.")
    if not folder.is_dir():
        raise PoolError(f"{folder} is a file. Name the folder that holds it: {folder.parent}.")
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        raise PoolError(f"{folder} cannot be read: {error.strerror or error}.") from error
    if patterns := patterns_of(folder, ".tar"):
        return patterns, expand_shards(patterns)
    kinds = Counter(path.suffix or ("folder" if path.is_dir() else "no extension") for path in inside)
    there = ", ".join(f"{number} x {kind}" for kind, number in kinds.most_common(5)) or "nothing"
    if packed := patterns_of(folder, *OPENERS):
        way = f"dbp curate reads compressed tars and unpacks them first: pool.shards='{packed[0]}'."
    elif kinds[".parquet"]:
        way = (
            "dbp curate reads Parquet with images by pool=parquet pool.files='FOLDER/*.parquet', and DataComp's "
            "metadata by pool=datacomp pool.metadata=FOLDER."
        )
    elif patterns_of(folder, *(f".{kind}" for kind in IMAGE_FORMATS)):
        way = f"dbp curate reads image files by pool=folder pool.folder={folder}."
    else:
        way = (
            "Make webdataset tars of images and captions first, as img2dataset does with output_format=webdataset."
        )
    raise PoolError(f"no tar lies in {folder} or up to {DEEPEST} folders below it, but {there}. {way}")


def look(folder: Path, patience: float = PATIENCE) -> Look:
    """Scan a folder of tars; no further shard is begun after `patience` seconds.

    Raises:
        PoolError: No tar is there, none can be read, or no sample has an image or a caption.
    """
    patterns, paths = find_tars(folder)
    shards = [Path(path) for path in paths]
    found = Look(shards, sum(shard.stat().st_size for shard in shards), patterns)
    found.packed = expand_shards(packed) if (packed := patterns_of(folder, *PACKED)) else []
    found.warnings = gaps(paths)
    names = dict(zip(shards, relative_names(paths), strict=True))
    began = time.monotonic()
    unread = dict.fromkeys(shards)
    with progress("look", len(shards), "shards") as bar:
        for shard in _spread(shards):
            if found.num_read and time.monotonic() - began > patience:
                break
            _read(found, shard, names[shard])
            del unread[shard]
            bar.advance()
    for shard in unread:
        damage, num_bytes = _seems_broken(shard)
        found.total_bytes -= shard.stat().st_size - num_bytes
        if damage:
            found.broken[shard] = damage
    found.broken = {shard: found.broken[shard] for shard in shards if shard in found.broken}
    if not found.num_samples:
        dotted = f" pictures with a dot in the key: {found.dotted:,}, name them without." if found.dotted else ""
        said = "\n".join(found.broken.values()) or "no member has a known extension."
        raise PoolError(f"no sample can be read from the {len(shards):,} tars in {folder}:{dotted} {said}")
    if not found.picture_bytes:
        kinds = ", ".join(sorted(found.formats)) or "none of a known kind"
        raise PoolError(
            f"the {found.num_samples:,} samples read from {folder} have no image (members: {kinds}). "
            "Images are jpg, jpeg, png, webp or gif."
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


def _seems_broken(shard: Path) -> tuple[str, int]:
    """What is wrong with a shard by its size and its first header, and the bytes that may hold samples."""
    size = shard.stat().st_size
    if size == 0:
        return f"shard {shard} is empty", 0
    try:
        handle = os.open(shard, os.O_RDONLY)
        try:
            next(spans(handle), None)
        finally:
            os.close(handle)
    except (Damaged, OSError) as error:
        return f"shard {shard} cannot be read at its first member: {error}", 0
    return f"shard {shard} has {size:,} bytes, no multiple of {RECORD}" if size % RECORD else "", size


def _read(found: Look, shard: Path, name: str) -> None:
    """Add a shard to what was found; `name` is its path below the folder that all have in common."""
    damage: list[str] = []

    def count_dotted(extension: str) -> None:
        found.dotted += "." in extension and extension.rpartition(".")[2] in IMAGE_FORMATS

    before = found.num_samples
    for sample in samples(str(shard), damage.append, count_dotted):
        found.num_samples += 1
        kind = image_format(sample.members)
        content = sample.members[kind].content if kind else b""
        found.unsound.append(_image(found, kind, content) if kind else "no image")
        found.places.append((sample.key, name, digest_16(content)))
        text, described = (sample.members.get(kind) for kind in ("txt", "json"))
        found.fields.update(_text_fields(described.content) if described else ())
        caption = read_caption(text.content, "txt") if text else NONE
        found.texts.append((caption, described.content if described else None))
    found.num_read += 1
    found.warnings += disagreements(str(shard), found.num_samples - before, counts_beside(str(shard)))
    if damage:
        found.broken[shard] = damage[0]
    if damage and found.num_samples == before:
        found.total_bytes -= shard.stat().st_size  # its bytes hold no samples
    else:
        found.read_bytes += shard.stat().st_size


def _image(found: Look, kind: str, content: bytes) -> str:
    """Measure an image; why it cannot be used, "" where it can."""
    found.picture_bytes.append(len(content))
    reason = ""
    try:
        said = header(content, MAX_PIXELS)
        kind = said.format
        found.short_sides.append(min(said.width, said.height))
        found.notes[TRANSPARENT_IMAGES] += said.has_alpha
        found.notes[DEEP_IMAGES] += said.is_deep
    except Undecodable as error:
        reason = str(error)
    found.formats[kind] += 1
    return reason


def _text_fields(content: bytes) -> list[str]:
    """The names of a json's fields that hold a text, or a list that begins with one."""
    value, _ = read_json(content)
    firsts = (
        {k: v[0] if isinstance(v, list) and v else v for k, v in value.items()} if isinstance(value, dict) else {}
    )
    return [k for k, v in firsts.items() if isinstance(v, str)]


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
    said = ((text or "", content) for (text, *_), (_, content) in zip(of(best), found.texts, strict=True))
    fields = ((text, read_json(content)[0] if content else None) for text, content in said)
    found.groups = groups_of((text, value if isinstance(value, dict) else {}) for text, value in fields)
    hashes: dict[str, list[int]] = defaultdict(list)
    for (text, reason, note), unsound, (key, name, content) in zip(
        of(best), found.unsound, found.places, strict=True
    ):
        found.notes[note] += bool(note)
        if unsound or reason:
            found.problems[unsound or reason] += 1
        if text is not None and not reason:
            found.words.append(len(text.split()))
            found.characters.append(len(text))
        caption = digest_16(b"" if text is None else text.encode("utf-8", "replace"))
        for rule in RULES:
            hashes[rule].append(hash_64(uid_by(rule, key, name, content, caption).encode()))
    found.shared = {rule: num_shared(own) for rule, own in hashes.items()}


def lines_of(found: Look) -> list[str]:
    """What was found, for people."""
    about = "" if found.is_whole else "about "
    read = "all read" if found.is_whole else f"{found.num_read:,} of them read, the rest by their sizes"
    total = sum(found.formats.values())
    formats = ", ".join(f"{kind} {number / total:.0%}" for kind, number in found.formats.most_common())
    lines = [
        f"{len(found.shards):,} tars, {found.total_bytes / 1e6:,.1f} MB, {about}{found.rows:,} samples ({read})",
        f"images: {formats}; {_quantiles(found.picture_bytes, 'bytes')}; shorter side "
        f"{_quantiles(found.short_sides, 'pixels')}",
        f"captions in {found.captions}: {_quantiles(found.words, 'words')}; "
        f"{_quantiles(found.characters, 'characters')}",
    ]
    if found.groups:
        told = (f"{g.name} ({len(g.sizes)} values, in {g.mentioned:.0%} of the captions)" for g in found.groups)
        lines.append(f"groups in the json: {', '.join(told)}")
    if found.problems:
        counts = ", ".join(f"{number:,} {reason}" for reason, number in found.problems.most_common())
        lines.append(f"not usable, of {found.num_samples:,} read: {counts}")
    if notes := [f"{number:,} {what}" for what, number in found.notes.most_common() if number]:
        lines.append(f"of {found.num_samples:,} read: {', '.join(notes)}")
    if found.notes[TRANSPARENT_IMAGES]:
        lines.append(
            "pool.background sets what lies behind transparent pixels: drop (colours without alpha), white, …"
        )
    if found.dotted:
        lines.append(f"{DOTTED}: {found.dotted:,} (a key ends at the first dot)")
    if found.shared["key"] and not found.has_uids:
        lines.append(f"{found.shared['key']:,} samples share their key with another one: {way_out(found.shared)}")
    if found.packed:
        lines.append(f"{len(found.packed):,} compressed tars are a pool of their own; the first: {found.packed[0]}")
    lines += found.warnings
    if found.broken:
        lines += [f"{len(found.broken):,} tars are broken:", *(f"  {said}" for said in found.broken.values())]
    return lines


def _quantiles(values: Sequence[int], unit: str) -> str:
    """Median and the middle 90 %."""
    if not values:
        return f"no {unit} known"
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"median {middle:,.0f} {unit} (5 to 95 %: {low:,.0f} to {high:,.0f})"
