"""A table of arms: each arm against its control, on every task and on means of tasks.

One analysis serves the table of a sweep, the page and all exports. Its sentences (`Analysis.notes`) stand beside
every table, so that a reader knows what bold means and what the table can detect.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dbp.errors import ConfigError
from evaluation.metrics import fine
from evaluation.metrics.measures import paired_replicates
from evaluation.results import Result, not_whole
from evaluation.statistics.arms import MIN_SEEDS, SharedSeeds, family_level, precision, sidak
from evaluation.statistics.comparison import MEAN, Arm, Cell
from evaluation.statistics.significance import TwoNoises, percentile_interval
from evaluation.tasks import find_task


@dataclass(frozen=True)
class Analysis:
    """A table of arms: its cells, and what must be read with them."""

    cells: dict[str, dict[str, Cell]]  # arm -> column -> cell
    notes: list[str]  # one sentence each: what bold means, how sure the table can be, and what it cannot tell
    # Arm -> (task, measure) as `TASK MEASURE` -> cell, for the finer measures; differences of one measure are one
    # family of tests, and enter no mean of the tasks
    finer: dict[str, dict[str, Cell]] = field(default_factory=dict)


def compare(arms: Sequence[Arm], seed: int = 0) -> dict[str, dict[str, Cell]]:
    """Each arm's cells by task, and under `mean` the plain mean of the tasks."""
    return analyse(arms, seed).cells


