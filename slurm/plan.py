"""A sweep as a plan: arms x axes -> points, each with its config, its stages and its key.

An axis that an arm does not read has no effect on its keys, so its points fall together into one.
"""

import gc
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass
class Plan:
    """All points in the order of arms and axes, each once.

    Args:
        points: Of one arm no two have the same key.
        labels: Rows of the table.
        rows: (arm, place) -> label of the row that stands for it.
        controls: Arm -> the arm that is its control.
    """

    points: list[Point]
    labels: list[str] = field(default_factory=list)
    rows: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)
    controls: Mapping[str, str] = field(default_factory=dict)

    def control_of(self, label: str, control: str) -> str | None:
        """The control's row that stands at every place where `label` stands; none if several do.

        Args:
            label: Of a row.
            control: The arm that is the control of those that have none of their own.
        """
        places = {at for at, name in self.rows.items() if name == label}
        found = {self.rows.get((self.controls.get(arm, control), place)) for arm, place in places}
        return found.pop() if len(found) == 1 else None


def expand(
    composer: Composer,
    arms: dict[str, dict[str, Any]],
    axes: dict[str, list[Any]],
    encoders: Mapping[int, Mapping[str, str]],
) -> list[Point]:
    """Every arm at every point of the axes.

    Args:
        composer: Of the sweep's base config.
        arms: Name -> settings.
        axes: Key -> values; keys that an arm's config does not have are not read by it.
        encoders: Seed -> checkpoint and config of the sweep's own encoder; empty where it trains none.

    Raises:
        ConfigError: A setting of an arm does not exist, or an axis is read by no arm.
    """
    with _no_collection():
        points = list(_every(composer, arms, axes, encoders))
    read_by = {axis for point in points for axis in point.axes}
    if unread := sorted(set(axes) - read_by):
        raise ConfigError(
            f"no arm of the sweep reads the axis {unread[0]}: {', '.join(arms)}. "
            f"{_way_out(unread[0], arms, points)}"
        )
    return points


def _way_out(axis: str, arms: Mapping[str, dict[str, Any]], points: Iterable[Point]) -> str:
    """What to do about an axis that no arm reads."""
    from omegaconf import OmegaConf

    if fixed := [arm for arm, settings in arms.items() if axis in settings]:
        return f"{', '.join(fixed)} set it to one value. Take it out of there."
    configs: list[Any] = [OmegaConf.to_container(point.config) for point in points]
    keys = {key for config in configs for key in flat(config)}
    if axis in keys:
        return "Remove it."
    return f"Remove it, or correct its spelling. {nearest(axis, keys)}"


def require_sets(points: Iterable[Point]) -> None:
    """Refuse evaluation sets that are not there before anything is read or trained for them.

    Raises:
        ConfigError: Their folder does not exist.
    """
    from evaluation.stage import Sets

    stages = [node.stage for point in points for node in point.last.inputs.values()]
    for root in dict.fromkeys(stage.root for stage in stages if isinstance(stage, Sets)):
        Sets(root).require_folder()


def _every(
    composer: Composer,
    arms: dict[str, dict[str, Any]],
    axes: dict[str, list[Any]],
    encoders: Mapping[int, Mapping[str, str]],
) -> Iterator[Point]:
    known, shared = groups(), SharedStages()
    base = int(composer.config({}).seed) if encoders else 0
    for arm, settings in arms.items():
        for values in itertools.product(*axes.values()):
            here = dict(zip(axes, values, strict=True))
            encoder = encoders.get(int((here | settings).get(SEED, base)))
            config = composer.config(here | settings, [k for k in axes if k not in settings], encoder)
            # What an arm fixes is its place on that axis, if the axis has it.
            pinned = {k: v for k, v in settings.items() if v in axes.get(k, ())}
            place = tuple(str(v) for k, v in (here | pinned).items() if k != SEED)
            here = {k: v for k, v in here.items() if k not in settings and _reads(config, k, known)}
            yield Point(arm, here, config, shared.of(config), "", int(config.seed), place)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage while configs are made: all of them stay, and looking takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _reads(config: Any, axis: str, known: dict[str, list[str]]) -> bool:
    return has(config, axis) or axis.split("@")[0] in known


def distinct(points: list[Point], store: Store, controls: Mapping[str, str] | None = None) -> Plan:
    """The points of each arm with different keys, labelled by the axes that make their keys differ.

    Two arms that come to the same keep a row each, and one run serves both.

    The pool must be indexed, so that keys are known. `controls` are the grid's.
    """
    with store.steady():
        keys = [store.key(point.last) for point in points]
    assert all(keys), "the pool is indexed"
    alike = _same_controls(points, list(map(str, keys)), controls or {})
    controls = {arm: alike.get(name, name) for arm, name in (controls or {}).items()}
    wanted = [(p, key) for p, key in zip(points, keys, strict=True) if p.arm not in alike]
    points, keys = [point for point, _ in wanted], [key for _, key in wanted]
    stands_for: dict[tuple[str, str], Point] = {}
    for point, key in zip(points, keys, strict=True):
        stands_for.setdefault((point.arm, str(key)), point)
    kept = list(stands_for.values())
    by_arm: dict[str, list[Point]] = defaultdict(list)
    for point in kept:
        by_arm[point.arm].append(point)
    vary = {arm: _varying(siblings) for arm, siblings in by_arm.items()}
    for point in kept:
        varying = [axis for axis in point.axes if axis in vary[point.arm]]
        names = {axis: axis.rsplit(".", 1)[-1] for axis in varying}
        for axis, name in names.items():
            shared = list(names.values()).count(name) > 1
            point.label += f" {axis if shared else name}={point.axes[axis]}"
        point.label = point.arm + point.label
    _check_labels(kept)
    rows: dict[tuple[str, tuple[str, ...]], str] = {}
    for point, key in zip(points, keys, strict=True):
        rows.setdefault((point.arm, point.place), stands_for[point.arm, str(key)].label)
    return Plan(kept, list(dict.fromkeys(point.label for point in kept)), rows, controls)


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


def _varying(siblings: list[Point]) -> set[str]:
    """The axes in which the points of one arm differ, but for the seed."""
    axes = {axis for point in siblings for axis in point.axes} - {SEED}
    return {axis for axis in axes if len({str(point.axes.get(axis)) for point in siblings}) > 1}


def _check_labels(points: list[Point]) -> None:
    """Refuse two runs of one name and seed: a row of the table would mix them."""
    seen: set[tuple[str, int]] = set()
    for point in points:
        if (point.label, point.seed) in seen:
            raise ConfigError(
                f"two different runs are called {point.label!r} with seed {point.seed}. Rename one "
                "of the arms (sweep.arms)."
            )
        seen.add((point.label, point.seed))


def check_compute(plan: Plan, unequal: bool) -> None:
    """Refuse arms of one comparison whose steps, batch, model or evaluation differ.

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
        here = {
            "train.samples_seen": train.samples_seen,
            "train.batch_size": train.batch_size,
            "model": str(train.model),
            **{
                f"evaluate.{name}": str(value)
                for name, value in point.config.evaluate.items()
                if name in EVALUATION
            },
        }
        if first is None:
            first = (point.label, here)
        for name, value in here.items():
            if value != first[1][name]:
                raise ConfigError(
                    f"arms {first[0]!r} and {point.label!r} are not compute-matched: {name} is "
                    f"{first[1][name]} and {value}. Make them equal, or say "
                    "sweep.unequal_compute=true if that is the point."
                )
