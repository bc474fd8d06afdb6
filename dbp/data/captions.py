"""Refined captions: another text for rows of a pool, beside the originals in their shards.

    ends.npy       8 bytes a row: where its text ends in the next file
    texts.bin      all texts in row order, UTF-8
    captions.json  the pool, and how many rows have a text

Two mapped files and not Parquet, since training asks for rows in random order: a text is one slice, the workers of
a loader share the pages, and nothing is decompressed again and again. Parquet is what they are imported from.
"""

import json
import os
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

from dbp.data.pool import Pool
from dbp.errors import ConfigError, StoreError, WorldError, nearest
from dbp.formats.uid_pairs import Texts, hashes_64, texts_of

compute: Any = pc  # its functions are made at import, so no type checker sees them
BLOCK = 1 << 16  # rows of the Parquet file at a time


@dataclass(frozen=True)
class Captions:
    """A refined caption for each row of one pool, or none. The original stays with `pool.captions`."""

    folder: Path  # where the files lie; a pickle holds nothing else
    pool_digest: str  # of the pool whose rows these are
    ends: Int64[np.ndarray, " n"]  # of each row's text among all bytes
    texts: UInt8[np.ndarray, " b"]  # all bytes

    @property
    def num_rows(self) -> int:
        return len(self.ends)

    @cached_property
    def num_refined(self) -> int:
        """Rows that have a text."""
        return int(np.count_nonzero(np.diff(self.ends, prepend=0)))

    def of(self, rows: Int[np.ndarray, " m"]) -> list[str | None]:
        """The texts of rows, in their order; None where there is none. An empty text is none."""
        ends = self.ends[rows].tolist()
        starts = np.where(rows > 0, self.ends[np.maximum(rows - 1, 0)], 0).tolist()
        return [
            self.texts[start:end].tobytes().decode() if end > start else None
            for start, end in zip(starts, ends, strict=True)
        ]

    @classmethod
    def load(cls, folder: Path) -> "Captions":
        """Map the files of a folder.

        Raises:
            StoreError: They are missing or do not fit each other.
        """
        try:
            about = json.loads((folder / "captions.json").read_text())
            ends = np.load(folder / "ends.npy", mmap_mode="r")
            texts: np.ndarray = np.zeros(0, np.uint8)
            if (folder / "texts.bin").stat().st_size:
                texts = np.memmap(folder / "texts.bin", np.uint8, "r")
            if (len(ends), int(ends[-1]) if len(ends) else 0) != (about["rows"], len(texts)):
                raise ValueError(f"{len(ends):,} rows and {len(texts):,} bytes do not fit it")
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"{folder} holds no whole captions: {error}. Make or import them again.") from error
        return cls(folder, about["pool"], ends, texts)

    def __reduce__(self) -> tuple[Any, ...]:
        return Captions.load, (self.folder,)


def write_captions(folder: Path, pool_digest: str, texts: Iterable[str | None]) -> Captions:
    """Write the texts of all rows of a pool, in row order, as they come."""
    ends, total = [], 0
    with open(folder / "texts.bin", "wb") as handle:
        for text in texts:
            total += handle.write((text or "").encode("utf-8", "replace"))
            ends.append(total)
    return _finish(folder, pool_digest, np.array(ends, np.int64))


def import_captions(folder: Path, pool: Pool, file: str, column: str) -> Captions:
    """Bring the captions of a Parquet file, named by `uid`, into the order of a pool's rows.

    Reads the file twice, block by block: lengths, then texts. 24 bytes of memory a row of the pool.
    Uids of other pools are passed over; rows that share a uid share its caption.

    Raises:
        ConfigError: A column is missing, or no uid is of this pool.
        WorldError: The file cannot be read, or names a uid twice.
    """
    hashes = pool.uid_hashes
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray, Texts, Texts]]:
        """For each sample that a block names: its row, its place in the block; uids and texts."""
        for uids, texts in _blocks(file, column):
            named = hashes_64(uids)
            first = np.searchsorted(ordered, named)
            counts = np.searchsorted(ordered, named, side="right") - first
            place = np.repeat(np.arange(len(named)), counts)
            nth = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
            yield order[first[place] + nth], place, uids, texts

    lengths = np.full(len(hashes), -1, np.int64)
    for rows, place, uids, texts in blocks():
        again = np.flatnonzero(lengths[rows] >= 0)
        _, once = np.unique(rows, return_index=True)
        again = np.concatenate([again, np.setdiff1d(np.arange(len(rows)), once)])
        if len(again):
            raise WorldError(
                f"captions file {file}: uid {uids[int(place[again[0]])].as_py()!r} stands there "
                "more than once. Name each uid once."
            )
        sizes = compute.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False)
        lengths[rows] = sizes[place]
    if not (lengths > 0).any():
        raise ConfigError(
            f"captions file {file} has no caption in column {column!r} for any of this pool's "
            f"{len(hashes):,} samples. Are its uids those of pool.uid?"
        )
    ends = np.cumsum(np.maximum(lengths, 0))
    whole = np.memmap(folder / "texts.bin", np.uint8, "w+", shape=(int(ends[-1]),))
    for rows, place, _, texts in blocks():
        plain = texts.take(pa.array(place)).to_pylist()
        for end, text in zip(ends[rows].tolist(), plain, strict=True):
            if text:
                content = text.encode()
                whole[end - len(content) : end] = np.frombuffer(content, np.uint8)
    whole.flush()
    del whole
    return _finish(folder, pool.digest, ends)


def _finish(folder: Path, pool_digest: str, ends: Int64[np.ndarray, " n"]) -> Captions:
    np.save(folder / "ends.npy", ends)
    about = {"pool": pool_digest, "rows": len(ends)}
    about["refined"] = int(np.count_nonzero(np.diff(ends, prepend=0)))
    beside = folder / f".captions.json.{os.getpid()}"
    beside.write_text(json.dumps(about, indent=1) + "\n")
    beside.rename(folder / "captions.json")  # last: it says that the others are there
    return Captions.load(folder)


def _blocks(file: str, column: str) -> Iterator[tuple[Texts, Texts]]:
    try:
        source = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise WorldError(f"captions file {file} cannot be read as Parquet: {error}") from error
    names = source.schema_arrow.names
    for name in ("uid", column):
        if name not in names:
            raise ConfigError(f"captions file {file} has no column {name!r}. {nearest(name, names)}")
    for batch in source.iter_batches(BLOCK, columns=["uid", column]):
        yield texts_of(batch.column("uid")), texts_of(batch.column(column))
