"""The index of a pool: one row per sample, made in one sequential read of each shard.

Kept as Parquet, one part per shard. A row says where image and caption lie, so that any sample is one
`pread` away; whether the image's header is sound; and a hash of the image's bytes and of the caption,
so that the pool's identity is its content and never its paths. Pixels are not decoded here: what
fails to decode is found, and recorded, by the stage that decodes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dbp.config import require
from dbp.data.caption_text import HALF, NO_CAPTION, READ_AS, REASONS, SEVERAL, UNDECODABLE, Caption, read_caption
from dbp.data.images import (
    DEEP_IMAGES,
    DROP,
    IMAGE_FORMATS,
    TRANSPARENT_IMAGES,
    Header,
    Undecodable,
    header,
    is_background,
)
from dbp.data.pool import SCHEMA, Pool, ShardFolder, digest_16, hash_64, uid_from
from dbp.engine.parts import Parted
from dbp.engine.paths import expand_shards, is_remote, relative_names, sizes_and_times
from dbp.engine.progress import log
from dbp.engine.stage import Node, runtime
from dbp.engine.work import Part, Work
from dbp.errors import PoolError
from dbp.formats.tars import TarSample, image_format, samples
from dbp.pools.identity import RULES, joined, uid_by, warn_of_twins
from dbp.pools.packed import Unpack, is_compressed
from dbp.pools.whole import (
    check_expected,
    counts_beside,
    disagreements,
    found_again,
    gaps,
    has_wildcard,
    write_names,
)

DOTTED = "pictures not read: a dot in the key"
DAMAGED = "damaged shards"
# Counted, and the sample is used.
NOT_LOST = (
    "turned by EXIF",
    "several images under one key",
    DOTTED,
    DAMAGED,
    DEEP_IMAGES,
    TRANSPARENT_IMAGES,
    HALF,
    SEVERAL,
)
MOST_LINES = 20  # warnings of one kind


@dataclass(frozen=True)
class Index(Parted):
    """Read each shard once and write the pool's index.

    Args:
        shards: Paths, brace ranges, wildcards, URLs or pipes of webdataset tars.
        uid: What names a sample at the border: `key` (the tar's), `json:FIELD`, or where keys repeat `hash` (of
            the shard's file name and the key), `path` (of the shard's path below the folder that all shards
            have in common, and the key), `content` (of key, image and caption).
        caption: `txt`, or `json:FIELD`, of a nested field its path; of a list of texts the first that is a caption.
        max_pixels: Pictures with more pixels are invalid; a small file can expand to gigabytes.
        max_samples: Use only so many samples, from the front; null for all.
        broken_shards: `error`, or `keep_readable` to use a damaged shard's samples before the damage
            and count the shard.
        background: What lies behind transparent pixels wherever the pool's images are decoded: `drop` for the
            file's colours without their alpha, as open_clip does; a colour's name; or `#rrggbb`.
        expect: How many samples the pool must have; null for as many as are there.
    """

    name: ClassVar[str] = "index"
    # 2: other captions, deep images; 3: lists of captions, nested fields, jfif, bmp, tif, tiff, avif. Pools without
    # these keep their digests, and so later keys.
    version: ClassVar[int] = 3
    needs: ClassVar[tuple[str, ...]] = ("folder",)
    makes: ClassVar[type] = Pool
    content_named: ClassVar[bool] = True
    unit: ClassVar[str] = "shards"
    keeps_parts: ClassVar[bool] = True
    opens_with: ClassVar[tuple[str, ...]] = ("folder",)

    uid: str
    caption: str
    max_pixels: int
    broken_shards: Literal["error", "keep_readable"] = "error"
    max_samples: int | None = None
    background: str = DROP
    shards: str | list[str] = runtime("")
    expect: int | None = runtime(None)

    def __post_init__(self) -> None:
        for name in ("uid", "caption"):
            value: str = getattr(self, name)
            plain = tuple(RULES) if name == "uid" else ("txt",)
            ok = value in plain or (value.startswith("json:") and len(value) > 5)
            require(ok, name, value, f"one of {', '.join(plain)}, json:FIELD")
        require(self.max_pixels > 0, "max_pixels", self.max_pixels, "above 0")
        at_least = self.max_samples is None or self.max_samples > 0
        require(at_least, "max_samples", self.max_samples, "above 0, or null for all")
        require_background(self.background)

    def node(self) -> Node:
        """This index as the pool that a config names; compressed tars are unpacked first."""
        patterns = [self.shards] if isinstance(self.shards, str) else self.shards
        if not any(map(is_compressed, patterns)):
            return self.bind(folder=None)
        unpacked = Unpack(self.broken_shards, list(patterns)).bind()
        return replace(self, shards="").bind(folder=unpacked)

    @property
    def in_one_piece(self) -> bool:
        # What is left for a shard is known when those before it are read.
        return self.max_samples is not None

    def paths(self, folder: ShardFolder | None) -> list[str]:
        """The shards, in the order of their rows."""
        if folder:
            return folder.shards
        if not self.shards:
            raise PoolError("pool.shards names no shard. Name the tars: pool.shards='folder/{00000..00099}.tar'.")
        return expand_shards(self.shards)

    def source(self) -> dict[str, Any]:
        """Names, sizes and times of the shards: a changed shard is read again, a path counts where uids tell it."""
        if not self.shards:
            return {}
        shards = self.paths(None)
        described = sizes_and_times(shards)
        if self.uid == "path":
            both = zip(self._names(shards), described, strict=True)
            described = [[name, *more] if more else [said] for name, (said, *more) in both]
        return {"shards": hashlib.sha256(json.dumps(described).encode()).hexdigest()}

    def parts(self, folder: ShardFolder | None = None) -> list[Part]:
        """One for each shard; reading its bytes is what it costs."""
        sizes = (1.0 if is_remote(s) else float(Path(s).stat().st_size) for s in self.paths(folder))
        return [Part(part_name(n), n, size) for n, size in enumerate(sizes)]

    def make(  # type: ignore[override]
        self, part: Part, home: Path, /, folder: ShardFolder | None = None
    ) -> dict[str, Any]:
        shards = self.paths(folder)
        name = self._names(shards)[part.number]
        return self._index_shard(shards[part.number], part.number, name, home, self.max_samples)

    def _names(self, shards: list[str]) -> list[str]:
        """What a uid may tell of each shard's place."""
        return relative_names(shards) if self.uid == "path" else shards

    def accept(self, counts: Mapping[str, Any]) -> None:
        check_expected(counts["rows"], self.expect)

    def run(self, work: Work, folder: ShardFolder | None = None) -> dict[str, Any]:
        if self.max_samples is None:
            return super().run(work, folder=folder)
        # How many samples are left for a shard is known when those before it are read.
        counts: dict[str, dict[str, Any]] = {}
        left = self.max_samples
        shards = self.paths(folder)
        for number, (shard, name) in enumerate(zip(shards, self._names(shards), strict=True)):
            if left <= 0:
                break
            index = partial(self._index_shard, shard, number, name, limit=left)
            found = counts[part_name(number)] = work.part(part_name(number), index)
            left -= found["rows"]
        return self.finish(work, counts, folder=folder)

    def finish(
        self, work: Work, counts: Mapping[str, dict[str, Any]], folder: ShardFolder | None = None
    ) -> dict[str, Any]:
        shards = self.paths(folder)
        reasons: Counter[str] = Counter()
        for found in counts.values():
            reasons.update(found["reasons"])
        rows = sum(found["rows"] for found in counts.values())
        if rows == 0:
            said = "".join(f" {reason}: {count:,}." for reason, count in sorted(reasons.items()))
            raise PoolError(
                f"no sample in {len(shards)} shards, the first being {shards[0]}. A sample is an image "
                f"({', '.join(IMAGE_FORMATS)}) beside its caption under one key, which ends at the "
                f"name's first dot.{said}"
            )
        without = {reason: reasons[reason] for reason in REASONS if reasons[reason]}
        if rows == reasons["no image"] + sum(without.values()):
            ways = []
            if without:
                other = "another field of the json" if ":" in self.caption else "a field of the json"
                ways.append(f"set pool.caption=json:FIELD if the captions lie in {other}")
            if reasons["no image"]:
                ways.append(f"an image is a member named {', '.join(IMAGE_FORMATS)} under the caption's key")
            why = "".join(f", {reason}: {count:,}" for reason, count in without.items() if reason != NO_CAPTION)
            raise PoolError(
                f"none of the {rows:,} samples, the first in {shards[0]}, has both an image and a caption "
                f"(pool.caption={self.caption}; without image: {reasons['no image']:,}, without caption: "
                f"{reasons[NO_CAPTION]:,}{why}). An image and its caption must stand side by side in the tar, "
                f"under one key; {'; '.join(ways)}."
            )
        index = joined(work.shared, counts, self.background)
        write_names(work.folder, shards)
        twins = warn_of_twins(index, f"pool.uid={self.uid}", shards)
        files: Counter[str] = Counter()
        for found in counts.values():
            files.update(found.get("files", {}))
        usable = rows - sum(count for reason, count in reasons.items() if is_lost(reason))
        found = {**index.counts(rows, shards=len(shards)), "usable": usable, **dict(sorted(reasons.items()))}
        found |= {"samples that share their uid": twins} if twins else {}
        if files:  # not in parts that an older version made
            found |= {"files": files.total(), **{f"files {what}": count for what, count in sorted(files.items())}}
        return {**found, **self._missing(shards, counts)}

    def _missing(self, shards: list[str], counts: Mapping[str, dict[str, Any]]) -> dict[str, int]:
        """Report what the folders say is missing; the counts of it."""
        gone = gaps(shards) if has_wildcard(self.shards) else []
        unlike: list[str] = []
        if self.max_samples is None:
            for shard, found in zip(shards, counts.values(), strict=True):
                unlike += disagreements(shard, found["rows"], found.get("beside", {}))
        for line in [*gone, *unlike[:MOST_LINES]]:
            log.warning("%s", line)
        if len(unlike) > MOST_LINES:
            log.warning("… and %s more shards whose counts differ", f"{len(unlike) - MOST_LINES:,}")
        both = {"folders with missing shards": len(gone), "counts that differ beside shards": len(unlike)}
        return {name: count for name, count in both.items() if count}

    def open(self, home: Path, folder: ShardFolder | None = None) -> Pool:  # type: ignore[override]
        patterns = self.shards if folder is None else folder.pattern
        return Pool.load(home, found_again(home, patterns), self.caption, self.max_pixels, self.background)

    def _index_shard(self, shard: str, number: int, name: str, beside: Path, limit: int | None) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        reasons: Counter[str] = Counter()
        content = hashlib.sha256()
        unread: list[str] = []  # keys of undecodable captions

        files: Counter[str] = Counter()

        def count_other(extension: str) -> None:
            is_dotted = "." in extension and extension.rpartition(".")[2] in IMAGE_FORMATS
            if is_dotted:
                reasons[DOTTED] += 1
            files["not read: dotted pictures" if is_dotted else "not read: other kinds"] += 1

        def count_damage(message: str) -> None:
            log.warning("%s", message)
            reasons[DAMAGED] += 1

        keep = self.broken_shards == "keep_readable"
        for sample in samples(shard, count_damage if keep else None, count_other):
            row, found, caption = self._row(sample, shard, number, name)
            files["in samples"] += len(sample.members)
            if caption.note:
                reasons[caption.note] += 1
            if row["reason"] == UNDECODABLE:
                unread.append(sample.key)
            if found and found.has_alpha:
                reasons[TRANSPARENT_IMAGES] += 1
            if row["reason"]:
                reasons[row["reason"]] += 1
            if row["orientation"] != 1:
                reasons["turned by EXIF"] += 1
            if len(sample.members.keys() & set(IMAGE_FORMATS)) > 1:
                reasons["several images under one key"] += 1
            parts = [row["uid"].encode(), row["content_hash"], row["caption_hash"]]
            if row["reason"]:  # max_pixels decides which rows are valid, and so must tell pools apart
                parts.append(row["reason"].encode())
            if found and found.is_deep:  # version 1 decoded them to other pixels
                reasons[DEEP_IMAGES] += 1
                parts.append(b"deep")
            for part in parts:
                content.update(len(part).to_bytes(4, "little") + part)
            rows.append(row)
            if len(rows) == limit:
                break
        if unread:
            log.warning(
                "shard %s: %s captions are not UTF-8, and their encoding is not certain; the first belongs to "
                "sample %r. These samples are left out. Write their captions as UTF-8 to keep them.",
                shard, f"{len(unread):,}", unread[0],
            )  # fmt: skip
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(table, beside / "index.parquet", compression="zstd")
        found = {"rows": len(rows), "reasons": dict(reasons), "digest": content.hexdigest()}
        return {**found, "files": dict(files), "beside": counts_beside(shard)}

    def _row(
        self, sample: TarSample, shard: str, number: int, name: str
    ) -> tuple[dict[str, Any], Header | None, Caption]:
        extension = image_format(sample.members)
        image = sample.members.get(extension)
        caption = sample.members.get("json" if self.caption.startswith("json:") else "txt")
        said = read_caption(caption.content, self.caption) if caption else Caption(None, NO_CAPTION)
        text, found = said.text or "", None
        content_hash = digest_16(image.content if image else b"")
        caption_hash = digest_16(text.encode("utf-8", "replace"))
        if self.uid.startswith("json:"):
            uid = self._json_uid(sample, shard)
        else:
            uid = uid_by(self.uid, sample.key, name, content_hash, caption_hash)
        row: dict[str, Any] = {
            "uid": uid,
            "uid_hash": hash_64(uid.encode()),
            "key": sample.key,
            "shard": number,
            "image_offset": image.offset if image else 0,
            "image_bytes": len(image.content) if image else 0,
            "caption_offset": caption.offset if caption else 0,
            "caption_bytes": len(caption.content) if caption else 0,
            "format": extension,
            "width": 0,
            "height": 0,
            "orientation": 1,
            "reason": "",
            "content_hash": content_hash,
            "caption_hash": caption_hash,
            "caption_length": len(text),
        }
        if image is None:
            row["reason"] = "no image"
        else:
            try:
                found = header(image.content, self.max_pixels)
                row["format"], row["width"], row["height"], row["orientation"] = found[:4]
                row["format"] += " (deep)" * found.is_deep
            except Undecodable as problem:
                row["reason"] = str(problem)
        row["reason"] = row["reason"] or said.reason
        return row, found, said

    def _json_uid(self, sample: TarSample, shard: str) -> str:
        wanted = self.uid.removeprefix("json:")
        member = sample.members.get("json")
        uid = None if member is None else uid_from(member.content, self.uid)
        if not uid:
            raise PoolError(
                f"sample {sample.key!r} of shard {shard} has no field {wanted!r} with text or a number in its "
                f"json, which pool.uid={self.uid} needs. Set pool.uid={'|'.join(RULES)}, or name another field."
            )
        return uid


def is_lost(reason: str) -> bool:
    """Whether a count of an index is one of samples that cannot be used."""
    return reason not in NOT_LOST and not reason.startswith(READ_AS)


def require_background(background: str) -> None:
    """Refuse what is no background, before anything is read."""
    wanted = "drop, a colour's name such as white, or #rrggbb"
    require(is_background(background), "background", background, wanted)


def part_name(shard: int) -> str:
    """The name of a shard's part; seven digits, so that names sort as numbers."""
    return f"part-{shard:07d}"
