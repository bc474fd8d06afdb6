"""Who is pruned: the kept rate of each value of a column, beside that of the pool."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

from dbp.data.column import Column
from dbp.data.keep_list import KeepList
from dbp.engine.stage import Node
from dbp.engine.store import Store

Z = 1.959964  # of a 95 % interval
NO_VALUE = "(no value)"
MOST_SHOWN = 12
NUMBERS = 5  # groups of equal size that a column of many numbers is cut into
FEW = 12  # as many different numbers, or fewer, are a group each


@dataclass(frozen=True)
class Rate:
    """How much of the rows with one value is kept."""

    value: str
    rows: int
    kept: float  # rows, or draws where rows are taken several times
    rate: float  # share of the rows that are kept, however often they are taken
    draws: float  # of a row in an epoch; the rate, where each row is taken once
    low: float  # Wilson's 95 % interval, of what a draw at random from rows like these may give
    high: float
    ratio: float  # of draws to those of all rows: to what a uniform choice of equal size takes of each value

    def against(self, overall: float) -> str:
        """`over` or `under`, where the interval leaves out what a uniform choice keeps; else empty."""
        return "over" if self.low > overall else "under" if self.high < overall else ""


@dataclass(frozen=True)
class Rates:
    """The kept rates of a column's values, of the surest difference first.

    Args:
        told: A line each.
        others: Values that are not told, together; none where all are.
        num_others: How many they are.
        overall: The share of all rows that is kept: what a uniform choice of equal size keeps of each value.
        draws: Of a row of all, in an epoch; the same where each row is taken once.
    """

    told: list[Rate]
    others: Rate | None
    num_others: int
    overall: float
    draws: float


def kept_rates(
    column: Column, valid: Bool[np.ndarray, " n"], weights: np.ndarray, most: int | None = MOST_SHOWN
) -> Rates:
    """The kept rate of each value, the over- and under-represented first, by draws of a row.

    Args:
        column: Of texts, or of numbers. Up to 12 different numbers are values; more are cut into fifths of the
            valid rows, but for a number that a fifth of them have.
        valid: The rows that could be kept.
        weights: How often each row of the pool is taken; 0 where it is removed.
        most: Values that are told; those of the surest difference to the draws of all rows. None tells all.
    """
    groups, names = _groups(column, valid)
    rows = np.bincount(groups[valid], minlength=len(names))
    kept = np.bincount(groups[valid], weights=(weights[valid] > 0).astype(np.float64), minlength=len(names))
    draws = np.bincount(groups[valid], weights=weights[valid], minlength=len(names))
    num_rows = max(int(rows.sum()), 1)
    overall, per_row = float(kept.sum() / num_rows), float(draws.sum() / num_rows)
    there = np.flatnonzero(rows)
    sureness = np.abs(draws[there] / rows[there] - per_row) * np.sqrt(rows[there])
    told = there
    if most is not None and most < len(there):
        least = np.partition(sureness, -most)[-most] if most else np.inf
        told = there[sureness >= least]
    by_place = dict(zip(there.tolist(), sureness.tolist(), strict=True))
    order = sorted(told.tolist(), key=lambda at: (-by_place[at], names[at]))[:most]
    left = np.setdiff1d(there, np.array(order, np.int64))

    def rate(name: str, at: Any) -> Rate:
        n, of_rows, of_draws = int(rows[at].sum()), float(kept[at].sum()), float(draws[at].sum())
        share = of_rows / n
        centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * float(np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)))
        ratio = of_draws / n / per_row if per_row else 0.0
        return Rate(name, n, of_draws, share, of_draws / n, centre - half, centre + half, ratio)

    others = rate(f"({len(left):,} other values)", left) if len(left) else None
    return Rates([rate(names[at], [at]) for at in order], others, len(left), overall, per_row)


def _groups(column: Column, valid: np.ndarray) -> tuple[np.ndarray, list[str]]:
    if column.codes is not None:
        names = [*column.texts, NO_VALUE]
        return np.where(column.codes < 0, len(column.texts), column.codes), names
    assert column.numbers is not None
    numbers = np.asarray(column.numbers)
    has_value = column.has_value
    values, counts = np.unique(numbers[valid & has_value], return_counts=True)
    group, names = _cut(values, counts)
    at = np.minimum(np.searchsorted(values, numbers), max(len(values) - 1, 0))
    groups = group[at] if len(values) else np.zeros(len(numbers), np.int64)
    return np.where(has_value, groups, len(names)), [*names, NO_VALUE]


def _cut(values: Float64[np.ndarray, " v"], counts: Int[np.ndarray, " v"]) -> tuple[np.ndarray, list[str]]:
    """The group of each of some different numbers, ascending, and the groups' names."""
    is_own = counts * NUMBERS >= counts.sum()
    if len(values) <= FEW:
        is_own[:] = True
    others = np.where(is_own, 0, counts)
    wanted = max(NUMBERS - int(np.count_nonzero(is_own)), 1)
    fifth = (np.cumsum(others) - others) * wanted // max(int(others.sum()), 1)
    is_first = np.ones(len(values), bool)
    is_first[1:] = is_own[1:] | is_own[:-1] | (fifth[1:] != fifth[:-1])
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], len(values)) - 1
    names: list[str] = []
    for digits in (6, 17):  # numbers that six digits do not tell apart
        low, high = ([f"{value:.{digits}g}" for value in values[at]] for at in (starts, ends))
        names = [a if a == b else f"{a} to {b}" for a, b in zip(low, high, strict=True)]
        if len(set(names)) == len(names):
            break
    return np.cumsum(is_first) - 1, names


def lines_of(name: str, rates: Sequence[Rate], overall: float, draws: float | None = None) -> list[str]:
    """A small table of kept rates for people.

    Args:
        name: Of the column.
        rates: A line each.
        overall: The share of all rows that is kept.
        draws: Of a row of all, where rows have weights; none where each is taken once.
    """
    width = max([len(rate.value) for rate in rates] + [len(name)])
    mean = "" if draws is None else f", {draws:.4g} draws a row"
    lines = [f"kept by {name} (of all {overall:.1%}{mean}; 95 % interval; ratio to the random baseline):"]
    for one in rates:
        mean = "" if draws is None else f"  {one.draws:>8.4g} draws a row"
        lines.append(
            f"  {one.value:<{width}}  {one.rows:>12,} rows  {one.rate:>6.1%} [{one.low:.1%}, {one.high:.1%}]{mean}"
            f"  x {one.ratio:.2f}"
        )
    return lines


def weights_over(keep: KeepList) -> Float64[np.ndarray, " n"]:
    """How often each row of the pool is taken."""
    return keep.over(np.ones(keep.num_kept) if keep.weights is None else keep.weights.astype(np.float64), 0)


def column_nodes(nodes: Mapping[str, Node]) -> dict[str, Node]:
    """The columns that a recipe names."""
    group = "columns."
    return {name.removeprefix(group): node for name, node in nodes.items() if name.startswith(group)}


def rates_by_column(store: Store, nodes: Mapping[str, Node], keep: KeepList) -> Iterator[str]:
    """Who is pruned: a table of kept rates for each column that the recipe names."""
    for name, node in column_nodes(nodes).items():
        rates = kept_rates(store.get(node), store.get(nodes["valid"]).mask, weights_over(keep))
        yield from lines_of(name, rates.told, rates.overall, None if keep.weights is None else rates.draws)
