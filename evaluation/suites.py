"""Named lists of tasks, and the groups whose means stand in tables.

A group is a set of tasks averaged into one column; its mean is complete only with every member.
The columns are DataComp's: ImageNet, ImageNet dist. shifts (6), VTAB (13), Retrieval (3) and
Average (38, all scored tasks alike), plus the plain mean of the glyphs tasks.
"""

from collections.abc import Sequence

from dbp.errors import ConfigError, nearest
from evaluation.tasks import Task, find_task, load_tasks

# Small sets of several kinds; together 2 % of the whole suite's time by DataComp's own list.
QUICK = (
    "imagenetv2",
    "cifar10",
    "vtab/dtd",
    "vtab/eurosat",
    "retrieval/flickr_1k_test_image_text_retrieval",
)


def groups() -> dict[str, tuple[str, ...]]:
    """List the members of every group, by column name, in the order of DataComp's table.

    Source:
        DataComp, `aggregate_scores.py`: plain means, no weights.
    """
    tasks = load_tasks().values()
    columns = ("ImageNet", "ImageNet dist. shifts", "VTAB", "Retrieval", "Glyphs")
    members = {column: tuple(t.key for t in tasks if t.group == column) for column in columns}
    glyphs = members.pop("Glyphs")
    return members | {"Average": tuple(t.key for t in tasks if t.in_average), "Glyphs": glyphs}


def suites() -> dict[str, tuple[str, ...]]:
    """List the tasks of every named suite."""
    members = groups()
    return {
        "imagenet": members["ImageNet"],
        "imagenet_shifts": members["ImageNet dist. shifts"],
        "vtab": members["VTAB"],
        "retrieval": members["Retrieval"],
        "datacomp38": members["Average"],
        "glyphs": members["Glyphs"],
        "quick": QUICK,
    }


def resolve_suite(suite: str | Sequence[str]) -> list[Task]:
    """Turn the name of a suite, of a task, or a list of both into tasks.

    Args:
        suite: As `datacomp38`, `vtab,imagenet1k`, or `["vtab/dtd", "glyphs"]`.

    Returns:
        Each task once, in the order first named.

    Raises:
        ConfigError: A name is neither a suite nor a task, or nothing is named.
    """
    names = suite.split(",") if isinstance(suite, str) else suite
    names = [name.strip() for name in names if name.strip()]
    known = suites()
    if not names:
        raise ConfigError(f"suite={suite!r} names no task. Suites: {', '.join(sorted(known))}.")
    keys: dict[str, None] = {}
    for name in names:
        if name not in known and name not in load_tasks():
            near = nearest(name, [*known, *load_tasks()])
            raise ConfigError(f"suite={name} is neither a suite nor a task. {near}")
        keys.update(dict.fromkeys(known.get(name, (name,))))
    return [find_task(key) for key in keys]
