"""Artifacts -> one plain object that the page, the tables and the figures are made of.

Every section is read on its own. What is gone, or cannot be read, is one line of `problems`, and the rest of
the page is made all the same. Nothing n-sized is kept: keep lists are looked at one after the other.
"""

import datetime
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.progress import progress
from dbp.engine.provenance import commit, versions
from dbp.engine.stage import rebuild
from dbp.engine.store import Entry, Store
from dbp.errors import DbpError, StoreError
from dbp.selection.density import Density
from evaluation.report.page import concepts, kept_by, provenance
from evaluation.report.page.curation import Overlaps, fates, funnel
from evaluation.report.page.methods import methods
from evaluation.report.page.pairs import gather_pairs
from evaluation.report.page.pictures import CELL, COLUMNS, ON_A_SHEET, Pictures
from evaluation.report.page.roster import NamedRun, Roster, ancestors
from evaluation.report.page.runs import Group, Measured, group, measure
from evaluation.report.sweep_table import difference_text, kept_text, value_text
from evaluation.results import without_nan
from evaluation.statistics.comparison import Cell

CANNOT = (DbpError, OSError, KeyError, ValueError, AssertionError)
MOST_CLUSTERINGS = 4  # that are shown with pictures


@dataclass
class Report:
    """What was gathered."""

    data: dict[str, Any]  # JSON-able; the page's
    groups: list[Group]  # the same results with their outcomes' intervals, for tables and figures
    sheets: list[str] = field(default_factory=list)  # pictures as base64 of WebP
    rates: kept_by.Tables | None = None  # kept rates by the pool's columns, where it has some


@dataclass
class _Gathering:
    store: Store
    found: Mapping[str, Entry]
    pictures: Pictures
    problems: list[str] = field(default_factory=list)
    pools: dict[str, Pool] = field(default_factory=dict)

    def pool_of(self, entry: Entry) -> Pool:
        """The pool that an artifact rests on, opened once."""
        for above in ancestors(self.found, entry):
            if above.stage == "index":
                if above.key not in self.pools:
                    self.pools[above.key] = self.store.open(above.key)
                return self.pools[above.key]
        raise StoreError(
            f"the index that {entry.stage} {entry.key[:12]} rests on is no longer in {self.store.root}. "
            "Index the pool again with dbp curate … until=index."
        )

    def attempt(self, what: str, make: Callable[..., Any], *given: Any) -> Any:
        """What a function makes; none, and a line of problems, where it cannot."""
        try:
            return make(*given)
        except CANNOT as error:
            self.problems.append(f"{what}: {error or type(error).__name__}")
            return None


def gather(store: Store, roster: Roster, most_pictures: int) -> Report:
    """Read all that the page shows, with at most so many pictures on the whole page."""
    found = {entry.key: entry for entry in store.entries()}
    work = _Gathering(store, found, Pictures(most_pictures))
    measured = measure(store, found, roster)
    groups = group(measured)
    if gone := list(dict.fromkeys(name for arm in measured for name in arm.gone)):
        work.problems.append(
            f"{len(gone)} artifacts that these arms rest on are no longer in the store, so parts of this page "
            f"are missing: {', '.join(gone[:3])}{' …' if len(gone) > 3 else ''}. The same commands make them "
            "again; paths.store and paths.runs say where to look."
        )
    kept = _first_keep_lists(measured, found)
    entries = _entries_of(roster, found)
    rates = kept_by.Tables(store, roster.columns or kept_by.columns_of(found), found)
    funnels, overlaps, clusterings = _curation(work, kept, rates)
    # Other seeds' pairs are of the same kind: one run of each arm is enough to look at.
    shown = _entries_of(roster, found, first_only=True)
    pairs = gather_pairs(store, shown, work.pool_of, work.pictures, work.problems)
    ledger = work.attempt("the cost ledger", provenance.ledger_of, roster, found)
    for problem, count in work.pictures.problems.most_common(5):
        work.problems.append(f"{count:,} pictures are missing on this page: {problem}")
    sheets = work.pictures.finish()
    data = {
        "title": roster.title,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": versions().get("density-based-pruning", ""),
        "commit": commit(),
        "command": " ".join(sys.argv),
        "store": str(store.root),
        "notes": list(roster.notes),
        "arms": [_arm(arm, groups, kept) for arm in measured],
        "groups": [_group(one) for one in groups],
        "methods": work.attempt("the methods", methods, kept, found) or [],
        "funnels": funnels,
        "overlaps": overlaps,
        "kept_by": rates.data(),
        "clusterings": clusterings,
        "pairs": pairs,
        "provenance": provenance.artifacts(entries.values()),
        "cost": provenance.cost(ledger) if ledger else {"arms": {}, "lines": []},
        "pictures": {
            "cell": CELL, "columns": COLUMNS, "on_a_sheet": ON_A_SHEET,
            "count": work.pictures.num_pictures, "left_out": work.pictures.left_out,
        },
        "problems": list(dict.fromkeys(work.problems)),
    }  # fmt: skip
    return Report(plain(without_nan(data)), groups, sheets, rates)


