"""Why rows have no vector, kept beside what was made without them, for the decision table."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, UInt8

from dbp.data.columns import numbered


@dataclass(frozen=True)
class Missing:
    """Rows without a vector, each with the number of its reason among `texts`."""

    rows: Int[np.ndarray, " m"] = field(default_factory=lambda: np.zeros(0, np.int64))
    codes: UInt8[np.ndarray, " m"] = field(default_factory=lambda: np.zeros(0, np.uint8))
    texts: tuple[str, ...] = ()

    @classmethod
    def read(cls, files: Iterable[Path]) -> "Missing":
        """Gather the files `missing.parquet` or `failed.parquet` of parts."""
        rows, codes, texts = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)], []
        for file in files:
            if pq.read_metadata(file).num_rows == 0:
                continue
            table = pq.read_table(file, read_dictionary=["reason"])
            rows.append(table["row"].to_numpy())
            codes.append(numbered(table["reason"], texts))
        row = np.concatenate(rows)
        order = np.argsort(row, kind="stable")
        return cls(row[order], np.concatenate(codes)[order], tuple(texts))

    @classmethod
    def of(cls, reasons: dict[int, str]) -> "Missing":
        """From row -> reason, for few rows."""
        texts = tuple(dict.fromkeys(reasons.values()))
        rows = np.array(sorted(reasons), np.int64)
        codes = np.array([texts.index(reasons[int(row)]) for row in rows], np.uint8)
        return cls(rows, codes, texts)

    def told(self) -> str:
        """The reasons with their counts, for a message."""
        return ", ".join(f"{text} {int((self.codes == code).sum()):,}" for code, text in enumerate(self.texts))

    def __or__(self, other: "Missing") -> "Missing":
        """Both; where a row stands in both, the first one's reason holds."""
        texts = tuple(dict.fromkeys(self.texts + other.texts))
        new = np.array([texts.index(t) for t in other.texts], np.uint8)
        rows = np.concatenate([self.rows, other.rows])
        codes = np.concatenate([self.codes, new[other.codes] if len(other.codes) else other.codes])
        rows, first = np.unique(rows, return_index=True)
        return Missing(rows, codes[first], texts)

    def save(self, folder: Path) -> None:
        """Write `missing.parquet`."""
        reason = pa.DictionaryArray.from_arrays(
            pa.array(self.codes.astype(np.int32)), pa.array(list(self.texts), pa.string())
        )
        pq.write_table(pa.table({"row": self.rows, "reason": reason.cast(pa.string())}), folder / "missing.parquet")

    @classmethod
    def load(cls, folder: Path) -> "Missing":
        """What `save` wrote; nothing where it wrote none."""
        file = folder / "missing.parquet"
        return cls.read([file] if file.exists() else [])

    def codes_over(self, num_rows: int, otherwise: str) -> tuple[UInt8[np.ndarray, " n"], list[str]]:
        """For each row of the pool the number of its reason; `otherwise` (0) where none is known."""
        codes = np.zeros(num_rows, np.uint8)
        codes[self.rows] = self.codes + np.uint8(1)
        return codes, [otherwise, *self.texts]
