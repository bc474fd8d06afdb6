"""A sweep as a plan: arms x axes -> points, each with its config, its stages and its key.

An axis that an arm does not read has no effect on its keys, so its points fall together into one.
"""

import gc
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbp.config import groups
from dbp.engine.stage import Node
from dbp.engine.store import Store
from dbp.errors import ConfigError, nearest
from dbp.planning.plan import flat
from slurm.composer import Composer, SharedStages, has

SEED = "seed"
EVALUATION = ("suite", "protocol", "limit", "max_templates", "seed", "precision")


@dataclass
class Point:
    """One arm at one point of the axes.

    Args:
        arm: Its name.
        axes: Key -> value, of the axes that its config has.
        config: Composed and resolved.
        nodes: Its stages.
        label: Name of its row in the table, over all seeds.
        seed: The config's.
        place: The values of all axes but the seed, read or not, as text.
    """

    arm: str
    axes: dict[str, Any]
    config: Any
    nodes: dict[str, Node]
    label: str = ""
    seed: int = 0
    place: tuple[str, ...] = ()

    @property
    def last(self) -> Node:
        return self.nodes["evaluate"]

    def container(self) -> dict[str, Any]:
        """Its config as another process gets it, where a text with `${` is escaped."""
        from omegaconf import OmegaConf

        found: Any = OmegaConf.to_container(self.config, resolve=False)
        return found


