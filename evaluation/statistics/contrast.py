"""Two checkpoints on the same test samples: every task that both have, and the group means of those."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluation.results import Result
from evaluation.statistics.comparison import Paired, mean_pair, pair, why_not_comparable
from evaluation.statistics.significance import ALPHA, holm
from evaluation.suites import groups
from evaluation.tasks import find_task


@dataclass(frozen=True)
class Row:
    """A metric of a task, or the mean of a group, of two checkpoints."""

    name: str  # of the task or group
    metric: str  # or `mean of` how many of the group's tasks
    paired: Paired  # both on the same samples
    task: str | None = None  # its key; none for a group
    adjusted_p: float = 1.0  # after Holm's correction

    @property
    def verdict(self) -> str:
        """What may be said of the second checkpoint."""
        if self.adjusted_p > ALPHA:
            return "cannot tell"
        # Shares of harm are the only metrics of which less is better.
        is_up = (self.paired.difference > 0) != self.metric.startswith("toxicity_")
        return "better" if is_up else "worse"

    def facts(self) -> dict[str, Any]:
        """Every number, in [0, 1], for JSON."""
        one = self.paired
        return {
            "task": self.task, "name": self.name, "metric": self.metric, "first": one.first,
            "second": one.second, "difference": one.difference, "interval": one.interval,
            "p": one.p, "adjusted_p": self.adjusted_p, "verdict": self.verdict,
        }  # fmt: skip


def contrast(
    first: Sequence[Result], second: Sequence[Result], *, all_metrics: bool, seed: int, num_exchanges: int
) -> tuple[list[Row], list[tuple[str, str]]]:
    """Compare two checkpoints on every task that both have, and on the means of those.

    Args:
        first: One result or more of each task.
        second: The same of the other checkpoint.
        all_metrics: Whether to compare every metric, or each task's main one.
        seed: Of resamples and exchanges.
        num_exchanges: Of outcomes, for each p-value.

    Returns:
        What was compared, and the tasks that were not with the reasons.
    """
    rows: list[Row] = []
    refused: list[tuple[str, str]] = []
    for key in dict.fromkeys(one.task for one in (*first, *second)):
        own, other = ([r for r in side if r.task == key] for side in (first, second))
        if not own or not other:
            refused.append((key, f"only the {'first' if own else 'second'} has it"))
            continue
        reasons = [(why_not_comparable(a, b), a, b) for a in own for b in other]
        # Of several that can be compared, the one on most samples.
        reason, a, b = min(reasons, key=lambda r: (r[0] is not None, -r[1].num_samples))
        if reason is not None:
            refused.append((key, reason))
            continue
        names = [name for name in metrics_of(a, all_metrics) if b.metrics.get(name) is not None]
        if not names:
            refused.append((key, "it has no main metric; metrics=all compares its others"))
        for name in names:
            paired = pair(name, a, b, seed=seed, num_exchanges=num_exchanges)
            rows.append(Row(find_task(key).name, name, paired, key))
    return [*rows, *_means(rows)], refused


def metrics_of(result: Result, all_metrics: bool) -> list[str]:
    """The metrics of a result that have a value: every one, or the main one."""
    main = find_task(result.task).main_metric
    return [
        name
        for name, value in result.metrics.items()
        if value is not None and (name == main or (all_metrics and not name.startswith("count_")))
    ]


def _means(rows: Sequence[Row]) -> list[Row]:
    """The group means of the tasks that were compared; their names say how many are missing."""
    main = {row.task: row.paired for row in rows if row.task and row.metric == find_task(row.task).main_metric}
    found = []
    for group, members in groups().items():
        own = [main[key] for key in members if key in main]
        if len(own) > 1:
            name = group if len(own) == len(members) else f"{group} (INCOMPLETE)"
            found.append(Row(name, f"mean of {len(own)} of {len(members)}", mean_pair(own)))
    return found


def adjust(compared: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """Correct the p-values: all tasks of all comparisons together, and all group means together."""
    every = [row for rows in compared for row in rows]
    adjusted = np.ones(len(every))
    for is_task in (True, False):
        at = [i for i, row in enumerate(every) if (row.task is not None) == is_task]
        adjusted[at] = holm(np.array([every[i].paired.p for i in at]))
    values = iter(adjusted.tolist())
    return [[replace(row, adjusted_p=next(values)) for row in rows] for rows in compared]
