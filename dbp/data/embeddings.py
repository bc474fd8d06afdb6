"""Embeddings: one unit vector for each row that could be embedded, in parts of fp16."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float16, Float32, Float64, Int

from dbp.data.missing import Missing
from dbp.errors import WorldError

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("norm", pa.float32()),  # before normalising
        ("stored_norm", pa.float64()),  # of the stored fp16 vector; 1 but for rounding
    ]
)


@dataclass(frozen=True)
class Embeddings:
    """Vectors of rows, and the rows that have none.

    A part per run of shards, `vectors.npy` in fp16 and `rows.parquet` beside it, in one order, rows ascending. Rows
    that could not be decoded or whose vector was zero or not finite are listed with the reason, never guessed.
    """

    parts: list[Path]
    width: int
    _open: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def load(cls, folder: Path) -> "Embeddings":
        parts = sorted(path for path in folder.glob("part-*") if path.is_dir())
        widths = (np.load(p / "vectors.npy", mmap_mode="r").shape[1] for p in parts)
        return cls(parts, next((width for width in widths if width), 0))

    @cached_property
    def missing(self) -> Missing:
        """Rows that have no vector, and why."""
        return Missing.read(part / "failed.parquet" for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of all stored vectors."""
        return sum((part / "vectors.npy").stat().st_size for part in self.parts)

    def part_rows(self, part: int) -> Int[np.ndarray, " m"]:
        """The rows of a part that have a vector, ascending."""
        return self._part(part)[0]

    @cached_property
    def rows(self) -> Int[np.ndarray, " n"]:
        """All rows that have a vector, ascending."""
        every = [self.part_rows(part) for part in range(len(self.parts))]
        return np.concatenate([np.zeros(0, np.int64), *every])

    def has(self, rows: Int[np.ndarray, " m"]) -> Bool[np.ndarray, " m"]:
        """Which of ascending rows have a vector."""
        found = np.zeros(len(rows), bool)
        for part, span in self._spans(rows):
            own = self.part_rows(part)
            found[span] = own[np.minimum(np.searchsorted(own, rows[span]), len(own) - 1)] == rows[span]
        return found

    def gather(self, rows: Int[np.ndarray, " m"]) -> Float16[np.ndarray, "m d"]:
        """The stored vectors of rows, in their order; not to be written to.

        Rows that lie side by side in one part are not copied.

        Raises:
            KeyError: A row has no vector.
        """
        where = list(self._places(rows))
        if len(where) == 1 and isinstance(where[0][0], slice) and isinstance(where[0][2], slice):
            return self._part(where[0][1])[2][where[0][2]]
        found = np.empty((len(rows), self.width), np.float16)
        for places, part, at in where:
            found[places] = self._part(part)[2][at]
        return found

    def scattered(self, rows: Int[np.ndarray, " m"]) -> Float16[np.ndarray, "m d"]:
        """As `gather`, for rows that lie far apart: each is read by itself.

        A mapped file reads 128 KB around each row that is not in memory. Here the system gets all places of a
        part before the first read, so that a disk works on many at a time, and nothing stays mapped. Two
        microseconds a row of what lies in memory.
        """
        found = np.empty((len(rows), self.width), np.float16)
        for places, part, at in self._places(rows):
            stored: Any = self._part(part)[2]
            own = np.arange(len(stored))[at] if isinstance(at, slice) else at
            size = stored[0].nbytes
            where = [int(stored.offset) + size * row for row in own.tolist()]
            handle = os.open(self.parts[part] / "vectors.npy", os.O_RDONLY)
            try:
                if hasattr(os, "posix_fadvise"):
                    for offset in where:
                        os.posix_fadvise(handle, offset, size, os.POSIX_FADV_WILLNEED)
                into = np.arange(len(rows))[places]
                for place, offset in zip(into.tolist(), where, strict=True):
                    if os.preadv(handle, [found[place].data], offset) != size:
                        raise WorldError(f"{self.parts[part]}/vectors.npy is cut short. Make the embeddings again.")
            finally:
                os.close(handle)
        return found

    def norms(self, rows: Int[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
        """The lengths of the stored vectors of rows."""
        found = np.empty(len(rows))
        for places, part, at in self._places(rows):
            found[places] = self._part(part)[1][at]
        return found

    def unit(self, rows: Int[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """The vectors of rows at unit length, in fp32; for pools that fit.

        Raises:
            KeyError: A row has no vector.
        """
        return (self.gather(rows).astype(np.float32) / self.norms(rows)[:, None]).astype(np.float32)

    def _places(self, rows: np.ndarray):  # type: ignore[no-untyped-def]
        """For each part that holds some of the rows: where they stand in `rows`, and in the part."""
        if len(rows) and not self._first:
            raise KeyError(f"row {rows[0]} has no embedding")
        order: slice | np.ndarray = slice(None)
        ascending = rows
        if len(rows) > 1 and not (rows[1:] > rows[:-1]).all():
            order = np.argsort(rows, kind="stable")
            ascending = rows[order]
        for part, span in self._spans(ascending):
            own, wanted = self.part_rows(part), ascending[span]
            at = np.minimum(np.searchsorted(own, wanted), len(own) - 1)
            if (absent := own[at] != wanted).any():
                raise KeyError(f"row {wanted[absent][0]} has no embedding")
            if not isinstance(order, slice):
                yield order[span], part, at
            elif at[-1] - at[0] == len(at) - 1:  # rows that lie side by side
                yield span, part, slice(int(at[0]), int(at[-1]) + 1)
            else:
                yield span, part, at

    def _spans(self, rows: np.ndarray):  # type: ignore[no-untyped-def]
        """The parts that may hold ascending rows, each with its slice of them."""
        if len(rows) == 0 or not self._first:
            return
        first, parts = np.array(list(self._first.values())), list(self._first)
        low, high = np.maximum(np.searchsorted(first, rows[[0, -1]], side="right") - 1, 0).tolist()
        edges = [0, *np.searchsorted(rows, first[low + 1 : high + 1]).tolist(), len(rows)]
        for part, (start, stop) in zip(parts[low : high + 1], pairwise(edges), strict=True):
            if stop > start:
                yield part, slice(start, stop)

    @cached_property
    def _first(self) -> dict[int, int]:
        """The first row of each part that has rows."""
        about = {number: pq.read_metadata(part / "rows.parquet") for number, part in enumerate(self.parts)}
        # Rows ascend, so the least is the first.
        return {n: found.row_group(0).column(0).statistics.min for n, found in about.items() if found.num_rows}

    def _part(self, part: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, lengths and mapped vectors of a part; a few parts stay open."""
        found = self._open.get(part)
        if found is None:
            while len(self._open) >= 8:  # what is mapped counts as this process' memory
                self._open.pop(next(iter(self._open)), None)
            table = pq.read_table(self.parts[part] / "rows.parquet", columns=["row", "stored_norm"])
            found = (
                table["row"].to_numpy(),
                table["stored_norm"].to_numpy(),
                # Copy on write, since torch takes no array that is read-only.
                np.load(self.parts[part] / "vectors.npy", mmap_mode="c"),
            )
            self._open[part] = found
        return found

    def __getstate__(self) -> dict:
        return {"parts": self.parts, "width": self.width, "_open": {}}


def save_part(
    folder: Path, rows: Int[np.ndarray, " n"], vectors: Float[np.ndarray, "n d"], failed: dict[int, str]
) -> dict[str, int]:
    """Write one part: unit length in fp32, then rounded to fp16, both norms beside.

    Zero and non-finite vectors join the failed. Returns counts by outcome.
    """
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    # In float64: the square of a very large or very small fp32 value leaves fp32's range.
    norms = np.linalg.norm(np.where(finite[:, None], vectors, 0).astype(np.float64), axis=1)
    no_direction = {int(row): "embedding not finite" for row in rows[~finite]}
    no_direction |= {int(row): "zero embedding" for row in rows[finite & (norms == 0)]}
    good = finite & (norms > 0)
    stored = (vectors[good] / norms[good, None]).astype(np.float32).astype(np.float16)
    np.save(folder / "vectors.npy", stored)
    # Squares of fp16 numbers add up in float64 without rounding, so this length has no other error.
    stored_norms = np.sqrt(np.square(stored.astype(np.float64)).sum(axis=1))
    pq.write_table(
        pa.table(
            {
                "row": rows[good].astype(np.int64),
                "norm": norms[good].astype(np.float32),
                "stored_norm": stored_norms,
            },
            schema=SCHEMA,
        ),
        folder / "rows.parquet",
    )
    missing = Missing.of({**failed, **no_direction})
    missing.save(folder)
    (folder / "missing.parquet").rename(folder / "failed.parquet")
    counts = {text: int((missing.codes == code).sum()) for code, text in enumerate(missing.texts)}
    return {"rows": int(good.sum()), **counts}
