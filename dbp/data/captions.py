"""Other captions: a text for rows of a pool, or several, beside the originals in their shards.

    ends.npy       8 bytes a text: where it ends in the next file
    texts.bin      all texts in row order, UTF-8
    rows.npy       8 bytes a row: where its texts end in ends.npy; only where a row may have several
    captions.json  the pool, and how many rows have a text

Mapped files and not Parquet, since training asks for rows in random order: a text is one slice, the workers of
a loader share the pages, and nothing is decompressed again and again. Parquet is what they are imported from.
"""

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int, Int64, UInt8

from dbp.data.caption_text import texts_of_value
from dbp.data.pool import Pool
from dbp.errors import ConfigError, StoreError, WorldError, nearest
from dbp.formats.uid_pairs import Texts, hashes_64, texts_of

compute: Any = pc  # its functions are made at import, so no type checker sees them
BLOCK = 1 << 16  # rows of the Parquet file at a time
UNUSABLE = "entries that are not captions"


@dataclass(frozen=True)
class Captions:
    """Other captions of the rows of one pool: of each row one, several or none. The originals stay in the pool."""

    folder: Path  # where the files lie; a pickle holds nothing else
    pool_digest: str  # of the pool whose rows these are
    ends: Int64[np.ndarray, " t"]  # of each text among all bytes
    texts: UInt8[np.ndarray, " b"]  # all bytes
    rows: Int64[np.ndarray, " n"] | None = None  # where the texts of each row end; none where each has one, or ""

    @property
    def num_rows(self) -> int:
        return len(self.ends if self.rows is None else self.rows)

    @cached_property
    def refined(self) -> Int64[np.ndarray, " m"]:
        """The rows that have a text."""
        edges = self.ends if self.rows is None else self.rows
        return np.flatnonzero(np.diff(edges, prepend=0))

    @property
    def num_refined(self) -> int:
        """Rows that have a text."""
        return len(self.refined)

    @cached_property
    def num_several(self) -> int:
        """Rows that have several texts."""
        return 0 if self.rows is None else int(np.count_nonzero(np.diff(self.rows, prepend=0) > 1))

    def places(self, rows: Int[np.ndarray, " m"]) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """The number of each row's first text among all, and how many it has. An empty text is none."""
        edges = self.ends if self.rows is None else self.rows
        ends = edges[rows]
        starts = np.where(rows > 0, edges[np.maximum(rows - 1, 0)], 0)
        if self.rows is None:
            return np.asarray(rows, np.int64), (ends > starts).astype(np.int64)
        return starts, ends - starts

    def at(self, numbers: Int[np.ndarray, " m"]) -> list[str]:
        """Texts by their numbers."""
        ends = self.ends[numbers].tolist()
        starts = np.where(numbers > 0, self.ends[np.maximum(numbers - 1, 0)], 0).tolist()
        return [self.texts[start:end].tobytes().decode() for start, end in zip(starts, ends, strict=True)]

    def of(self, rows: Int[np.ndarray, " m"], which: Int[np.ndarray, " m"] | None = None) -> list[str | None]:
        """A text of each row, in the order of the rows; None where there is none.

        Args:
            which: Of a row's texts, from 0; by default the first.
        """
        first, counts = self.places(rows)
        found: list[str | None] = [None] * len(rows)
        there = np.flatnonzero(counts)
        numbers = first if which is None else first + which
        for place, text in zip(there.tolist(), self.at(numbers[there]), strict=True):
            found[place] = text
        return found

    @classmethod
    def load(cls, folder: Path) -> "Captions":
        """Map the files of a folder.

        Raises:
            StoreError: They are missing or do not fit each other.
        """
        try:
            about = json.loads((folder / "captions.json").read_text())
            ends = np.load(folder / "ends.npy", mmap_mode="r")
            rows = np.load(folder / "rows.npy", mmap_mode="r") if "texts" in about else None
            texts: np.ndarray = np.zeros(0, np.uint8)
            if (folder / "texts.bin").stat().st_size:
                texts = np.memmap(folder / "texts.bin", np.uint8, "r")
            found = len(ends), int(ends[-1]) if len(ends) else 0
            if found != (about.get("texts", about["rows"]), len(texts)):
                raise ValueError(f"{len(ends):,} rows and {len(texts):,} bytes do not fit it")
            if rows is not None and (len(rows), rows[-1] if len(rows) else 0) != (about["rows"], len(ends)):
                raise ValueError(f"{len(rows):,} rows with {len(ends):,} texts do not fit it")
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"{folder} holds no whole captions: {error}. Make or import them again.") from error
        return cls(folder, about["pool"], ends, texts, rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Captions.load, (self.folder,)


def write_captions(folder: Path, pool_digest: str, texts: Iterable[str | None]) -> Captions:
    """Write a text or none for each row of a pool, in row order, as they come."""
    ends, total = array("q"), 0
    with open(folder / "texts.bin", "wb") as handle:
        for text in texts:
            total += handle.write((text or "").encode("utf-8", "replace"))
            ends.append(total)
    return _finish(folder, pool_digest, np.array(ends, np.int64))


def write_lists(folder: Path, pool_digest: str, lists: Iterable[list[str]]) -> Captions:
    """Write the texts of each row of a pool, none of them empty, in row order, as they come."""
    ends, rows, total = array("q"), array("q"), 0
    with open(folder / "texts.bin", "wb") as handle:
        for texts in lists:
            for text in texts:
                total += handle.write(text.encode("utf-8", "replace"))
                ends.append(total)
            rows.append(len(ends))
    return _finish(folder, pool_digest, np.array(ends, np.int64), np.array(rows, np.int64))


def import_captions(
    folder: Path, pool: Pool, file: str, column: str, judge: bool = False, notes: Counter[str] | None = None
) -> Captions:
    """Bring the captions of a Parquet file, named by `uid`, into the order of a pool's rows.

    A column holds texts, or lists of texts. Reads the file twice, block by block: lengths, then texts. 32 bytes of
    memory a row of the pool, and 8 a text. Uids of other pools are passed over; rows that share a uid share its
    captions.

    Args:
        judge: Take only what a json's field could give as a caption: neither blanks nor the words nan, none and
            null. Of lists always.
        notes: Counts entries of lists (with `judge`, and texts) that are not captions.

    Raises:
        ConfigError: A column is missing or holds no texts, or no uid is of this pool.
        WorldError: The file cannot be read, or names a uid twice.
    """
    hashes = pool.uid_hashes
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    lists = holds_lists(file, column) or judge

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, Texts, Any]]:
        """For each sample that a block names: its row, its place in the block; uids and texts."""
        for uids, texts in _blocks(file, column, lists):
            named = hashes_64(uids)
            first = np.searchsorted(ordered, named)
            counts = np.searchsorted(ordered, named, side="right") - first
            place = np.repeat(np.arange(len(named)), counts)
            nth = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
            yield order[first[place] + nth], place, uids, texts

    lengths = np.full(len(hashes), -1, np.int64)
    numbers = np.zeros(len(hashes) if lists else 0, np.int64)
    for rows, place, uids, texts in blocks():
        again = np.flatnonzero(lengths[rows] >= 0)
        _, once = np.unique(rows, return_index=True)
        again = np.concatenate([again, np.setdiff1d(np.arange(len(rows)), once)])
        if len(again):
            raise WorldError(
                f"captions file {file}: uid {uids[int(place[again[0]])].as_py()!r} stands there "
                "more than once. Name each uid once."
            )
        if not lists:
            sizes = compute.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False)
            lengths[rows] = sizes[place]
            continue
        for row, at in zip(rows.tolist(), place.tolist(), strict=True):
            own, unusable = texts_of_value(texts[at])
            lengths[row], numbers[row] = sum(len(text.encode()) for text in own), len(own)
            if notes is not None and unusable:
                notes[UNUSABLE] += unusable
    if not (lengths > 0).any():
        there = (
            f"Its uids are none of this pool, whose first is {pool.uids(np.arange(1))[0]!r}"
            if (lengths < 0).all()
            else f"Its uids name {np.count_nonzero(lengths >= 0):,} of them, with no text"
        )
        raise ConfigError(
            f"captions file {file} has no caption in column {column!r} for any of this pool's "
            f"{len(hashes):,} samples. {there}. Write captions for uids as pool.uid makes them."
        )
    last = np.cumsum(np.maximum(lengths, 0))
    edges = np.cumsum(numbers) if lists else None
    ends = last if edges is None else np.zeros(int(edges[-1]), np.int64)
    whole = np.memmap(folder / "texts.bin", np.uint8, "w+", shape=(int(last[-1]),))
    for rows, place, _, texts in blocks():
        if edges is None:
            every: list[list[str]] = [[text] if text else [] for text in texts.take(pa.array(place)).to_pylist()]
        else:
            every = [texts_of_value(texts[at])[0] for at in place.tolist()]
        for row, own in zip(rows.tolist(), every, strict=True):
            end = int(last[row])
            for back, text in enumerate(reversed(own), 1):
                content = text.encode()
                whole[end - len(content) : end] = np.frombuffer(content, np.uint8)
                if edges is not None:
                    ends[edges[row] - back] = end
                end -= len(content)
    whole.flush()
    del whole
    return _finish(folder, pool.digest, ends, edges)


