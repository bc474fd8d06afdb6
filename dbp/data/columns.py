"""Columns of a long table kept in parts: read one at a time, and only where rows are asked for."""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, UInt8, UInt64

KEPT = 16  # string columns of one part that stay in memory for look-ups by row


class Columns:
    """A table in memory, or the Parquet files that hold it one after another."""

    def __init__(self, source: pa.Table | Sequence[Path]) -> None:
        self._table: Any = source if isinstance(source, pa.Table) else None
        self._files: list[Any] = [] if isinstance(source, pa.Table) else list(source)
        self._cached: dict[str, np.ndarray] = {}
        self._recent: dict[tuple[int, str], pa.ChunkedArray] = {}

    @cached_property
    def starts(self) -> Int[np.ndarray, " p"]:
        """The first row of each part, and the number of rows behind the last."""
        if self._table is not None:
            return np.array([0, self._table.num_rows])
        counts = [pq.read_metadata(file).num_rows for file in self._files]
        return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    @property
    def num_rows(self) -> int:
        return self._table.num_rows if self._table is not None else int(self.starts[-1])

    @property
    def names(self) -> list[str]:
        if self._table is not None:
            return self._table.column_names
        return pq.read_schema(self._files[0]).names if self._files else []

    def table(self) -> pa.Table:
        """The whole table in memory; for pools that fit."""
        if self._table is not None:
            return self._table
        return pa.concat_tables(pq.read_table(file) for file in self._files)

    def whole(self, name: str) -> np.ndarray:
        """One column over all rows. Numbers are kept for the next call; texts become Python objects."""
        if name in self._cached:
            return self._cached[name]
        chunks = [self._arrow(part, name) for part in range(max(len(self._files), 1))]
        kind = chunks[0].type
        found = np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in chunks])
        if pa.types.is_primitive(kind):
            self._cached[name] = found
        return found

    def codes(self, name: str) -> tuple[UInt8[np.ndarray, " n"], list[str]]:
        """A column of few texts as small numbers over all rows, and each number's text; a missing text is empty.

        Raises:
            ValueError: It holds no texts, or more than 256 different ones.
        """
        texts: list[str] = []
        found = []
        for part in range(max(len(self._files), 1)):
            column = self._arrow(part, name)
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise ValueError(f"column {name} holds {column.type}, no texts")
            found.append(numbered(column.fill_null(""), texts))
        return np.concatenate(found), texts

    def words(self, name: str, rows: Int[np.ndarray, " m"]) -> UInt64[np.ndarray, "m 2"]:
        """A column of 16 bytes a row, at ascending rows, as two 64-bit numbers each."""
        found = np.empty((len(rows), 2), np.uint64)
        edges = self.starts.tolist()
        ends = np.searchsorted(rows, edges)
        for part, (start, stop) in enumerate(pairwise(ends)):
            if stop == start:
                continue
            column = one_chunk(self._arrow(part, name))
            plain = np.frombuffer(column.buffers()[-1], "<u8", 2 * len(column), 16 * column.offset)
            found[start:stop] = plain.reshape(-1, 2)[rows[start:stop] - edges[part]]
        return found

    def at(self, name: str, rows: Int[np.ndarray, " m"]) -> pa.ChunkedArray:
        """One column at some rows, in their order. Only the parts that hold them are read."""
        rows = np.asarray(rows, np.int64)
        if self._table is not None:
            return self._table[name].take(pa.array(rows))
        order = np.argsort(rows, kind="stable")
        part = np.searchsorted(self.starts, rows[order], side="right") - 1
        found = [
            self._arrow(int(p), name, keep=True).take(pa.array(rows[order[part == p]] - self.starts[p]))
            for p in np.unique(part)
        ]
        if not found:
            return pa.chunked_array([pa.array([], pq.read_schema(self._files[0]).field(name).type)])
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return pa.chunked_array([c for column in found for c in column.chunks]).take(pa.array(back))

    def _arrow(self, part: int, name: str, keep: bool = False) -> pa.ChunkedArray:
        if self._table is not None:
            return self._table[name]
        if (part, name) in self._recent:
            return self._recent[part, name]
        column = pq.read_table(self._files[part], columns=[name], memory_map=True)[name]
        if keep:
            while len(self._recent) >= KEPT:
                self._recent.pop(next(iter(self._recent)))
            self._recent[part, name] = column
        return column

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_recent": {}, "_cached": {}}


def one_chunk(column: Any) -> Any:
    """A column as one contiguous array."""
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole


def numbered(column: pa.ChunkedArray, texts: list[str]) -> UInt8[np.ndarray, " n"]:
    """A column's texts as places in a list, which new ones are added to.

    Raises:
        ValueError: They are more than 256.
    """
    encoded = one_chunk(column if pa.types.is_dictionary(column.type) else column.dictionary_encode())
    own = encoded.dictionary.to_pylist()
    texts += [text for text in own if text not in texts]
    if len(texts) > 256:
        raise ValueError(f"more than 256 different texts, such as {texts[-1]!r}")
    new = np.array([texts.index(text) for text in own], np.uint8)
    at = encoded.indices.to_numpy(zero_copy_only=False)
    return new[at] if len(at) else np.zeros(0, np.uint8)


def write_columns(folder: Path, **columns: np.ndarray) -> None:
    """One `.npy` per column over all rows of a pool: workers that read them share one copy in memory."""
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values)


def read_column(folder: Path, name: str) -> np.ndarray:
    """A column that `write_columns` wrote, memory-mapped."""
    return np.load(folder / f"{name}.npy", mmap_mode="r")
