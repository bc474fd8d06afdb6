"""Scores: one number for each row, or explicitly none, with a name and a direction."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int

from dbp.data.columns import read_column, write_columns
from dbp.data.missing import Missing

ABOUT = "score.json"


@dataclass(frozen=True)
class Scores:
    """Values over all rows of a pool; NaN where a row has none.

    Args:
        values: In any unit.
        missing: Rows without a value, and why.
        label: What readers call it, such as `CLIP score`.
        higher_is_better: Else the best row has the lowest value.
    """

    values: Float32[np.ndarray, " n"]
    missing: Missing = field(default_factory=Missing)
    label: str = "score"
    higher_is_better: bool = True

    @property
    def goodness(self) -> Float32[np.ndarray, " n"]:
        """The values, negated where lower is better: whoever orders rows reads these."""
        return self.values if self.higher_is_better else -self.values

    def of(self, rows: Int[np.ndarray, " m"]) -> Float32[np.ndarray, " m"]:
        """The scores of rows; NaN where missing."""
        return self.values[rows]

    def worst(self, keep: Bool[np.ndarray, " n"]) -> float:
        """The score of the worst of some rows; of none what no row reaches."""
        found = self.goodness[keep].min() if keep.any() else np.inf
        return float(found if self.higher_is_better else -found)

    def save(self, folder: Path) -> None:
        write_columns(folder, score=self.values)
        self.missing.save(folder)
        about = {"label": self.label, "higher_is_better": self.higher_is_better}
        (folder / ABOUT).write_text(json.dumps(about) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Scores":
        file = folder / ABOUT  # older artifacts have none
        about = json.loads(file.read_text()) if file.exists() else {}
        return cls(read_column(folder, "score"), Missing.load(folder), **about)
