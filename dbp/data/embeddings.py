"""Embeddings: one unit vector for each row that could be embedded, in parts of fp16."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float16, Float32, Int

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("norm", pa.float32()),  # before normalising
        ("stored_norm", pa.float32()),  # of the stored fp16 vector; 1 but for rounding
    ]
)


@dataclass(frozen=True)
class Embeddings:
    """Vectors of rows, and the rows that have none.

    A part per run of shards, `vectors.npy` in fp16 and `rows.parquet` beside it, in one order. Rows that
    could not be decoded or whose vector was zero or not finite are listed with the reason, never
    guessed.
    """

    parts: list[Path]
    width: int

    @classmethod
    def load(cls, folder: Path) -> "Embeddings":
        parts = sorted(path for path in folder.glob("part-*") if path.is_dir())
        widths = (np.load(p / "vectors.npy", mmap_mode="r").shape[1] for p in parts)
        return cls(parts, next((width for width in widths if width), 0))

    @cached_property
    def rows(self) -> Int[np.ndarray, " n"]:
        return np.concatenate([self._table(p)["row"].to_numpy() for p in self.parts])

    @cached_property
    def stored_norms(self) -> Float32[np.ndarray, " n"]:
        return np.concatenate([self._table(p)["stored_norm"].to_numpy() for p in self.parts])

    @cached_property
    def failed(self) -> dict[int, str]:
        """Row -> why it has no vector."""
        found: dict[int, str] = {}
        for part in self.parts:
            table = pq.read_table(part / "failed.parquet")
            found |= dict(zip(table["row"].to_pylist(), table["reason"].to_pylist(), strict=True))
        return found

    @cached_property
    def vectors(self) -> Float16[np.ndarray, "n d"]:
        """All stored vectors in memory; for pools that fit."""
        parts = [np.load(p / "vectors.npy", mmap_mode="r") for p in self.parts]
        filled = [part for part in parts if len(part)]  # an empty part may not know the width
        return np.concatenate(filled or [np.zeros((0, self.width), np.float16)])

    def positions(self, rows: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Where the vectors of rows stand; -1 for a row without one."""
        order = self._order
        at = np.searchsorted(self.rows, rows, sorter=order)
        at = np.minimum(at, len(order) - 1) if len(order) else at
        found = order[at] if len(order) else np.full(len(rows), -1)
        if len(order):
            found = np.where(self.rows[found] == rows, found, -1)
        return found

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.rows, kind="stable")

    def unit(self, rows: Int[np.ndarray, " m"]) -> Float32[np.ndarray, "m d"]:
        """The vectors of rows at unit length, in fp32.

        Raises:
            KeyError: A row has no vector.
        """
        at = self.positions(rows)
        if (at < 0).any():
            raise KeyError(f"row {rows[at < 0][0]} has no embedding")
        return self.vectors[at].astype(np.float32) / self.stored_norms[at][:, None]

    def _table(self, part: Path) -> pa.Table:
        return pq.read_table(part / "rows.parquet")


def save_part(
    folder: Path,
    rows: Int[np.ndarray, " n"],
    vectors: Float[np.ndarray, "n d"],
    failed: dict[int, str],
) -> dict[str, int]:
    """Write one part: unit length in fp32, then rounded to fp16, both norms beside.

    Zero and non-finite vectors join the failed. Returns counts by outcome.
    """
    failed = dict(failed)
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    # In float64: the square of a very large or very small fp32 value leaves fp32's range.
    norms = np.linalg.norm(np.where(finite[:, None], vectors, 0).astype(np.float64), axis=1)
    for row in rows[~finite]:
        failed[int(row)] = "embedding not finite"
    for row in rows[finite & (norms == 0)]:
        failed[int(row)] = "zero embedding"
    good = finite & (norms > 0)
    stored = (vectors[good] / norms[good, None]).astype(np.float32).astype(np.float16)
    np.save(folder / "vectors.npy", stored)
    stored_norms = np.linalg.norm(stored.astype(np.float32), axis=1)
    pq.write_table(
        pa.table(
            {
                "row": rows[good].astype(np.int64),
                "norm": norms[good].astype(np.float32),
                "stored_norm": stored_norms.astype(np.float32),
            },
            schema=SCHEMA,
        ),
        folder / "rows.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "row": pa.array(list(failed), pa.int64()),
                "reason": pa.array(list(failed.values()), pa.string()),
            }
        ),
        folder / "failed.parquet",
    )
    counts: dict[str, int] = {"rows": int(good.sum())}
    for reason in failed.values():
        counts[reason] = counts.get(reason, 0) + 1
    return counts
