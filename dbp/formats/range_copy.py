"""Samples of a tar as byte ranges: found by reading headers alone, copied without being opened.

A sample is copied whole, with every member that has its key, headers and padding as they lie in the tar. The kernel
moves the bytes; rates beside Python's tarfile are printed by `tests/benchmarks/bench_shards.py`.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from dbp.data.pool import caption_from, digest_16, hash_64, open_known
from dbp.engine.disk import write_json
from dbp.engine.paths import is_remote
from dbp.errors import PoolError, WorldError
from dbp.formats.tar_headers import BLOCK, Damaged, Span, spans, split, text
from dbp.formats.tars import SAMPLE_FORMATS

END_OF_TAR = bytes(1024)
LONGEST_KEY = 80  # bytes of a uid that can name a sample, so that a number and an extension fit beside it
# What copy_file_range says where a file system, or a pair of them, cannot do it.
CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
# Of each sample: where image and caption lie in its shard, and the first 64 bits of what their hashes must be.
CONTENT = np.dtype([(f"{kind}_{of}", "<u8") for kind in ("image", "caption") for of in ("offset", "bytes", "hash")])
FORMATS = frozenset(extension.encode() for extension in SAMPLE_FORMATS)


@dataclass(frozen=True)
class Extents:
    """Where samples lie in one tar, in the order in which they were asked for.

    Most samples are one byte range. One whose members do not stand side by side is several: its
    ranges follow each other in `starts` and `lengths`, `num_ranges` of them.
    """

    starts: Int[np.ndarray, " r"]
    lengths: Int[np.ndarray, " r"]
    num_ranges: Int[np.ndarray, " m"]
    key_hashes: UInt64[np.ndarray, " m"]


@dataclass(frozen=True)
class TarPlan:
    """One tar to write: samples as ranges of source shards, one after another."""

    target: Path
    shards: list[str]
    shard: Int[np.ndarray, " r"]  # of each range, a place in `shards`
    starts: Int[np.ndarray, " r"]
    lengths: Int[np.ndarray, " r"]
    first_range: Int[np.ndarray, " s"]  # of each sample
    key_hashes: UInt64[np.ndarray, " s"]  # of the names that samples have in the target
    names: dict[int, str] = field(default_factory=dict)  # of samples that get another key: their place, and it
    content: np.ndarray | None = None  # of each sample, `CONTENT`; none: bytes are copied unseen
    caption_field: str = "txt"

    @property
    def num_bytes(self) -> int:
        return int(self.lengths.sum()) + len(END_OF_TAR)


def locate(shard: str, offsets: Int[np.ndarray, " m"], sizes: Int[np.ndarray, " m"], keys: list[str]) -> Extents:
    """Find samples in a shard by a member that the index knows.

    Samples are those of `dbp.formats.tars.samples`. Members of other formats with a sample's key belong to
    it, too: to the sample before them, or, if that has such an extension, to the one that follows.

    Args:
        shard: A path.
        offsets: Where the data of one member of each sample begins.
        sizes: That member's bytes.
        keys: Each sample's key, as indexed.

    Raises:
        PoolError: The shard is missing, shorter than when it was indexed, or another file.
    """
    wanted = {offset: place for place, offset in enumerate(offsets.tolist())}
    found: dict[int, list[int]] = {}  # place -> start, end, start, end, … of its ranges
    damage = ""
    current, place = b"", -1
    ranges: list[int] = []
    seen: set[bytes] = set()
    early: dict[bytes, list[tuple[bytes, Span]]] = {}  # by key: of a sample that may follow
    handle = open_to_read(shard)
    try:
        for span in spans(handle):
            key, extension = split(span[0])
            if not extension:
                continue  # without a key or an extension, as in webdataset
            if extension in FORMATS:
                if key != current or extension in seen:
                    current, place, ranges, seen = key, -1, [], set()
                    for other, before in early.get(key, ()):
                        seen.add(other)
                        _add(ranges, before)
                    early = {}
                if (at := wanted.get(span[2])) is not None:
                    if span[3] != sizes[at] or text(key) != keys[at]:
                        raise Damaged(f"where the index knows {keys[at]!r} lies {text(span[0])!r}")
                    place = at
                    found[at] = ranges
            elif key != current or extension in seen or key in early:
                early.setdefault(key, []).append((extension, span))
                continue
            seen.add(extension)
            _add(ranges, span)
    except (Damaged, OSError) as error:
        damage = f": {error}"
        found.pop(place, None)  # its later members may lie behind the damage
    finally:
        os.close(handle)
    if len(found) < len(keys):
        lost = [key for at, key in enumerate(keys) if at not in found]
        raise PoolError(
            f"shard {shard} lacks {len(lost):,} of {len(keys):,} kept samples, the first being "
            f"{lost[0]!r}, although the index knows them{damage}. Nothing was written from it. "
            "Restore the shard, or curate again to index it anew."
        )
    flat = [found[at] for at in range(len(keys))]
    edges = np.array([edge for ranges in flat for edge in ranges], np.int64)
    return Extents(
        edges[::2],
        edges[1::2] - edges[::2],
        np.array([len(ranges) // 2 for ranges in flat], np.int64),
        np.array([hash_64(key.encode()) for key in keys], np.uint64),
    )


def write_tar(plan: TarPlan, verify: bool = True, sync: bool = True) -> bool:
    """Write a tar beside its place, check it, and rename it; false where one stands there whole already.

    Args:
        verify: Hash images and captions on their way and compare with the index; read the headers again and
            compare with the plan. False trusts sizes alone, and the kernel copies.
        sync: Wait for the disk before renaming.

    Raises:
        PoolError: A source shard is missing, has become shorter, or holds other bytes than when it was indexed.
        WorldError: The disk is full, or the written tar is not as planned.
    """
    target = plan.target
    size = target.stat().st_size if target.is_file() else -1
    if size == plan.num_bytes and not (verify and fault_of(target, plan)):
        return False
    beside = target.with_name(f".{target.name}.tmp")
    try:
        with open(beside, "wb+") as handle:
            handle.truncate(plan.num_bytes)  # what is not copied over stays zero: the end mark
            places = np.cumsum(plan.lengths) - plan.lengths
            order = np.lexsort((plan.starts, plan.shard))  # each source is read once, forward
            edges = np.searchsorted(plan.shard[order], np.arange(len(plan.shards) + 1))
            for shard, path in enumerate(plan.shards):
                at = order[edges[shard] : edges[shard + 1]]
                if verify and plan.content is not None:
                    copy_checked(path, handle.fileno(), plan, at, places[at])
                else:
                    copy_ranges(path, handle.fileno(), plan.starts[at], plan.lengths[at], places[at])
            if plan.names:
                rename(handle.fileno(), plan)
            if sync:
                os.fsync(handle.fileno())
        if verify and (fault := fault_of(beside, plan)):
            raise WorldError(
                f"{target} was not written as planned ({fault}). Check the disk, and that nobody writes "
                "to the source shards; run again."
            )
        stats = beside.with_name(f".{target.stem}_stats.tmp")
        write_json(stats, {"successes": len(plan.key_hashes)})
        stats.rename(target.with_name(f"{target.stem}_stats.json"))
        beside.rename(target)
    except OSError as error:
        raise WorldError(
            f"{target} cannot be written: {error.strerror}. Mend that and run again; finished shards are kept."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return True


def can_name(uid: str) -> bool:
    """Whether a uid can stand as a sample's key in a tar: without dots and slashes, and short."""
    return uid.isprintable() and 0 < len(uid.encode()) <= LONGEST_KEY and not {".", "/", "\\"} & set(uid)


