"""From rows of DataComp's metadata to rows of a pool's index, alone or joined with the tars by uid."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dbp.data.pool import Pool
from dbp.errors import PoolError, nearest
from dbp.formats.uid_pairs import Names, Texts, digests, hashes_64, hex_bytes, one_array, texts_of

BATCH = 1 << 16  # rows held at once
SIZES = {"original_width": "width", "original_height": "height"}
FROM_TARS = ("key", "shard", "image_offset", "image_bytes", "caption_offset", "caption_bytes")
FROM_TARS += ("caption_length", "format", "orientation", "reason", "content_hash", "caption_hash")
REASONS = ("", "uid not 32 hex digits", "no caption", "empty caption")
NOT_THERE = "not downloaded"
# Where a sample lies, and what other columns tell already: no part of its content.
PLACE = {*FROM_TARS[:6], "uid_hash", "text"}


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Name the file when it cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise PoolError(
            f"{file} cannot be read as Parquet: {error}. Fetch it again, or move it out of the folder."
        ) from error


def batches(file: Path, needed: set[str], limit: int | None) -> Iterator[pa.RecordBatch]:
    """The rows of a file, some at a time, without the columns that nothing reads."""
    with reading(file):
        parquet = pq.ParquetFile(file)
        there = parquet.schema_arrow.names
        for name in sorted(needed):
            if name not in there:
                raise PoolError(f"{file} has no column {name!r}, which this pool needs. {nearest(name, there)}")
        wanted = [name for name in there if name in {*needed, *SIZES, "sha256"}]
        left = limit
        for batch in parquet.iter_batches(BATCH, columns=wanted):
            yield batch if left is None else batch.slice(0, left)
            left = None if left is None else left - min(left, len(batch))
            if left == 0:
                return


def index_columns(batch: pa.RecordBatch, number: int) -> dict[str, Any]:
    """The index's columns for rows of the metadata, as if no picture were there."""
    rows = len(batch)
    given = dict(zip(batch.schema.names, batch.columns, strict=True))
    uid, text = texts_of(given["uid"]), texts_of(given["text"])
    _, is_hex = hex_bytes(uid)
    uid = pc.fill_null(uid, "")
    said = pc.fill_null(text, "")
    is_empty = pc.call_function("equal", [pc.call_function("utf8_trim_whitespace", [said]), ""])
    code = np.where(is_empty.to_numpy(zero_copy_only=False), 3, 0)
    code = np.where(text.is_null().to_numpy(zero_copy_only=False), 2, code)
    code = np.where(is_hex, code, 1)
    reason = pa.DictionaryArray.from_arrays(pa.array(code, pa.int32()), pa.array(REASONS))
    content = np.frombuffer(digests(uid, 16), np.uint8).reshape(-1, 16)
    if "sha256" in given:
        digest = pc.call_function("utf8_slice_codeunits", [texts_of(given["sha256"])], pc.SliceOptions(0, 32))
        found, is_digest = hex_bytes(digest)
        content = np.where(is_digest[:, None], found, content)
    nothing = pa.array(np.zeros(rows, np.int64))
    columns = {
        **{name: given[name] for name in given if name not in ("uid", "text", *SIZES, "sha256")},
        "uid": uid,
        "uid_hash": pa.array(hashes_64(uid)),
        "key": uid,
        "shard": pa.array(np.full(rows, number, np.int32)),
        **dict.fromkeys(FROM_TARS[2:6], nothing),
        "caption_length": pc.call_function("utf8_length", [said]),
        "format": pa.array([""]).take(nothing),
        "orientation": pa.array(np.ones(rows, np.int8)),
        "reason": reason.cast(pa.string()),
        "content_hash": _binary_16(content.tobytes()),
        "caption_hash": _binary_16(digests(said, 16)),
        "text": said,
    }
    for name, ours in SIZES.items():
        size = np.asarray(given.get(name, nothing).to_numpy(zero_copy_only=False), np.float64)
        columns[ours] = pa.array(np.nan_to_num(size).clip(0, 2**31 - 1).astype(np.int32))
    return columns


JOINING: dict[str, Names] = {}  # of the tars that this process joins with


def join(columns: dict[str, Any], tars: Pool) -> dict[str, int]:
    """Give rows that were downloaded their place in the tars, and the others their reason."""
    if tars.digest not in JOINING:
        JOINING[tars.digest] = Names(tars.uid_hashes, lambda rows: tars.index.at("uid", rows))
    row = JOINING[tars.digest].find(columns["uid_hash"].to_numpy(), columns["uid"])
    is_there = row >= 0
    place = pa.array(np.cumsum(is_there) - 1, mask=~is_there)
    own = columns["caption_hash"]
    is_named = pc.call_function("not_equal", [columns["reason"], REASONS[1]])
    absent = columns | {
        "shard": pa.array(np.zeros(len(row), np.int32)),
        "reason": pc.call_function("if_else", [is_named, NOT_THERE, REASONS[1]]),
    }
    for name in FROM_TARS:
        found = tars.index.at(name, row[is_there])
        found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
        found = found.cast(absent[name].type).take(place)
        columns[name] = pc.call_function("if_else", [pa.array(is_there), found, absent[name]])
    columns["reason"] = pc.call_function("if_else", [is_named, columns["reason"], REASONS[1]])
    differs = pc.call_function("not_equal", [columns["caption_hash"], own])
    return {"caption differs": int(differs.to_numpy(zero_copy_only=False).sum())}


def _binary_16(content: bytes) -> Any:
    return pa.Array.from_buffers(pa.binary(16), len(content) // 16, [None, pa.py_buffer(content)])


def feed(content: dict[str, Any], name: str, column: Texts) -> None:
    """Add a column's values to its hash; equal values give one hash, in blocks of any size."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        lengths = pc.fill_null(pc.call_function("binary_length", [column]), -1)
        content[f"{name} lengths"].update(lengths.to_numpy().astype("<i8").tobytes())
        content[name].update(b"".join(one_array(column).cast(pa.large_binary()).drop_null().to_pylist()))
    elif pa.types.is_fixed_size_binary(kind):
        content[name].update(b"".join(column.to_pylist()))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        content[f"{name} there"].update(column.is_valid().to_numpy().tobytes())
        content[name].update(pc.fill_null(column, 0).to_numpy().tobytes())
    else:
        for value in column.to_pylist():
            content[name].update(json.dumps(value, default=str).encode() + b"\n")
