"""Stored vectors of rows, seen block by block: one side, or image and caption side by side.

Blocks hold the stored fp16 numbers as they are, with their lengths beside; who multiplies them divides by
the lengths after, so that no second rounding enters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_

import numpy as np
from jaxtyping import Bool, Float16, Float64, Int

from dbp.data.embeddings import Embeddings
from dbp.data.missing import Missing


@dataclass(frozen=True)
class Vectors:
    """The vectors of rows that have one on every side.

    With two sides a vector is both, side by side, so that the cosine of two rows is the mean of their
    image and their caption cosine (up to the rounding of lengths to fp16, below 5e-4 of it).
    """

    sides: tuple[Embeddings, ...]

    @classmethod
    def of(cls, *sides: Embeddings | None) -> "Vectors":
        found = tuple(side for side in sides if side is not None)
        assert found, "a modality names at least one side"
        return cls(found)

    @property
    def width(self) -> int:
        return sum(side.width for side in self.sides)

    @property
    def missing(self) -> Missing:
        """Rows without a vector on some side, with the first side's reason."""
        return reduce(or_, (side.missing for side in self.sides))

    @property
    def num_parts(self) -> int:
        return len(self.sides[0].parts)

    def part_rows(self, part: int, mask: Bool[np.ndarray, " n"] | None = None) -> Int[np.ndarray, " m"]:
        """The rows of a part (of the first side) that have a vector on every side, and are in the mask."""
        rows = self.sides[0].part_rows(part)
        for side in self.sides[1:]:
            rows = rows[side.has(rows)]
        return rows if mask is None else rows[mask[rows]]

    def present(self, num_rows: int) -> Bool[np.ndarray, " n"]:
        """Which rows of the pool have a vector on every side."""
        found = np.zeros(num_rows, bool)
        for part in range(self.num_parts):
            found[self.part_rows(part)] = True
        return found

    def gather(self, rows: Int[np.ndarray, " m"]) -> Float16[np.ndarray, "m d"]:
        """The stored vectors of rows, in their order; every row must have one."""
        if len(self.sides) == 1:
            return self.sides[0].gather(rows)
        return np.concatenate([side.gather(rows) for side in self.sides], axis=1)

    def norms(self, rows: Int[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
        """The lengths of the stored vectors: 1 but for rounding, or the root of 2 with both sides."""
        if len(self.sides) == 1:
            return self.sides[0].norms(rows)
        return np.sqrt(np.sum([side.norms(rows) ** 2 for side in self.sides], axis=0))


def in_blocks(rows: Int[np.ndarray, " m"], size: int) -> Iterator[tuple[int, Int[np.ndarray, " b"]]]:
    """Rows cut into blocks, each with the place of its first."""
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]