def rename(tar: int, plan: TarPlan) -> None:
    """Give samples of a written tar other keys, where its plan says so; no byte of their content changes.

    The header's name is replaced. A longer name from before, in a header of its own, is taken back: a GNU name by
    the new one, a pax `path` by a keyword that readers ignore.
    """
    places = (np.cumsum(plan.lengths) - plan.lengths)[plan.first_range]
    for name, start, data, *_ in list(spans(tar)):
        sample = int(np.searchsorted(places, start, side="right")) - 1
        if (key := plan.names.get(sample)) is None:
            continue
        new = key.encode() + name[len(split(name)[0]) :]
        if len(new) > 100:
            raise WorldError(
                f"{plan.target}: a copy of {text(name)!r} cannot be named {text(new)!r}: above 100 bytes."
            )
        header = bytearray(os.pread(tar, data - start, start))
        at = 0
        while at < len(header) - BLOCK:  # what stands before the member's own header
            kind, size = header[at + 156], int(header[at + 124 : at + 136].rstrip(b" \0"), 8)
            said = slice(at + BLOCK, at + BLOCK + size)
            if kind == ord("L"):
                header[said] = new.ljust(size, b"\0")
            elif kind == ord("x"):
                header[said] = bytes(header[said]).replace(b" path=", b" PATH=")
            at += BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK
        own = slice(len(header) - BLOCK, len(header))
        block = bytearray(header[own])
        block[:100], block[345:500] = new.ljust(100, b"\0"), bytes(155)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        header[own] = block
        os.pwrite(tar, header, start)


def fault_of(tar: Path, plan: TarPlan) -> str:
    """In what a tar departs from its plan, by its headers: each sample once, in its place; "" for none.

    A sample is a run of members with one key, as webdataset reads it.
    """
    places = (np.cumsum(plan.lengths) - plan.lengths)[plan.first_range]
    starts, keys = [], []
    handle = os.open(tar, os.O_RDONLY)
    try:
        for name, start, *_ in spans(handle):
            key = split(name)[0]
            if not keys or key != keys[-1]:
                starts.append(start)
                keys.append(key)
    except Damaged as error:
        return str(error)
    finally:
        os.close(handle)
    if len(keys) != len(places):
        return f"{len(keys):,} samples instead of {len(places):,}"
    hashes = np.array([hash_64(text(key).encode()) for key in keys], np.uint64)
    if len(wrong := np.flatnonzero((hashes != plan.key_hashes) | (starts != places))):
        return f"sample {int(wrong[0]):,} is {text(keys[wrong[0]])!r} at byte {starts[wrong[0]]:,}"
    return ""


