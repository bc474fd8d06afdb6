"""A paper's tables with ours beside, and whether ours order the methods as the paper does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from evaluation.report.paper.catalogue import find_paper
from evaluation.report.paper.match import Arm, arms_of, candidates, scale_of
from evaluation.report.paper.measure import Measured, Measuring, are_same_samples, noise_of
from evaluation.report.paper.own import add_own, read_own
from evaluation.report.paper.published import Mark
from evaluation.report.paper.runs import OurRuns
from evaluation.report.paper.tables import (
    Cell,
    FoundRow,
    FoundTable,
    InWords,
    Measure,
    Ordering,
    Ours,
    Paper,
    PaperTables,
    Row,
    State,
    Table,
    Want,
)
from evaluation.statistics.significance import ALPHA, holm
from evaluation.suites import groups
from evaluation.tasks import find_task

HEAD = Measure("ImageNet", groups()["ImageNet"])
PROTOCOL_IN_WORDS = "datacomp"
WORST_FIRST: tuple[Mark, ...] = ("own", "unverified", "secondary", "verified")


def compare(name: str, runs: OurRuns, numbers: Path | str | None = None) -> PaperTables:
    """Put runs of ours beside the numbers of a paper.

    Args:
        name: One of `catalogue.PAPERS`.
        runs: As `read_runs` finds them; there may be none.
        numbers: A file with a transcription of your own, as `own` describes it.

    Raises:
        ConfigError: There is no such paper, or the file cannot be read as numbers.
    """
    paper = find_paper(name)
    if numbers is not None:
        paper = add_own(paper, read_own(Path(numbers)))
    beside = _Beside(arms_of(runs.runs))
    tables = tuple(beside.table(table) for table in paper.tables)
    orderings = adjusted([*beside.orderings(paper)])
    kinds = ", ".join(sorted({run.pool_kind for run in runs.runs}))
    note = f"Ours: {len(runs.runs)} evaluated runs of {len(beside.arms)} arms; pools: {kinds}."
    if not runs.runs:
        note = "No evaluated run of ours was found: each cell names the command that would fill it."
    notes = (note, *runs.notes)
    return PaperTables(paper.name, paper.title, tables, orderings, paper.facts, paper.out_of_scope, notes)


@dataclass
class _Beside:
    """Finds what stands beside the numbers of a paper."""

    arms: list[Arm]
    measuring: Measuring = field(default_factory=Measuring)

    def table(self, table: Table) -> FoundTable:
        """A table with its cells."""
        found = [FoundRow(row.label, tuple(self._cells(table, row)), row.note) for row in table.rows]
        names = tuple(measure.name for measure in table.measures)
        return FoundTable(table.key, table.title, names, tuple(found), table.protocol, table.note)

    def _cells(self, table: Table, row: Row) -> Iterator[Cell]:
        for measure in table.measures:
            if measure.name in row.values:
                # One stand-in a row is enough: that of its first column.
                yield self._cell(table, row, measure, measure is table.measures[0])

    def _cell(self, table: Table, row: Row, measure: Measure, may_stand_in: bool) -> Cell:
        paper = row.values[measure.name]
        outside = row.out_of_scope or measure.out_of_scope
        if measure.missing:
            outside = outside or f"a mean with {', '.join(measure.missing)}, which nothing here reads"
        if outside or row.want is None:
            return Cell(measure.name, paper, None, None, "out of scope", "", outside)
        ours, reason = self._ours(table, row.want, measure, may_stand_in)
        is_same = ours is not None and not ours.departures
        state: State = "ours missing" if ours is None else "both" if is_same else "other scale"
        if paper.value is None:
            state = "paper unknown"
        difference = None
        if ours is not None and is_same and paper.value is not None:
            difference = ours.value - paper.value
        command = "" if is_same else row.want.command
        return Cell(measure.name, paper, ours, difference, state, command, reason)

    def _ours(self, table: Table, want: Want, measure: Measure, may_stand_in: bool) -> tuple[Ours | None, str]:
        """The nearest arm that has the measure, or why there is none."""
        found = candidates(want, self.arms)
        lacking = ""
        for arm, departures in found:
            if missing := self.measuring.missing(measure, arm, table.protocol):
                lacking = lacking or f"a run was evaluated without {', '.join(missing[:3])}" + (
                    f" and {len(missing) - 3} more" if len(missing) > 3 else ""
                )
                continue
            return self._shown(measure, arm, departures, table.protocol, ""), ""
        if may_stand_in:
            for arm, departures in found:
                if other := self._stand_in([arm], table.protocol):
                    departures = departures or (f"{other.name}, not {measure.name}",)
                    return self._shown(other, arm, departures, table.protocol, other.name), ""
        return None, lacking

    def _shown(self, measure: Measure, arm: Arm, departures: tuple[str, ...], protocol: str, other: str) -> Ours:
        found = self.measuring.measure(measure, arm, protocol)
        keys = tuple(key for run in arm.runs for key in run.evaluations)
        return Ours(found.value, found.interval, found.seeds, other, scale_of(arm), departures, keys)

    def _stand_in(self, arms: Sequence[Arm], protocol: str) -> Measure | None:
        """The mean of the glyphs' tasks that all runs of some arms have, if there is one."""
        every = [{t for t, p in run.results if p == protocol} for arm in arms for run in arm.runs]
        shared = set.intersection(*every) if every else set()
        tasks = tuple(task for task in sorted(shared) if find_task(task).group == "Glyphs")
        measure = Measure("mean of glyphs tasks", tasks)
        missing = any(self.measuring.missing(measure, arm, protocol) for arm in arms)
        return measure if tasks and not missing else None

    # orders

    def orderings(self, paper: Paper) -> Iterator[Ordering]:
        """Every pair that the paper orders, within the groups of its tables and in words."""
        for table in paper.tables:
            by_name = {measure.name: measure for measure in table.measures}
            for column in table.order_by:
                held = [row for row in table.rows if row.want and column in row.values]
                for one, other in combinations((row for row in held if row.values[column].value is not None), 2):
                    if one.group == other.group and one.values[column].value != other.values[column].value:
                        yield self._ordering(table, by_name[column], one, other)
        yield from map(self._in_words, paper.in_words)

    def _ordering(self, table: Table, measure: Measure, one: Row, other: Row) -> Ordering:
        values = [row.values[measure.name] for row in (one, other)]
        gap = (values[0].value or 0.0) - (values[1].value or 0.0)
        high, low = (one, other) if gap > 0 else (other, one)
        mark: Mark = next(mark for mark in WORST_FIRST if any(value.mark == mark for value in values))
        assert high.want is not None
        assert low.want is not None
        known = Ordering(table.title, measure.name, high.label, low.label, abs(gap), mark)
        return self._judged(known, measure, high.want, low.want, table.protocol)

    def _in_words(self, words: InWords) -> Ordering:
        known = Ordering("", HEAD.name, words.text, "", None, words.mark)
        return self._judged(known, HEAD, words.higher, words.lower, PROTOCOL_IN_WORDS)

    def _judged(self, known: Ordering, measure: Measure, high: Want, low: Want, protocol: str) -> Ordering:
        """An order with what the nearest two arms on one ground say of it."""
        pairs = [
            (len(more) + len(less), a, b, not more and not less)
            for a, more in candidates(high, self.arms)
            for b, less in candidates(low, self.arms)
            if a is not b and _are_on_one_ground(a, b, needs_size=high.is_loose)
        ]
        if not pairs:
            return replace(known, detail="no two runs of ours on one pool")
        for _, first, second, is_same in sorted(pairs, key=lambda pair: pair[0]):
            used, detail = measure, ""
            if any(self.measuring.missing(measure, arm, protocol) for arm in (first, second)):
                stands_in = self._stand_in([first, second], protocol)
                if stands_in is None:
                    continue
                used, detail, is_same = stands_in, f"by the {stands_in.name}", False
            if not are_same_samples(used, first, second, protocol):
                continue
            sides = [self.measuring.measure(used, arm, protocol) for arm in (first, second)]
            return self._verdict(replace(known, is_same_scale=is_same, detail=detail), *sides)
        return replace(known, detail="the runs of ours share no test set that would tell")

    def _verdict(self, known: Ordering, first: Measured, second: Measured) -> Ordering:
        gap = first.value - second.value
        noise = noise_of(first, second)
        if noise is None:
            why = "; ".join(filter(None, (known.detail, "fewer than 3 seeds, or no outcomes")))
            return replace(known, ours_gap=gap, verdict="cannot tell", detail=why)
        interval = (gap - (reach := noise.reach(ALPHA)), gap + reach)
        return replace(known, ours_gap=gap, interval=interval, p=noise.p(gap), verdict="cannot tell")


def _are_on_one_ground(first: Arm, second: Arm, needs_size: bool) -> bool:
    """Whether two arms of ours can be ordered: one pool, model and limit, and for a statement one size."""
    if "published" in first.first.steps + second.first.steps:
        return first.first.limit == second.first.limit
    sizes = {(arm.first.num_dedup, arm.first.num_kept) for arm in (first, second)}
    return first.ground == second.ground and not (needs_size and len(sizes) > 1)


def adjusted(found: Sequence[Ordering]) -> tuple[Ordering, ...]:
    """The orders with a verdict where p, adjusted by Holm over all that were measured, is at most 0.05."""
    corrected = iter(holm(np.array([one.p for one in found if one.p is not None])).tolist())
    return tuple(
        replace(one, verdict="agrees" if (one.ours_gap or 0.0) > 0 else "disagrees")
        if one.p is not None and next(corrected) <= ALPHA
        else one
        for one in found
    )
