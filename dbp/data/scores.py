"""Scores: one number for each row, or explicitly none."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from dbp.data.missing import load_missing


@dataclass(frozen=True)
class Scores:
    """Values over all rows of a pool; NaN where a row has none. Higher is better."""

    values: Float[np.ndarray, " n"]
    missing: dict[int, str] = field(default_factory=dict)  # row -> why it has no vector

    def of(self, rows: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """The scores of rows; NaN where missing."""
        return self.values[rows]

    def save(self, folder: Path) -> None:
        column = pa.array(self.values, pa.float32(), mask=np.isnan(self.values))
        pq.write_table(pa.table({"score": column}), folder / "scores.parquet", compression="zstd")

    @classmethod
    def load(cls, folder: Path) -> "Scores":
        column = pq.read_table(folder / "scores.parquet")["score"]
        values = column.to_numpy(zero_copy_only=False).astype(np.float64)
        return cls(values, load_missing(folder))