def open_to_read(shard: str) -> int:
    """Open a shard that the index knows.

    Raises:
        PoolError: It is missing, may not be read, or is no file.
    """
    if is_remote(shard):
        raise PoolError(
            f"shard {shard} is streamed, and byte ranges cannot be copied from a stream. Copy the shards to a "
            "file system and give their paths in pool.shards, or filter while loading (docs/loaders.md)."
        )
    return open_known(shard)


def copy_ranges(
    shard: str,
    target: int,
    starts: Int[np.ndarray, " r"],
    lengths: Int[np.ndarray, " r"],
    places: Int[np.ndarray, " r"],
) -> None:
    """Copy byte ranges of a shard to their places in an open file.

    The kernel copies where it can (and shares blocks where the file system can), else a buffer does.

    Raises:
        PoolError: The shard is missing, or ends before a range does.
    """
    ends = np.stack([starts + lengths, places + lengths])[:, :-1]
    begins = np.flatnonzero(np.r_[True, (ends != [starts[1:], places[1:]]).any(axis=0)])
    lengths = np.add.reduceat(lengths, begins)  # neighbours that stay neighbours are one range
    starts, places = starts[begins], places[begins]
    source = open_to_read(shard)
    try:
        for start, length, place in zip(starts.tolist(), lengths.tolist(), places.tolist(), strict=True):
            while length:
                count = _copy(source, target, length, start, place)
                if count == 0:
                    raise _too_short(shard, start)
                start, place, length = start + count, place + count, length - count
    finally:
        os.close(source)


def copy_checked(
    shard: str, target: int, plan: TarPlan, at: Int[np.ndarray, " r"], places: Int[np.ndarray, " r"]
) -> None:
    """Copy some ranges of a plan from their shard, and compare images and captions with the index on their way.

    Args:
        at: Ranges of the plan, by where they lie in the shard.
        places: Where each goes.

    Raises:
        PoolError: The shard is missing, ends before a range does, or holds other images or captions.
    """
    assert plan.content is not None, "the plan has what to compare with"
    sample = np.searchsorted(plan.first_range, at, side="right") - 1
    other: dict[int, int] = {}  # sample -> where its first other bytes lie
    source = open_to_read(shard)
    try:
        for number, start, length, place in zip(
            sample.tolist(), plan.starts[at].tolist(), plan.lengths[at].tolist(), places.tolist(), strict=True
        ):
            content = read_at(source, start, length)
            if len(content) < length:
                raise _too_short(shard, start + len(content))
            os.pwrite(target, content, place)
            for begin in _others(content, start, plan.content[number], plan.caption_field):
                other.setdefault(number, begin)
    finally:
        os.close(source)
    if other:
        raise PoolError(
            f"shard {shard} holds other bytes than when it was indexed: of {len(np.unique(sample)):,} samples for "
            f"{plan.target.name}, {len(other):,} have another image or caption, the first at byte "
            f"{min(other.values()):,}. {plan.target.name} was not written. Restore the shard, or curate again to "
            "index it anew; if the file's time was set back, too, touch it first."
        )


def _others(content: bytes, start: int, known: Any, caption_field: str) -> Iterator[int]:
    """Where, within a range of a sample, an image or a caption is not the one of the index."""
    for kind in ("image", "caption"):
        begin, size = int(known[f"{kind}_offset"]), int(known[f"{kind}_bytes"])
        if not begin or not start <= begin <= begin + size <= start + len(content):
            continue
        found = content[begin - start :][:size]
        if kind == "caption":
            found = (caption_from(found, caption_field) or "").encode("utf-8", "replace")
        if int.from_bytes(digest_16(found)[:8], "little") != int(known[f"{kind}_hash"]):
            yield begin


def read_at(source: int, start: int, length: int) -> bytes:
    """Bytes of an open file, fewer only where it ends: one call reads 2 GiB at most."""
    found = b""
    while block := os.pread(source, length - len(found), start + len(found)):
        found = found + block if found else block
    return found


def _too_short(shard: str, start: int) -> PoolError:
    return PoolError(
        f"shard {shard} ends at byte {start:,}, within a kept sample: it became shorter while it was copied. "
        "Restore it and run again; finished shards are kept."
    )


def _copy(source: int, target: int, length: int, start: int, place: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            if count := os.copy_file_range(source, target, length, start, place):
                return count
        except OSError as error:
            if error.errno not in CANNOT_COPY:
                raise
    # Also where the kernel copied nothing: some network file systems say so before the end of a file.
    content = os.pread(source, min(length, 1 << 20), start)
    return os.pwrite(target, content, place) if content else 0


def _add(ranges: list[int], span: Span) -> None:
    if ranges and ranges[-1] == span[1]:
        ranges[-1] = span[4]
    else:
        ranges += (span[1], span[4])