def analyse(arms: Sequence[Arm], seed: int = 0, means: Mapping[str, Sequence[str]] | None = None) -> Analysis:
    """Compare arms with their controls on every task, and on means of tasks.

    All differences of tasks are one family of tests, those of means another.

    Args:
        arms: All of one suite, protocol and budget.
        seed: Of the bootstrap.
        means: Further means, by column: of which tasks. The mean of all is always there.

    Raises:
        ConfigError: Two arms have one name.
    """
    names = [arm.name for arm in arms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two arms are called {twice[0]!r}: their rows could not be told apart. Rename one.")
    values, draws, tasks = _measured(arms, seed, means or {})
    cells, shared, noises = _compared(arms, values, draws, tasks)
    finer: dict[str, dict[str, Cell]] = {}
    for measure in fine.NAMES:
        more = _compared(arms, *_measured(arms, seed, {}, measure))[0]
        for name, row in more.items():
            finer.setdefault(name, {}).update({f"{task} {measure}": cell for task, cell in row.items()})
    return Analysis(cells, _notes(arms, cells, shared, noises), finer)


Values = dict[str, dict[str, dict[int, float]]]  # arm -> column -> seed -> value
Draws = dict[str, dict[str, np.ndarray]]  # arm -> column -> replicates of the mean over seeds


def _compared(
    arms: Sequence[Arm], values: Values, draws: Draws, tasks: Sequence[str]
) -> tuple[dict[str, dict[str, Cell]], SharedSeeds, dict[tuple[str, str], TwoNoises]]:
    """The cells of a table, with verdicts: all tasks are one family, all means another."""
    shared = SharedSeeds(values, tasks)
    cells: dict[str, dict[str, Cell]] = {}
    noises: dict[tuple[str, str], TwoNoises] = {}
    for arm in arms:
        base = values.get(arm.control or "", {}) if arm.control != arm.name else {}
        for column, by_seed in values[arm.name].items():
            replicates, found = draws[arm.name][column], tuple(by_seed.values())
            cell = Cell(float(np.mean(found)), percentile_interval(replicates), found)
            if column in base:
                assert arm.control is not None
                difference = cell.value - float(np.mean(list(base[column].values())))
                cell = replace(cell, difference=difference, control=arm.control)
                variance = float(np.var(replicates - draws[arm.control][column]))
                if noise := shared.noise(arm.name, arm.control, column, variance):
                    noises[arm.name, column] = noise
            cells.setdefault(arm.name, {})[column] = cell
    every = _columns(cells)
    for family in ([c for c in every if c in tasks], [c for c in every if c not in tasks]):
        tested = {at: noise for at, noise in noises.items() if at[1] in family}
        for (name, column), noise in tested.items():
            cells[name][column] = _judged(cells[name][column], noise, len(tested))
    return cells, shared, noises


def _judged(cell: Cell, noise: TwoNoises, tests: int) -> Cell:
    """Add the interval and the verdict of one of a family of tests."""
    assert cell.difference is not None
    reach, p = noise.reach(family_level(tests)), noise.p(cell.difference)
    return replace(
        cell,
        difference_interval=(cell.difference - reach, cell.difference + reach),
        p=p,
        adjusted_p=sidak(p, tests),
        is_separate=abs(cell.difference) > reach,
    )


def _columns(cells: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    return list(dict.fromkeys(column for row in cells.values() for column in row))


def _notes(
    arms: Sequence[Arm],
    cells: Mapping[str, Mapping[str, Cell]],
    shared: SharedSeeds,
    noises: Mapping[tuple[str, str], TwoNoises],
) -> list[str]:
    """What a reader must know before reading the numbers, one sentence each."""
    shown = [cell for row in cells.values() for cell in row.values()]
    notes: list[str] = []
    if noises:
        notes.append(
            "Bold: significant under test-sample and seed variance; the interval of its difference excludes "
            "zero. Method: differences by seed, residual variance pooled over arms x seeds and raised for a pair "
            "that spreads more; intervals are simultaneous (Sidak, 5 % over all tasks and arms; over all means)."
        )
    elif any(cell.difference is not None for cell in shown):
        few = any(len(cell.seeds) < MIN_SEEDS for cell in shown)
        notes.append(
            f"Fewer than {MIN_SEEDS} seeds per arm: checkpoints can be compared, methods cannot. Nothing is bold."
            if few
            else "All seeds have equal values: seed variance is unknown. Nothing is bold."
        )
    elif len(arms) > 1:
        notes.append("No other arm has a finished control, so there are no differences. Nothing is bold.")
    elif arms:
        notes.append("A single arm: there is nothing to compare it with. Nothing is bold.")
    of_mean = [noise for (_, column), noise in noises.items() if column == MEAN]
    if (found := precision(shared, MEAN, of_mean)) is not None:
        need = "no number of seeds (test samples alone hide it)"
        if found.seeds_for_half is not None:
            need = f"{found.seeds_for_half:,} seeds per arm"
        notes.append(
            f"Mean of tasks: seeds explain {found.share:.0%} of the variance within arms; the smallest difference "
            f"detected with a power of 80 % is {100 * found.smallest:.1f} points; half a point takes {need}."
        )
    if shared.arms and shared.apart:
        notes.append(
            f"Compared unpaired, since their seeds differ from those of the others: {', '.join(shared.apart)}."
        )
    short = [
        arm.name
        for arm in arms
        if shared.seeds and arm.name not in (*shared.arms, *shared.apart) and cells.get(arm.name)
    ]
    if short and noises:
        notes.append(f"Fewer than {MIN_SEEDS} finished seeds, so no verdict: {', '.join(short)}.")
    tasks = [column for column in _columns(cells) if column in shared.tasks]
    if lacking := [
        f"{name} ({', '.join(t.split('/')[-1] for t in tasks if t not in row)})"
        for name, row in cells.items()
        if any(t not in row for t in tasks)
    ]:
        notes.append(f"Without a value of a task, and so without a mean: {'; '.join(lacking)}.")
    if parts := not_whole(result for arm in arms for run in arm.runs for result in run.results):
        notes.append(f"Not on the task's own test set: {'; '.join(parts)}.")
    return notes


def _measured(
    arms: Sequence[Arm], seed: int, means: Mapping[str, Sequence[str]], measure: str | None = None
) -> tuple[Values, Draws, list[str]]:
    """Values by arm, column and seed; bootstrap replicates of their means; and the tasks.

    An arm that lacks a task, or a seed of it, has no mean: it would be the mean of something else.

    Args:
        arms: With at least one run each, or none.
        seed: Of the bootstrap.
        means: Further means by name, of which tasks.
        measure: A finer measure in place of the tasks' main metrics; it has no means.
    """
    sets: dict[tuple[str, str], list[tuple[str, int, Result]]] = {}
    for arm in arms:
        for run in arm.runs:
            for result in run.results:
                if _value(result, measure) is not None:
                    sets.setdefault((result.task, result.set_digest), []).append((arm.name, run.seed, result))
    values: Values = {arm.name: {} for arm in arms}
    drawn: dict[str, dict[str, list[np.ndarray]]] = {arm.name: {} for arm in arms}
    for (key, _), found in sets.items():
        task = find_task(key)
        metric = measure or task.main_metric or ""
        draws = paired_replicates(task, metric, [r for *_, r in found], seed=seed)
        for (name, number, result), replicates in zip(found, draws, strict=True):
            values[name].setdefault(key, {})[number] = _value(result, measure) or 0.0
            drawn[name].setdefault(key, []).append(replicates)
    tasks = list(dict.fromkeys(key for key, _ in sets))
    mean_draws = {
        name: {
            key: np.mean(found, axis=0) for key, found in sorted(by_task.items(), key=lambda kv: tasks.index(kv[0]))
        }
        for name, by_task in drawn.items()
    }
    for arm in arms:
        mine = values[arm.name]
        for column, members in ({} if measure else {**means, MEAN: tasks}).items():
            if members and all(len(mine.get(key, ())) == len(arm.runs) for key in members):
                seeds = [run.seed for run in arm.runs]
                mine[column] = {s: float(np.mean([mine[key][s] for key in members])) for s in seeds}
                mean_draws[arm.name][column] = np.mean([mean_draws[arm.name][key] for key in members], axis=0)
        order = [*(key for key in tasks if key in mine), *(c for c in mine if c not in tasks)]
        values[arm.name] = {column: mine[column] for column in order}
    return values, mean_draws, tasks


def _value(result: Result, measure: str | None) -> float | None:
    metric = measure or find_task(result.task).main_metric
    return result.metrics.get(metric) if metric else None


def span(values: Sequence[int | None]) -> str:
    """A count, or the range of counts over seeds; nothing where one is not known."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return ""
    low, high = min(known), max(known)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