def _finish(
    folder: Path, pool_digest: str, ends: Int64[np.ndarray, " t"], rows: Int64[np.ndarray, " n"] | None = None
) -> Captions:
    np.save(folder / "ends.npy", ends)
    edges = ends if rows is None else rows
    about = {"pool": pool_digest, "rows": len(edges)}
    about["refined"] = int(np.count_nonzero(np.diff(edges, prepend=0)))
    if rows is not None:
        np.save(folder / "rows.npy", rows)
        about["texts"] = len(ends)
    beside = folder / f".captions.json.{os.getpid()}"
    beside.write_text(json.dumps(about, indent=1) + "\n")
    beside.rename(folder / "captions.json")  # last: it says that the others are there
    return Captions.load(folder)


def _opened(file: str, column: str) -> pq.ParquetFile:
    try:
        source = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise WorldError(f"captions file {file} cannot be read as Parquet: {error}") from error
    names = source.schema_arrow.names
    for name in ("uid", column):
        if name not in names:
            raise ConfigError(f"captions file {file} has no column {name!r}. {nearest(name, names)}")
    return source


def holds_lists(file: str, column: str) -> bool:
    """Whether a column holds lists of texts.

    Raises:
        ConfigError: It is not there, or holds neither texts nor lists of them.
        WorldError: The file cannot be read.
    """
    kind = _opened(file, column).schema_arrow.field(column).type
    if is_list := is_list_type(kind):
        kind = kind.value_type
    if not is_text_type(kind):
        raise ConfigError(
            f"captions file {file}: column {column!r} holds {kind}, and a caption is a text. Name a column of "
            "texts, or of lists of texts."
        )
    return is_list


def is_list_type(kind: pa.DataType) -> bool:
    """Whether a column of Arrow's type holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_text_type(kind: pa.DataType) -> bool:
    """Whether values of Arrow's type are texts, or all null."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def plain_values(values: Any) -> list[Any]:
    """The values of a column of texts, or of lists of them; of bytes that are not UTF-8 replacement characters."""
    try:
        return values.to_pylist()
    except UnicodeDecodeError:  # Parquet does not check its texts
        is_list = is_list_type(values.type)
        kind = pa.large_list(pa.large_binary()) if is_list else pa.large_binary()

        def decoded(value: Any) -> Any:
            if isinstance(value, list):
                return [decoded(one) for one in value]
            return None if value is None else value.decode("utf-8", "replace")

        return [decoded(value) for value in values.cast(kind).to_pylist()]


def _blocks(file: str, column: str, lists: bool) -> Iterator[tuple[Texts, Any]]:
    for batch in _opened(file, column).iter_batches(BLOCK, columns=["uid", column]):
        values = batch.column(column)
        yield texts_of(batch.column("uid")), plain_values(values) if lists else texts_of(values)