@dataclass
class Plan:
    """All points in the order of arms and axes, each once.

    Args:
        points: Of one arm no two have the same key.
        rows: (arm, place) -> label of the row that stands for it.
        controls: Arm -> the arm that is its control.
    """

    points: list[Point]
    rows: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)
    controls: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Rows of the table."""
        return list(dict.fromkeys(point.label for point in self.points))

    def control_of(self, label: str, control: str) -> str | None:
        """The control's row that stands at every place where `label` stands; none if several do.

        `control` is the control of the arms that have none of their own.
        """
        places = {at for at, name in self.rows.items() if name == label}
        found = {self.rows.get((self.controls.get(arm, control), place)) for arm, place in places}
        return found.pop() if len(found) == 1 else None


def _of_arm(arm: str, arms: dict[str, dict[str, Any]], error: ConfigError) -> ConfigError:
    """What an arm's config lacks, with the arm's name; and the way out where all arms are given what some read."""
    found = re.match(r"(([\w@]+)[\w.@]*)=(.*) is not a setting of", str(error))
    if found is None:
        return type(error)(f"arm {arm} of the sweep: {error}")
    key, group, value = found.groups()
    if key in arms[arm]:
        return ConfigError(f"arm {arm} of the sweep: {error}")
    own = arms[arm].get(group)
    other = next((name for name, settings in arms.items() if settings.get(group) != own), "NAME")
    return ConfigError(
        f"arm {arm} of the sweep has {group}={own}: {error} It is set for all arms. Take it out of there, and set "
        f"it in the arms that read it, as +sweep.arms.{other}.{key}={value} does."
    )


def expand(
    composer: Composer,
    arms: dict[str, dict[str, Any]],
    axes: dict[str, list[Any]],
    encoders: Mapping[int, Mapping[str, str]],
) -> list[Point]:
    """Every arm at every point of the axes, of which an arm reads those whose keys its config has.

    `encoders` has the checkpoint and config of the sweep's own encoder for each seed; empty where it trains none.

    Raises:
        ConfigError: A setting of an arm does not exist, or an axis is read by no arm.
    """
    known, shared, points = groups(), SharedStages(), list[Point]()
    base = int(composer.config({}).seed) if encoders else 0
    was_on = gc.isenabled()
    gc.disable()  # all configs stay, so looking for garbage takes a third of the time and finds none
    try:
        for arm, settings in arms.items():
            for values in itertools.product(*axes.values()):
                here = dict(zip(axes, values, strict=True))
                encoder = encoders.get(int((here | settings).get(SEED, base)))
                config = composer.config(here | settings, [k for k in axes if k not in settings], encoder)
                # What an arm fixes is its place on that axis, if the axis has it.
                pinned = {k: v for k, v in settings.items() if v in axes.get(k, ())}
                place = tuple(str(v) for k, v in (here | pinned).items() if k != SEED)
                reads = (k for k in here if k not in settings and (has(config, k) or k.split("@")[0] in known))
                own = {k: here[k] for k in reads}
                try:
                    nodes = shared.of(config)
                except ConfigError as error:
                    raise _of_arm(arm, arms, error) from error
                points.append(Point(arm, own, config, nodes, "", int(config.seed), place))
    finally:
        if was_on:
            gc.enable()
    read_by = {axis for point in points for axis in point.axes}
    if unread := sorted(set(axes) - read_by):
        axis, way_out = unread[0], "Remove it."
        keys = {key for point in points for key in flat(point.container())}
        if fixed := [arm for arm, settings in arms.items() if axis in settings]:
            way_out = f"{', '.join(fixed)} set it to one value. Take it out of there."
        elif axis not in keys:
            way_out = f"Remove it, or correct its spelling. {nearest(axis, keys)}"
        raise ConfigError(f"no arm of the sweep reads the axis {axis}: {', '.join(arms)}. {way_out}")
    return points


def require_unseen(points: Iterable[Point], store: Store) -> None:
    """Refuse points that could train on samples of their evaluation sets, where their pool is indexed.

    Raises:
        ConfigError: A set was made from this pool, and `hold_out` leaves some of its samples in.
    """
    from evaluation.checks.held_out import require_held_out, uid_files
    from evaluation.stage import Evaluate, Sets
    from evaluation.suites import resolve_suite

    checked = set[tuple[Node, str, str]]()
    for point in points:
        evaluate = point.last.stage
        if not isinstance(evaluate, Evaluate):
            continue
        sets, valid = point.last.inputs["sets"].stage, point.nodes["valid"]
        root = sets.root if isinstance(sets, Sets) else ""  # rendered: sets of the user lie elsewhere
        if (valid, str(evaluate.suite), root) in checked:
            continue
        checked.add((valid, str(evaluate.suite), root))
        files = uid_files(resolve_suite(evaluate.suite), Path(root))
        if files and store.entry(point.nodes["index"]) is not None:
            pool, left = store.get(point.nodes["index"]), store.get(valid).mask
            require_held_out(pool, left, files, point.config.get("hold_out"))


def distinct(points: list[Point], store: Store, controls: Mapping[str, str] | None = None) -> Plan:
    """The points of each arm with different keys, labelled by the axes that make their keys differ.

    Two arms that come to the same keep a row each, and one run serves both.

    The pool must be indexed, so that keys are known. `controls` are the grid's.
    """
    with store.steady():
        keys = [str(store.key(point.last)) for point in points]
    assert "None" not in keys, "the pool is indexed"
    alike = _same_controls(points, keys, controls or {})
    controls = {arm: alike.get(name, name) for arm, name in (controls or {}).items()}
    wanted = [(point, key) for point, key in zip(points, keys, strict=True) if point.arm not in alike]
    axes = {axis for point, _ in wanted for axis in point.axes}
    stands_for: dict[tuple[str, str], Point] = {}
    for point, key in wanted:
        stands_for.setdefault((point.arm, key), point)
    values: dict[tuple[str, str], set[str]] = defaultdict(set)  # of each arm on each axis
    for point in stands_for.values():
        for axis in axes:
            values[point.arm, axis].add(str(point.axes.get(axis)))
    seen: set[tuple[str, int]] = set()
    for point in stands_for.values():
        varying = [axis for axis in point.axes if axis != SEED and len(values[point.arm, axis]) > 1]
        names = [axis.rsplit(".", 1)[-1] for axis in varying]
        for axis, name in zip(varying, names, strict=True):
            point.label += f" {axis if names.count(name) > 1 else name}={point.axes[axis]}"
        point.label = point.arm + point.label
        if (point.label, point.seed) in seen:  # a row of the table would mix them
            raise ConfigError(
                f"two different runs are called {point.label!r} with seed {point.seed}. Rename one "
                "of the arms (sweep.arms)."
            )
        seen.add((point.label, point.seed))
    rows: dict[tuple[str, tuple[str, ...]], str] = {}
    for point, key in wanted:
        rows.setdefault((point.arm, point.place), stands_for[point.arm, key].label)
    return Plan(list(stands_for.values()), rows, controls)


def _same_controls(points: list[Point], keys: list[str], controls: Mapping[str, str]) -> dict[str, str]:
    """Controls that come to the same runs as an earlier one -> that one, which stands for both."""
    names = set(controls.values())
    runs: dict[str, dict[tuple[Any, ...], str]] = {}  # in the order of the arms
    for point, key in zip(points, keys, strict=True):
        if point.arm in names:
            runs.setdefault(point.arm, {})[(*point.place, point.seed)] = key
    first: dict[frozenset[Any], str] = {}
    for name, made in runs.items():
        first.setdefault(frozenset(made.items()), name)
    return {name: stands for name, made in runs.items() if (stands := first[frozenset(made.items())]) != name}


def check_compute(plan: Plan, unequal: bool) -> None:
    """Refuse arms of one comparison whose budget, batch, model or evaluation differ.

    With `train.budget=flops` their steps differ, and the work of a run is equal up to less than a step.

    Raises:
        ConfigError: It names two arms and what differs.
    """
    if unequal:
        return
    epochs = next((e for p in plan.points if (e := p.config.train.epochs) is not None), None)
    if epochs is not None and len(plan.labels) > 1:
        raise ConfigError(
            f"train.epochs={epochs:g} gives each arm as many steps as its kept rows make, so arms are "
            "not compute-matched. Give train.samples_seen, or say sweep.unequal_compute=true if that "
            "is the point."
        )
    first: tuple[str, dict[str, Any]] | None = None
    for point in plan.points:
        train: Any = point.nodes["train"].stage
        here = {f"train.{name}": getattr(train, name) for name in ("samples_seen", "batch_size", "budget")}
        here |= {"model": str(train.model)}
        here |= {f"evaluate.{k}": str(v) for k, v in point.config.evaluate.items() if k in EVALUATION}
        first = first or (point.label, here)
        for name, value in here.items():
            if value != first[1][name]:
                raise ConfigError(
                    f"arms {first[0]!r} and {point.label!r} are not compute-matched: {name} is "
                    f"{first[1][name]} and {value}. Make them equal, or say "
                    "sweep.unequal_compute=true if that is the point."
                )
