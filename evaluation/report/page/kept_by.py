"""Who is kept: the kept rates of each arm by the values of the pool's columns, such as languages and sources."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dbp.data.keep_list import KeepList
from dbp.engine.store import Entry, Store
from dbp.pools.rates import Rate, Rates, kept_rates, lines_of, weights_over
from dbp.selection.held_out import LAYER
from evaluation.report.table import Table

SHOWN = 30  # values of an arm on the page and in its tables
WRITTEN = 2_000  # values of an arm in the CSV; those behind them stand in one line
PRINTED = 5  # values of an arm, and
LINES = 60  # lines in all, on the terminal
FILE = "kept_by.csv"
LONG = (
    "column", "arm", "value", "pool", "share_of_pool", "kept", "share_of_kept", "draws", "kept_rate", "low", "high",
    "baseline_rate", "against_baseline", "ratio",
)  # fmt: skip
NOTE = (
    "Shares are of the valid rows. In brackets the 95 % Wilson interval of the kept rate, of each value alone; "
    "over and under: it leaves out the rate of the size-matched random baseline. Ratio: the share of what is kept "
    f"over the share of the pool. The surest differences first, at most {SHOWN} values; {FILE} holds the others."
)


@dataclass
class KeptBy:
    """The kept rates of one keep list by one column, and the arms that have it."""

    column: str
    entry: Entry  # of the column
    key: str  # of the keep list
    rates: Rates
    num_rows: int  # valid ones
    has_weights: bool
    arms: list[str] = field(default_factory=list)

    @property
    def told_draws(self) -> float | None:
        """Draws of a row in an epoch, where rows have weights."""
        return self.rates.draws if self.has_weights else None

    def lines(self, most: int | None) -> Iterator[tuple[Rate, dict[str, Any]]]:
        """Each value with what tables say of it; values behind so many stand in the one of the others."""
        total = self.rates.draws * self.num_rows
        others = [] if self.rates.others is None else [self.rates.others]
        for rate in [*self.rates.told[:most], *(others if most is None else [])]:
            yield (
                rate,
                {
                    "value": rate.value,
                    "pool": rate.rows,
                    "share_of_pool": rate.rows / max(self.num_rows, 1),
                    "kept": round(rate.rate * rate.rows),
                    "share_of_kept": rate.kept / total if total else 0.0,
                    "draws": rate.kept if self.has_weights else None,
                    "kept_rate": rate.rate,
                    "low": rate.low,
                    "high": rate.high,
                    "baseline_rate": self.rates.overall,
                    "against_baseline": rate.against(self.rates.overall),
                    "ratio": rate.ratio,
                },
            )


@dataclass
class Tables:
    """The kept rates of all arms, looked at one keep list after the other.

    Args:
        store: That holds the columns.
        named: Key of a column -> its name.
        found: All artifacts.
    """

    store: Store
    named: Mapping[str, str]
    found: Mapping[str, Entry]
    made: dict[tuple[str, str], KeptBy] = field(default_factory=dict)

    def add(self, arm: str, key: str, keep: KeepList) -> None:
        """Note an arm's keep list."""
        valid = np.ones(keep.num_pool_rows, bool)
        for layer in keep.layers:  # what could have been kept: neither invalid nor held out
            if layer.stage in ("pool", LAYER):
                valid &= layer.codes <= 1
        weights = None
        for column, name in self.named.items():
            entry = self.found.get(column)
            if entry is None or entry.manifest["inputs"]["pool"]["identity"] != keep.pool_digest:
                continue
            if (column, key) not in self.made:
                weights = weights_over(keep) if weights is None else weights
                rates = kept_rates(self.store.open(column), valid, weights, WRITTEN)
                about = int(np.count_nonzero(valid)), keep.weights is not None
                self.made[column, key] = KeptBy(name, entry, key, rates, *about)
            self.made[column, key].arms.append(arm)

    @property
    def in_order(self) -> list[KeptBy]:
        """By column, and within one in the order of the arms."""
        places = {column: at for at, column in enumerate(self.named)}
        return sorted(self.made.values(), key=lambda one: places[one.entry.key])

    def data(self) -> list[dict[str, Any]]:
        """What the page shows: for each column each arm's values."""
        columns: dict[str, dict[str, Any]] = {}
        for one in self.in_order:
            about = {"name": one.column, "field": field_of(one.entry), "key": one.entry.key, "rows": one.num_rows}
            said = columns.setdefault(one.entry.key, about | {"arms": []})
            behind = len(one.rates.told[SHOWN:]) + one.rates.num_others
            said["arms"].append(
                {
                    "arms": one.arms, "kept": round(one.rates.overall * one.num_rows),
                    "baseline_rate": one.rates.overall, "draws": one.told_draws,
                    "values": [line for _, line in one.lines(SHOWN)], "others": behind,
                }
            )  # fmt: skip
        return list(columns.values())

    def tables(self) -> Iterator[Table]:
        """A table for each column and keep list."""
        for one in self.in_order:
            heading = ["value", "pool", "of the pool", "kept", "of the kept", "kept rate", "baseline", "ratio", ""]
            rows = [
                [
                    line["value"], f"{line['pool']:,}", f"{line['share_of_pool']:.1%}", f"{line['kept']:,}",
                    f"{line['share_of_kept']:.1%}", f"{rate.rate:.1%} [{rate.low:.1%}, {rate.high:.1%}]",
                    f"{one.rates.overall:.1%}", f"{rate.ratio:.2f}", line["against_baseline"],
                ]
                for rate, line in one.lines(SHOWN)
            ]  # fmt: skip
            yield Table(f"Kept by {one.column}: {', '.join(one.arms)}", heading, rows, [NOTE])

    def long_rows(self) -> Iterator[dict[str, Any]]:
        """A line for each column, arm and value, with every number."""
        for one in self.in_order:
            for arm in one.arms:
                for _, line in one.lines(None):
                    yield {"column": one.column, "arm": arm, **line}

    def printed(self) -> Iterator[str]:
        """The first values of each keep list, for the terminal."""
        lines = [
            line
            for one in self.in_order
            for line in _named(
                one, lines_of(one.column, one.rates.told[:PRINTED], one.rates.overall, one.told_draws)
            )
        ]
        yield from lines[:LINES]
        if len(lines) > LINES:
            yield f"… {len(lines) - LINES:,} more lines in {FILE}"


def _named(one: KeptBy, lines: Sequence[str]) -> list[str]:
    return [f"{', '.join(one.arms)}: {lines[0]}", *lines[1:]]


def field_of(entry: Entry) -> str:
    """What a column is read from, as a setting says it; of a file without its path."""
    made = entry.manifest["parameters"]
    return f"{made['kind']}:{made['field']}"


def columns_of(found: Mapping[str, Entry]) -> dict[str, str]:
    """Key -> name of all columns of a store, of several readings of one the last; for reports that name keys."""
    last: dict[str, Entry] = {}
    for entry in found.values():
        if entry.stage == "column":
            pool = entry.manifest["inputs"]["pool"]["identity"]
            said = json.dumps([pool, entry.manifest["parameters"]], sort_keys=True)
            if said not in last or last[said].manifest["created"] < entry.manifest["created"]:
                last[said] = entry
    names = [field_of(entry) for entry in last.values()]
    return {
        entry.key: name if names.count(name) == 1 else f"{name} ({entry.key[:8]})"
        for entry, name in sorted(zip(last.values(), names, strict=True), key=lambda one: (one[1], one[0].key))
    }
