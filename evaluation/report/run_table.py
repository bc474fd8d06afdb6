"""From results to group means and a table of text.

A mean over fewer tasks than its group has is another number than the group's: it is marked
incomplete wherever it is shown, with the members that are missing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics.measures import metric_replicates
from evaluation.results import Failure, Result
from evaluation.statistics.significance import NUM_RESAMPLES, percentile_interval
from evaluation.suites import groups
from evaluation.tasks import find_task


@dataclass(frozen=True)
class GroupMean:
    """The plain mean of the main metrics of a group's tasks."""

    group: str  # name of the column
    value: float | None  # mean over the members at hand, in [0, 1]; none if there is none
    interval: tuple[float, float] | None  # 95 %, over test samples; none without per-sample outcomes of each member
    members: tuple[str, ...]  # keys of all tasks of the group
    missing: tuple[str, ...]  # those without a value here
    limited: tuple[str, ...]  # those that were not measured on the task's whole set

    @property
    def is_complete(self) -> bool:
        """Whether it is the group's mean, and neither a part of it nor an estimate."""
        return not self.missing and not self.limited


def average(
    results: Sequence[Result],
    group: str,
    members: Sequence[str],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> GroupMean:
    """Average the main metrics of some tasks, for one checkpoint under one protocol.

    The interval comes from resampling each task's samples on its own: the tasks' test sets are
    independent, so the r-th replicates of all tasks are averaged into the r-th of the mean.

    Raises:
        ValueError: A task has two results: they are of several checkpoints or protocols.
    """
    found = {result.task: result for result in results}
    if len(found) < len(results):
        (twice, number), *_ = Counter(result.task for result in results).most_common(1)
        raise ValueError(
            f"Cannot average: {twice} has {number} results. Give those of one "
            "checkpoint under one protocol at a time."
        )
    values: list[float] = []
    replicates: list[np.ndarray] = []
    missing: list[str] = []
    for key in members:
        task = find_task(key)
        metric = task.main_metric
        value = found[key].metrics.get(metric) if key in found and metric is not None else None
        if value is None or metric is None:
            missing.append(key)
            continue
        values.append(value)
        if outcomes := found[key].outcomes:
            replicates.append(metric_replicates(task, metric, outcomes, seed=seed, num_resamples=num_resamples))
    has_outcomes = bool(values) and len(replicates) == len(values)
    return GroupMean(
        group,
        float(np.mean(values)) if values else None,
        percentile_interval(np.mean(replicates, axis=0)) if has_outcomes else None,
        tuple(members),
        tuple(missing),
        tuple(key for key in members if key in found and found[key].part),
    )


def group_means(results: Sequence[Result], *, seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> list[GroupMean]:
    """Average every group that has a member among the results, in the order of DataComp's table."""
    means = (
        average(results, group, members, seed=seed, num_resamples=num_resamples)
        for group, members in groups().items()
    )
    return [mean for mean in means if mean.value is not None]


def format_results(results: Sequence[Result], failures: Sequence[Failure] = (), protocol: str = "corrected") -> str:
    """Lay the results of one checkpoint out as text: tasks, means with their members, failures.

    Args:
        results: Of one checkpoint, under one protocol or more.
        failures: Tasks that gave no result, and why.
        protocol: Which one to show; tasks whose main metric differs under another are named.
    """
    shown = [result for result in results if result.protocol == protocol]
    lines = [f"{'task':<32} {'metric':<22} {'value':>6}  {'95 % interval':<16} pictures"]
    for result in shown:
        task = find_task(result.task)
        interval = result.intervals.get(task.main_metric) if task.main_metric is not None else None
        size = f"{result.num_samples:,}" + (f" ({result.part})" if result.part else "")
        lines.append(_row(task.name, task.main_metric or "-", _main(result), interval, size))
    for mean in group_means(shown):
        present = [key for key in mean.members if key not in mean.missing]
        name = mean.group if mean.is_complete else f"{mean.group} (INCOMPLETE)"
        size = f"{len(present)} of {len(mean.members)}"
        lines += ["", _row(name, "mean", mean.value, mean.interval, size), f"  mean of: {_names(present)}"]
        lines += [f"  missing: {_names(mean.missing)}"] if mean.missing else []
        lines += [f"  not on the whole sets: {_names(mean.limited)}"] if mean.limited else []
    values = {result.task: _main(result) for result in shown}
    differing = [
        f"under protocol={other.protocol}: {find_task(other.task).name} {_number(_main(other))}, "
        f"not {_number(values[other.task])}"
        for other in results
        if other.protocol != protocol and other.task in values and _main(other) != values[other.task]
    ]
    lines += ["", *differing] if differing else []
    return "\n".join([*lines, *(f"failed: {find_task(one.task).name}: {one.reason}" for one in failures)])


def _main(result: Result) -> float | None:
    metric = find_task(result.task).main_metric
    return None if metric is None else result.metrics.get(metric)


def _names(keys: Sequence[str]) -> str:
    return ", ".join(find_task(key).name for key in keys)


def _row(name: str, metric: str, value: float | None, interval: tuple[float, float] | None, size: str) -> str:
    reach = "-" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]"
    return f"{name:<32} {metric:<22} {_number(value):>6}  {reach:<16} {size}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