def _first_keep_lists(measured: list[Measured], found: Mapping[str, Entry]) -> dict[str, Entry]:
    """The keep list of each arm's first run that has one."""
    first: dict[str, Entry] = {}
    for arm in measured:
        keys = [run.facts["keep"] for run in arm.runs] + [run.keep for run in arm.named.runs]
        entry = next((found[key] for key in keys if key and key in found), None)
        if entry is not None:
            first[arm.named.name] = entry
    return first


def _entries_of(roster: Roster, found: Mapping[str, Entry], first_only: bool = False) -> dict[str, Entry]:
    """Every artifact that an arm rests on, inputs first; or those of its first run that got farthest."""

    def there(run: NamedRun) -> list[str]:
        return [key for key in (run.keep, run.train, run.evaluate) if key and key in found]

    keys = [key for key in roster.encoders if key in found]
    for arm in roster.arms:
        runs = [max(arm.runs, key=lambda run: len(there(run)))] if first_only and arm.runs else arm.runs
        keys += [key for run in runs for key in there(run)]
    entries: dict[str, Entry] = {}
    for key in keys:
        entries.update((entry.key, entry) for entry in ancestors(found, found[key]))
    order = {stage: at for at, stage in enumerate(dict.fromkeys(e.stage for e in entries.values()))}
    return dict(sorted(entries.items(), key=lambda item: order[item[1].stage]))


@dataclass
class _Clustering:
    """A clustering under way: what the page gets, and what its arms are looked up in."""

    clusters: Clusters
    rows: np.ndarray
    said: dict[str, Any]


def _curation(
    work: _Gathering, kept: Mapping[str, Entry], rates: kept_by.Tables
) -> tuple[list[Any], list[Any], list[Any]]:
    """Funnels, overlaps and clusterings, with each keep list loaded once for all three, and for the kept rates."""
    clusterings = _clusterings(work, kept)
    funnels: dict[str, dict[str, Any]] = {}
    overlaps: dict[str, Overlaps] = {}

    def look(name: str, entry: Entry) -> None:
        keep: KeepList = work.store.open(entry.key)
        pool = keep.pool_digest[:12]
        if entry.key not in funnels:
            about = {"key": entry.key, "rows": keep.num_pool_rows, "kept": keep.num_kept}
            funnels[entry.key] = {"arms": [], **about, "steps": funnel(keep), "pool": pool}
        funnels[entry.key]["arms"].append(name)
        overlaps.setdefault(keep.pool_digest, Overlaps(keep.num_pool_rows)).add(name, keep)
        work.attempt(f"kept rates of {name}", rates.add, name, entry.key, keep)
        for one in (one for one in clusterings if one.said["pool"] == pool):
            reasons, numbers = fates(keep, one.rows)
            sizes = concepts.kept_sizes(one.clusters, keep)
            one.said["arms"].append({"name": name, "kept": sizes, "reasons": reasons, "fates": numbers})

    with progress("keep lists", len(kept), "arms") as bar:
        for name, entry in kept.items():
            work.attempt(f"the keep list of {name}", look, name, entry)
            work.store.loaded.clear()
            bar.advance()
    tables = [
        {"pool": digest[:12], **overlap.table()} for digest, overlap in overlaps.items() if len(overlap.names) > 1
    ]
    return list(funnels.values()), tables, [one.said for one in clusterings]


