"""The tasks that can be evaluated: DataComp's 40 and those of the glyphs pool.

The facts stand in `tasks.csv`. A task with a main metric and `in_average` is one of DataComp's 38;
FairFace and UTKFace have no main metric, so they run and are in no average.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dbp.errors import ConfigError, nearest

KINDS = ("classification", "retrieval", "wilds", "fairness", "winogavil")


@dataclass(frozen=True)
class Task:
    """One dataset with one main metric.

    Args:
        key: Name in commands and results, as `vtab/dtd`.
        name: Name in tables, as `Describable Textures`.
        kind: How it is scored, one of `KINDS`.
        main_metric: The metric that stands in tables and averages; none for the two face sets.
        group: DataComp's column that it belongs to besides the average, if any.
        in_average: Whether it is one of the 38 tasks of DataComp's average.
        test_size: Samples of the full test set, where it is fixed.
        num_classes: Classes, where it is a fixed number.
        folder: Name of its folder under the root of the sets.
    """

    key: str
    name: str
    kind: str
    main_metric: str | None
    group: str | None
    in_average: bool
    test_size: int | None
    num_classes: int | None
    folder: str


@cache
def load_tasks() -> dict[str, Task]:
    """Read the table of tasks, by key, in the order of DataComp's list.

    Source:
        DataComp's `tasklist.yml` for keys, names, sizes and main metrics; `DATASET_GROUPS` of its
        `aggregate_scores.py` for the groups.
    """
    with Path(__file__).with_name("tasks.csv").open(encoding="utf-8", newline="") as file:
        return {row["key"]: _parse(row) for row in csv.DictReader(file)}


def find_task(key: str) -> Task:
    """Look a task up by its key.

    Raises:
        ConfigError: There is no such task; names the nearest one.
    """
    tasks = load_tasks()
    if key not in tasks:
        raise ConfigError(f"There is no task '{key}'. {nearest(key, tasks)}")
    return tasks[key]


def _parse(row: dict[str, str]) -> Task:
    assert row["kind"] in KINDS, row
    return Task(
        key=row["key"],
        name=row["name"],
        kind=row["kind"],
        main_metric=row["main_metric"] or None,
        group=row["group"] or None,
        in_average=row["in_average"] == "yes",
        test_size=int(row["test_size"]) if row["test_size"] else None,
        num_classes=int(row["num_classes"]) if row["num_classes"] else None,
        folder=row["folder"],
    )
