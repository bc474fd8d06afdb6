"""Codes of pictures: for each place of a picture the number of a code, in parts."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, UInt16

from dbp.data.missing import Missing

CODEBOOK = "codebook.npy"


@dataclass(frozen=True)
class Codes:
    """The codes of each picture that could be decoded, and the codebook that they number.

    A part per run of shards: `codes.npy`, 2 bytes a place (197 places are 0.4 KB a picture), and `rows.npy`
    beside it, ascending. Rows that could not be decoded are listed with the reason.
    """

    folder: Path

    @classmethod
    def load(cls, folder: Path) -> "Codes":
        return cls(folder)

    @cached_property
    def parts(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("part-*") if path.is_dir())

    @cached_property
    def codebook(self) -> Float32[np.ndarray, "k d"]:
        """The codes' vectors."""
        return np.load(self.folder / CODEBOOK)

    def part(self, number: int) -> tuple[Int[np.ndarray, " m"], UInt16[np.ndarray, "m t"]]:
        """Rows and codes of a part."""
        home = self.parts[number]
        return np.load(home / "rows.npy"), np.load(home / "codes.npy", mmap_mode="r")

    def missing(self, number: int) -> Missing:
        """The rows of a part that have no codes, and why."""
        return Missing.read([self.parts[number] / "missing.parquet"])