def _clusterings(work: _Gathering, kept: Mapping[str, Entry]) -> list[_Clustering]:
    """The clusterings that selections used, each with a sample of its members."""
    users: dict[str, list[tuple[str, Entry]]] = {}
    for name, entry in kept.items():
        above = entry.manifest["inputs"].get("clusters")
        if above:
            users.setdefault(above["key"], []).append((name, entry))
    made: list[_Clustering] = []
    budget = work.pictures.most * 4 // 5 // max(min(len(users), MOST_CLUSTERINGS), 1)
    for number, (key, named) in enumerate(users.items()):
        most = budget if number < MOST_CLUSTERINGS else 0
        if one := work.attempt(f"clusters {key[:12]}", _one, work, key, named, most):
            made.append(one)
        work.store.loaded.clear()
    return made


def _one(work: _Gathering, key: str, named: list[tuple[str, Entry]], most: int) -> _Clustering:
    if key not in work.found:
        raise StoreError(
            f"the clustering that {named[0][0]} used is no longer in {work.store.root}. Make it again with "
            "dbp curate …; the key is the same."
        )
    clusters: Clusters = work.store.open(key)
    choosers = [c for name, entry in named if (c := work.attempt(f"quotas of {name}", _chooser, work, name, entry))]
    shape = concepts.shape(clusters, choosers)
    keeps = [k for _, e in named if (k := work.attempt("sample", work.store.open, e.key))]
    rows, shown = np.zeros(0, np.int64), np.zeros(0, np.int64)
    samples: list[dict[str, Any]] = []
    pool = work.attempt(f"pictures of clusters {key[:12]}", work.pool_of, work.found[key])
    if pool is not None and most:
        rows, shown = concepts.members(clusters, keeps[:1], shape["complexity"], most)
        samples = concepts.member_samples(clusters, pool, work.pictures, rows)
    digest = keeps[0].pool_digest[:12] if keeps else ""
    said = {
        "key": key, "pool": digest, "num_clusters": clusters.num_clusters, **shape,
        "temperatures": concepts.by_temperature(clusters, choosers),
        "samples": samples, "num_shown": len(shown), "used_by": [name for name, _ in named],
        "own_temperature": {c.arm: c.stage.temperature for c in choosers},
        "arms": [],
    }  # fmt: skip
    return _Clustering(clusters, rows, said)


def _chooser(work: _Gathering, name: str, entry: Entry) -> concepts.Chooser | None:
    stage = rebuild(entry.manifest["made_by"])
    if not isinstance(stage, Density):
        return None
    rows = work.store.open(entry.manifest["inputs"]["rows"]["key"])
    return concepts.Chooser(name, stage, rows, entry.manifest["counts"]["kept"])


def _arm(arm: Measured, groups: list[Group], kept: Mapping[str, Entry]) -> dict[str, Any]:
    facts = arm.runs[0].facts if arm.runs else {}
    entry = kept.get(arm.named.name)
    counts = entry.manifest["counts"] if entry else {}
    at = next(i for i, one in enumerate(groups) if arm in one.arms)
    seconds = [run.facts["train_seconds"] for run in arm.runs]
    return {
        "name": arm.named.name,
        "method": arm.named.method,
        "control": arm.named.control,
        "state": arm.state,
        "problems": arm.problems,
        "group": at,
        "seeds": [run.seed for run in arm.runs],
        "kept": facts.get("kept", counts.get("kept")),
        "kept_text": kept_text(arm.runs),
        "samples_seen": facts.get("samples_seen"),
        "steps": facts.get("steps"),
        "passes": facts.get("passes"),
        "flops": facts.get("train_flops"),
        "train_seconds": (sum(s or 0 for s in seconds) / len(seconds)) if seconds else None,
        "keys": [{name: run.facts[name] for name in ("keep", "train", "evaluate")} for run in arm.runs],
        "keep": entry.key if entry else None,
    }


def _group(one: Group) -> dict[str, Any]:
    return {
        "name": one.name,
        "reason": one.reason,
        "notes": one.notes,
        "columns": [{**vars(column), "heading": column.heading} for column in one.columns],
        "cells": {
            name: {key: cell_data(cell) for key, cell in by_task.items()} for name, by_task in one.cells.items()
        },
    }


def cell_data(cell: Cell) -> dict[str, Any]:
    """A cell as the page takes it: its texts, as in every other table, and its numbers."""
    return {"text": value_text(cell), "difference_text": difference_text(cell), **asdict(cell)}


def plain(value: Any) -> Any:
    """A value with Python's numbers in place of NumPy's."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
