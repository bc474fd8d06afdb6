"""Who is pruned: the kept rate of each value of a column, beside that of the pool."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool

from dbp.data.column import Column
from dbp.data.keep_list import KeepList
from dbp.engine.stage import Node
from dbp.engine.store import Store

Z = 1.959964  # of a 95 % interval
NO_VALUE = "(no value)"
MOST_SHOWN = 12
NUMBERS = 5  # groups that a column of numbers is cut into, of equal size


@dataclass(frozen=True)
class Rate:
    """How much of the rows with one value is kept."""

    value: str
    rows: int
    kept: float  # rows, or draws where rows are taken several times
    rate: float
    low: float  # Wilson's 95 % interval, of what a draw at random from rows like these may give
    high: float
    ratio: float  # to the rate of all rows: what a uniform choice of equal size keeps of each value


def kept_rates(
    column: Column, valid: Bool[np.ndarray, " n"], weights: np.ndarray, most: int | None = MOST_SHOWN
) -> list[Rate]:
    """The kept rate of each value, the over- and under-represented first.

    Args:
        column: Of texts; numbers are cut into fifths of the valid rows.
        valid: The rows that could be kept.
        weights: How often each row of the pool is taken; 0 where it is removed.
        most: Values that are told; those of the surest difference to the rate of all rows. None tells all.
    """
    groups, names = _groups(column, valid)
    rows = np.bincount(groups[valid], minlength=len(names))
    kept = np.bincount(groups[valid], weights=(weights[valid] > 0).astype(np.float64), minlength=len(names))
    draws = np.bincount(groups[valid], weights=weights[valid], minlength=len(names))
    whole = kept.sum() / max(rows.sum(), 1)
    overall = draws.sum() / max(rows.sum(), 1)
    found = []
    for at in np.flatnonzero(rows):
        n, share = int(rows[at]), kept[at] / rows[at]
        centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
        ratio = (draws[at] / n) / overall if overall else 0.0
        found.append(Rate(names[at], n, float(draws[at]), float(share), centre - half, centre + half, float(ratio)))
    spread = np.sqrt(whole * (1 - whole)) or 1.0
    found.sort(key=lambda one: (-abs(one.rate - whole) * np.sqrt(one.rows) / spread, one.value))
    return found if most is None else found[:most]


def _groups(column: Column, valid: np.ndarray) -> tuple[np.ndarray, list[str]]:
    if column.codes is not None:
        names = [*column.texts, NO_VALUE]
        return np.where(column.codes < 0, len(column.texts), column.codes), names
    assert column.numbers is not None
    numbers = np.asarray(column.numbers)
    there = numbers[valid & column.has_value]
    edges = there
    if len(there):
        edges = np.unique(np.quantile(there, np.linspace(0, 1, NUMBERS + 1), method="higher"))
    names = [f"{a:g} to {b:g}" for a, b in pairwise(edges)] or [f"{e:g}" for e in edges]
    inner = edges[1:-1]
    groups = np.searchsorted(inner, np.nan_to_num(numbers, nan=0.0), side="right")
    return np.where(column.has_value, groups, len(names)), [*names, NO_VALUE]


def lines_of(name: str, rates: Sequence[Rate], overall: float) -> list[str]:
    """A small table of kept rates for people."""
    width = max([len(rate.value) for rate in rates] + [len(name)])
    lines = [f"kept by {name} (of all {overall:.1%}; 95 % interval; ratio to a uniform choice):"]
    lines += [
        f"  {one.value:<{width}}  {one.rows:>12,} rows  {one.rate:>6.1%} [{one.low:.1%}, {one.high:.1%}]  "
        f"x {one.ratio:.2f}"
        for one in rates
    ]
    return lines


def rates_by_column(store: Store, nodes: Mapping[str, Node], keep: KeepList) -> Iterator[str]:
    """Who is pruned: a table of kept rates for each column that the recipe names."""
    for name, node in nodes.items():
        if name.startswith("columns."):
            valid = store.get(nodes["valid"]).mask
            weights = keep.over(np.ones(keep.num_kept) if keep.weights is None else keep.weights, 0)
            rates = kept_rates(store.get(node), valid, weights)
            overall = keep.num_kept / max(int(np.count_nonzero(valid)), 1)
            yield from lines_of(name.removeprefix("columns."), rates, overall)
