"""What became of a pool's rows in each arm: the funnel by reason, and how much keep lists share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dbp.data.keep_list import KeepList


def funnel(keep: KeepList) -> list[dict[str, Any]]:
    """Rows before and after each stage that let rows go, with the reasons, most first.

    Laws: each stage begins with the rows that the one before left; the reasons of a stage sum to what
    went at it.
    """
    steps = []
    rows = keep.num_pool_rows
    for layer in keep.layers:
        numbers = np.bincount(layer.codes, minlength=len(layer.texts))
        reasons = [
            [text, int(count)]
            for code, (text, count) in enumerate(zip(layer.texts, numbers, strict=True))
            if code > 1 and count
        ]
        gone = sum(count for _, count in reasons)
        reasons.sort(key=lambda one: -one[1])
        steps.append({"stage": layer.stage, "before": rows, "after": rows - gone, "reasons": reasons})
        rows -= gone
    assert rows == keep.num_kept, "reasons account for every row"
    return steps


@dataclass
class Overlaps:
    """The keep lists of one pool, one bit a row, until they are compared."""

    num_rows: int
    names: list[str] = field(default_factory=list)
    bits: list[np.ndarray] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def add(self, name: str, keep: KeepList) -> None:
        """Note an arm's keep list."""
        self.names.append(name)
        self.bits.append(keep.bits)
        self.kept.append(keep.num_kept)

    def table(self) -> dict[str, Any]:
        """Names, sizes and the Jaccard index of every pair: rows in both over rows in either, in [0, 1]."""
        shared = np.zeros((len(self.bits),) * 2)
        for i, first in enumerate(self.bits):
            for j in range(i, len(self.bits)):
                both = int(np.bitwise_count(first & self.bits[j]).sum())
                either = self.kept[i] + self.kept[j] - both
                shared[i, j] = shared[j, i] = both / either if either else 1.0
        return {
            "rows": self.num_rows,
            "names": self.names,
            "kept": self.kept,
            "jaccard": np.round(shared, 4).tolist(),
        }


def fates(keep: KeepList, rows: np.ndarray) -> tuple[list[list[Any]], list[int]]:
    """Why some rows stayed or went: the reasons that occur, and for each row the number of its reason."""
    if not len(rows):
        return [], []
    table = next(keep.decision_tables(rows, block=len(rows)))
    columns: Sequence[Mapping[str, Any]] = table.select(["kept", "stage", "reason"]).to_pylist()
    texts: dict[tuple[Any, ...], int] = {}
    numbers = [texts.setdefault((bool(c["kept"]), c["stage"], c["reason"]), len(texts)) for c in columns]
    return [list(text) for text in texts], numbers
