"""Arms compared: means over seeds, two kinds of noise kept apart, differences to the control.

Test-sample noise comes from resampling the test pictures, the same draws for every arm. Training noise
comes from the spread of an arm's seeds. A verdict about *methods* needs both, and so at least two seeds
an arm (three are better); with one seed nothing is called separate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluation.measures import paired_replicates
from evaluation.results import Result
from evaluation.significance import percentile_interval
from evaluation.tasks import find_task

MEAN = "mean"


@dataclass(frozen=True)
class Run:
    """One trained and evaluated point of an arm: one seed."""

    seed: int
    results: Sequence[Result]
    facts: dict[str, Any]  # keys, rows kept, steps, seconds


@dataclass(frozen=True)
class Arm:
    """One method at one point of the grid, over its seeds."""

    name: str
    runs: Sequence[Run]
    control: str | None = None  # name of the arm that differences are taken from
    failures: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Cell:
    """One metric of one arm.

    Args:
        value: Mean over seeds, in [0, 1].
        interval: 95 %, over test samples.
        seeds: The value of each seed.
        difference: To the control; none for the control itself.
        difference_interval: 95 %, over test samples and seeds; none with fewer than two seeds.
        is_separate: Whether that interval excludes nil.
    """

    value: float
    interval: tuple[float, float]
    seeds: tuple[float, ...]
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    is_separate: bool = False


def compare(arms: Sequence[Arm], seed: int = 0) -> dict[str, dict[str, Cell]]:
    """Each arm's cells by task, and under `mean` the plain mean of the tasks.

    Args:
        arms: All of one suite, protocol and budget.
        seed: Of the bootstrap.
    """
    draws = _replicates(arms, seed)
    table: dict[str, dict[str, Cell]] = {}
    for arm in arms:
        base = draws.get(arm.control or "", {})
        for task, (values, replicates) in draws.get(arm.name, {}).items():
            cell = Cell(float(np.mean(values)), percentile_interval(replicates), tuple(values))
            if task in base and arm.control != arm.name:
                cell = _against(cell, replicates, *base[task])
            table.setdefault(arm.name, {})[task] = cell
    return table


def _replicates(
    arms: Sequence[Arm], seed: int
) -> dict[str, dict[str, tuple[list[float], np.ndarray]]]:
    """For each arm and task the seeds' values, and bootstrap replicates of their mean.

    An arm that lacks a task, or a seed of it, has no mean: it would be the mean of something else.
    """
    measured: dict[tuple[str, str], list[tuple[str, Result]]] = {}
    for arm in arms:
        for result in (result for run in arm.runs for result in run.results):
            if _value(result) is not None:
                same_set = measured.setdefault((result.task, result.set_digest), [])
                same_set.append((arm.name, result))
    values: dict[str, dict[str, list[float]]] = {arm.name: {} for arm in arms}
    draws: dict[str, dict[str, list[np.ndarray]]] = {arm.name: {} for arm in arms}
    for (key, _), found in measured.items():
        task = find_task(key)
        drawn = paired_replicates(task, task.main_metric or "", [r for _, r in found], seed=seed)
        for (name, result), replicates in zip(found, drawn, strict=True):
            values[name].setdefault(key, []).append(_value(result) or 0.0)
            draws[name].setdefault(key, []).append(replicates)
    tasks = list(dict.fromkeys(key for key, _ in measured))
    table: dict[str, dict[str, tuple[list[float], np.ndarray]]] = {}
    for arm in arms:
        mine, row = values[arm.name], {}
        for key in (key for key in tasks if key in mine):
            row[key] = (mine[key], np.mean(draws[arm.name][key], axis=0))
        if tasks and all(len(mine.get(key, ())) == len(arm.runs) for key in tasks):
            means = np.mean([mine[key] for key in tasks], axis=0).tolist()
            row[MEAN] = (means, np.mean([row[key][1] for key in tasks], axis=0))
        table[arm.name] = row
    return table


def _value(result: Result) -> float | None:
    metric = find_task(result.task).main_metric
    return result.metrics.get(metric) if metric else None


def _against(
    cell: Cell,
    replicates: np.ndarray,
    control_values: Sequence[float],
    control_replicates: np.ndarray,
) -> Cell:
    """Add the difference to the control, with both kinds of noise in its interval."""
    from scipy.stats import t

    difference = cell.value - float(np.mean(control_values))
    groups = [np.asarray(cell.seeds), np.asarray(control_values)]
    if min(map(len, groups)) < 2:
        return Cell(cell.value, cell.interval, cell.seeds, difference)
    parts = [float(g.var(ddof=1)) / len(g) for g in groups]
    test_variance = float(np.var(replicates - control_replicates))
    spread = sum(parts)
    freedom = (
        spread**2 / sum(p**2 / (len(g) - 1) for p, g in zip(parts, groups, strict=True))
        if spread > 0
        else math.inf
    )
    reach = math.hypot(
        float(t.ppf(0.975, freedom)) * math.sqrt(spread) if spread > 0 else 0.0,
        1.959964 * math.sqrt(test_variance),
    )
    interval = (difference - reach, difference + reach)
    return Cell(
        cell.value,
        cell.interval,
        cell.seeds,
        difference,
        interval,
        interval[0] > 0 or interval[1] < 0,
    )
