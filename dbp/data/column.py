"""A column: one value for each row of a pool, numbers or texts, where the row has one."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int, Int32

from dbp.data.columns import read_column, write_columns

ABOUT = "column.json"


@dataclass(frozen=True)
class Column:
    """Values over all rows of a pool.

    Args:
        numbers: For a column of numbers; NaN where a row has none.
        codes: For a column of texts: the place of each row's text in `texts`; -1 where a row has none.
        texts: The distinct texts, in the order of their first rows.
    """

    numbers: Float64[np.ndarray, " n"] | None = None
    codes: Int32[np.ndarray, " n"] | None = None
    texts: tuple[str, ...] = ()

    @cached_property
    def has_value(self) -> Bool[np.ndarray, " n"]:
        """Rows with a value."""
        if self.numbers is not None:
            return ~np.isnan(self.numbers)
        assert self.codes is not None
        return np.asarray(self.codes >= 0)

    def among(self, values: list[str]) -> Bool[np.ndarray, " n"]:
        """Rows whose text is one of some."""
        assert self.codes is not None, "a column of texts"
        known = frozenset(values)
        wanted = np.array([*(text in known for text in self.texts), False])  # the last is for rows without one
        return np.asarray(wanted[self.codes])

    def values(self, rows: Int[np.ndarray, " m"]) -> pa.Array:
        """The values of rows, null where one has none; numbers are whole if all of these are."""
        if self.codes is not None:
            codes = np.asarray(self.codes[rows])
            return pa.array(self.texts, pa.string()).take(pa.array(codes, mask=codes < 0))
        assert self.numbers is not None
        numbers = np.asarray(self.numbers[rows])
        is_there = ~np.isnan(numbers)
        found = pa.array(numbers, mask=~is_there)
        return found.cast(pa.int64()) if (numbers[is_there] % 1 == 0).all() else found

    def save(self, folder: Path) -> None:
        """Write `numbers.npy`, or `codes.npy` and the texts."""
        if self.numbers is not None:
            write_columns(folder, numbers=self.numbers)
        else:
            assert self.codes is not None
            write_columns(folder, codes=self.codes)
        about = {"kind": "numbers" if self.numbers is not None else "texts", "texts": list(self.texts)}
        (folder / ABOUT).write_text(json.dumps(about) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Column":
        about = json.loads((folder / ABOUT).read_text())
        if about["kind"] == "numbers":
            return cls(numbers=read_column(folder, "numbers"))
        return cls(codes=read_column(folder, "codes"), texts=tuple(about["texts"]))
