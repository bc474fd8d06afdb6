"""The tasks that can be evaluated: DataComp's 40, a few of CLIP_benchmark's, the glyphs pool's.

The facts stand in `tasks.csv`. A task with a main metric and `in_average` is one of DataComp's 38;
FairFace and UTKFace have no main metric, so they run and are in no average.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dbp.errors import ConfigError, nearest


@dataclass(frozen=True)
class Task:
    """One dataset with one main metric.

    Args:
        key: Name in commands and results, as `vtab/dtd`.
        name: Name in tables, as `Describable Textures`.
        kind: How it is scored, one of `evaluation/kinds/registry.py`.
        main_metric: The metric that stands in tables and averages; none for the two face sets.
        group: DataComp's column that it belongs to besides the average, if any.
        in_average: Whether it is one of the 38 tasks of DataComp's average.
        in_datacomp: Whether it is one of the 40 tasks of DataComp's list.
        test_size: Samples of the full test set, where it is fixed: pictures, or WinoGAViL's
            instances.
        num_classes: Classes, where it is a fixed number.
        num_templates: Lines of its templates file, where they were counted.
        folder: Name of its folder under the root of the sets, in DataComp's layout.
        clip_benchmark: What CLIP_benchmark calls it, as `wds/vtab/dtd`; none where it has no loader.
        chance: Expected value of the main metric for a random guess, in [0, 1]; none where it is not known.
        hub: Repository of its raw files on the Hub, for the tasks that DataComp reads from there.
    """

    key: str
    name: str
    kind: str
    main_metric: str | None
    group: str | None
    in_average: bool
    in_datacomp: bool
    test_size: int | None
    num_classes: int | None
    num_templates: int | None
    folder: str
    clip_benchmark: str | None
    hub: str | None
    chance: float | None


@cache
def load_tasks() -> dict[str, Task]:
    """Read the table of tasks, by key, in the order of DataComp's list.

    Source:
        DataComp's `tasklist.yml` for keys, names, sizes and main metrics; `DATASET_GROUPS` of its
        `aggregate_scores.py` for the groups. CLIP_benchmark's `webdatasets.txt` and packaged
        prompts for its names and the numbers of templates.
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
    """A line of the table; a cell without a value is none."""
    values: dict[str, Any] = {name: text or None for name, text in row.items()}
    for column in ("test_size", "num_classes", "num_templates"):
        values[column] = values[column] and int(values[column])
    for column in ("in_average", "in_datacomp"):
        values[column] = values[column] == "yes"
    if values["chance"]:
        values["chance"] = float(values["chance"])
    elif values["main_metric"] in ("acc1", "mean_per_class_recall") and values["num_classes"]:
        values["chance"] = 1 / values["num_classes"]  # what a uniform guess reaches
    return Task(**values)


def with_chance(label: str, chance: float | None) -> str:
    """A heading with the level of chance in percent, where it is known."""
    return label if chance is None else f"{label} (chance {100 * chance:.2g})"
