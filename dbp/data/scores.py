"""Scores: one number for each row, or explicitly none."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from dbp.data.columns import read_column, write_columns
from dbp.data.missing import Missing


@dataclass(frozen=True)
class Scores:
    """Values over all rows of a pool; NaN where a row has none. Higher is better."""

    values: Float32[np.ndarray, " n"]
    missing: Missing = field(default_factory=Missing)  # rows without a vector, and why

    def of(self, rows: Int[np.ndarray, " m"]) -> Float32[np.ndarray, " m"]:
        """The scores of rows; NaN where missing."""
        return self.values[rows]

    def save(self, folder: Path) -> None:
        write_columns(folder, score=self.values)
        self.missing.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "Scores":
        return cls(read_column(folder, "score"), Missing.load(folder))
