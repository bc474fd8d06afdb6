"""Named lists of tasks, and the groups whose means stand in tables.

A group is a set of tasks averaged into one column; its mean is complete only with every member.
The columns are DataComp's: ImageNet, ImageNet dist. shifts (6), VTAB (13), Retrieval (3) and
Average (38, all scored tasks alike), plus the plain mean of the glyphs tasks.

A suite is what is evaluated. `datacomp38` is DataComp's whole list of 40, of which 38 count. A suite of the
user is a YAML file in the folder `suites` of a config folder. Two suites follow papers; what those papers
evaluate and nothing here can read stands in `missing_members`, to be named wherever such a suite is planned or
averaged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dbp.errors import ConfigError, nearest
from evaluation.kinds.base import Kind
from evaluation.kinds.registry import find_kind
from evaluation.tasks import Task, find_task, load_tasks, own_facts, register

# Small sets of several kinds; together 2 % of the whole suite's time by DataComp's own list.
QUICK = ("imagenetv2", "cifar10", "vtab/dtd", "vtab/eurosat", "retrieval/flickr_1k_test_image_text_retrieval")

# Xu et al. 2023 (MetaCLIP), Table 4, in its order. The same datasets; its splits and prompts are SLIP's
# and may differ from those here.
METACLIP26 = (
    "imagenet1k",
    "food101",
    "cifar10",
    "vtab/cifar100",
    "sun397",
    "cars",
    "fgvc_aircraft",
    "vtab/dtd",
    "vtab/pets",
    "vtab/caltech101",
    "vtab/flowers",
    "mnist",
    "fer2013",
    "stl10",
    "vtab/eurosat",
    "vtab/resisc45",
    "gtsrb",
    "vtab/kitti_closest_vehicle_distance",
    "country211",
    "vtab/pcam",
    "vtab/clevr_count_all",
    "renderedsst2",
)

# Abbas et al. 2023 (SemDeDup), Table A4, in its order.
SEMDEDUP24 = (
    "cars",
    "country211",
    "fgvc_aircraft",
    "gtsrb",
    "imagenet1k",
    "mnist",
    "renderedsst2",
    "stl10",
    "sun397",
    "voc2007",
    "vtab/caltech101",
    "vtab/cifar100",
    "cifar10",
    "vtab/clevr_closest_object_distance",
    "vtab/clevr_count_all",
    "vtab/dmlab",
    "vtab/dtd",
    "vtab/eurosat",
    "vtab/flowers",
    "vtab/kitti_closest_vehicle_distance",
    "vtab/pcam",
    "vtab/pets",
    "vtab/resisc45",
    "vtab/svhn",
)

# Members of a suite that no set in a known layout exists for, by their names in the paper.
MISSING = {"metaclip26": ("CUB", "UCF101", "Kinetics700", "HatefulMemes")}

_own: dict[str, tuple[str, ...]] = {}  # suites of the user that this process has met: the tasks by their keys


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
    """List the tasks of every named suite, those of the user last."""
    return {**_published(), **_own}


def _published() -> dict[str, tuple[str, ...]]:
    members = groups()
    return {
        "imagenet": members["ImageNet"],
        "imagenet_shifts": members["ImageNet dist. shifts"],
        "vtab": members["VTAB"],
        "retrieval": members["Retrieval"],
        "datacomp38": tuple(task.key for task in load_tasks().values() if task.in_datacomp),
        "metaclip26": METACLIP26,
        "semdedup24": SEMDEDUP24,
        "glyphs": members["Glyphs"],
        "quick": QUICK,
    }


def missing_members(suite: str | Sequence[str]) -> tuple[str, ...]:
    """Name what a suite has in its paper and nothing here can read; a mean without it says so.

    Args:
        suite: As `resolve_suite` takes it.
    """
    names = (name for part in _names(suite) for name in MISSING.get(part, ()))
    return tuple(dict.fromkeys(names))


def resolve_suite(suite: str | Sequence[str]) -> list[Task]:
    """Turn the name of a suite, of a task, or a list of both into tasks.

    Args:
        suite: As `datacomp38`, `vtab,imagenet1k`, or `["vtab/dtd", "glyphs"]`.

    Returns:
        Each task once, in the order first named; without the suite's `missing_members`.

    Raises:
        ConfigError: A name is neither a suite nor a task, or nothing is named.
    """
    names, known = _names(suite), suites()
    if twice := set(known) & set(load_tasks()):
        raise ConfigError(f"tasks.{min(twice)}: there is a suite of this name. Give the YAML file another name.")
    if not names:
        raise ConfigError(f"suite={suite!r} names no task. Suites: {', '.join(sorted(known))}.")
    keys: dict[str, None] = {}
    for name in names:
        if name not in known and name not in load_tasks():
            near = nearest(name, [*known, *load_tasks()])
            raise ConfigError(f"suite={name} is neither a suite nor a task. {near}")
        keys.update(dict.fromkeys(known.get(name, (name,))))
    return [find_task(key) for key in keys]


def register_suites(members: Mapping[str, Any]) -> None:
    """Make suites of the user known in this process, by name.

    Raises:
        ConfigError: A name is that of a suite of ours or of a task, or a member is not a task or a suite of ours.
    """
    for name, listed in members.items():
        if name in _published() or name in load_tasks() or "," in name:
            raise ConfigError(f"suites.{name}: no suite of the user can have this name. Rename the YAML file.")
        if not listed or isinstance(listed, str) or not isinstance(listed, Sequence):
            raise ConfigError(f"suites.{name}={listed!r}: it must be a list of tasks, tasks: [NAME, …].")
        known, keys = _published(), list[str]()
        for member in map(str, listed):
            if member not in known and member not in load_tasks():
                near = nearest(member, [*known, *load_tasks()])
                raise ConfigError(f"suites.{name}: its member {member!r} is neither a task nor a suite. {near}")
            keys += known.get(member, (member,))
        _own[name] = tuple(dict.fromkeys(keys))


def own_parts(
    tasks: Mapping[str, Mapping[str, Any]], named: Mapping[str, Any], suite: str | Sequence[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Make tasks and suites of the user known, and keep those that a suite holds: others are not evaluated.

    Raises:
        ConfigError: A task or a suite is wrong, or a kind is not there or takes no names from a YAML file.
    """
    register(tasks)
    register_suites(named)
    held = resolve_suite(suite)
    for task in held:
        kind = find_kind(task.kind, f"tasks.{task.key}.kind")
        if task.given and kind.open.__func__ is not Kind.open.__func__:  # type: ignore[attr-defined]
            raise ConfigError(
                f"tasks.{task.key}.{min(task.given)} is given, and kind={task.kind} opens its sets in another way. "
                "Take it out of the YAML file, or choose another kind."
            )
    return own_facts(task.key for task in held), {name: list(_own[name]) for name in _names(suite) if name in _own}


def _names(suite: str | Sequence[str]) -> list[str]:
    names = suite.split(",") if isinstance(suite, str) else suite
    return [name.strip() for name in names if name.strip()]
