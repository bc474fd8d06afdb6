"""A sweep as a plan: arms x axes -> points, each with its config, its stages and its key.

Configs are composed once for each distinct choice of groups; plain values are set in memory. An axis
that an arm does not read has no effect on its keys, so its points fall together into one.
"""

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dbp.command_line import overrides as spelled_out
from dbp.config import compose, groups
from dbp.curate import read, recipe
from dbp.errors import ConfigError, nearest
from dbp.stage import Node
from dbp.store import Store

SEED = "seed"


@dataclass
class Point:
    """One arm at one point of the axes."""

    arm: str
    axes: dict[str, Any]
    config: Any
    nodes: dict[str, Node]
    label: str = ""
    seed: int = 0

    @property
    def last(self) -> Node:
        return self.nodes["evaluate"]


@dataclass
class Plan:
    """All points, duplicates by key removed, in the order of arms and axes."""

    points: list[Point]
    labels: list[str] = field(default_factory=list)


class Composer:
    """Composes the configs of many points that share most of their choices."""

    def __init__(self, base: list[str], config_dirs: list[str]) -> None:
        self.base, self.config_dirs = base, config_dirs
        self.composed: dict[tuple[str, ...], Any] = {}

    def config(self, settings: dict[str, Any], optional: Iterable[str] = ()) -> Any:
        """The resolved config with some settings changed.

        Args:
            settings: Key or group -> value.
            optional: Keys that are left out, instead of refused, where the config has none such.

        Raises:
            ConfigError: A setting does not exist.
        """
        from omegaconf import OmegaConf

        known = groups()
        choices = {
            k: v
            for k, v in settings.items()
            if (k.split("@")[0] in known and isinstance(v, str))
            or (k.startswith("encoder.") and k.count(".") == 1)
        }
        given = [o for o in self.base if o.partition("=")[0] not in choices]
        chosen = tuple(spelled_out([f"{k}={v}" for k, v in choices.items()]))
        if chosen not in self.composed:
            self.composed[chosen] = compose(
                "sweep", _late(given, known) + list(chosen), self.config_dirs, resolve=False
            )
        config = copy.deepcopy(self.composed[chosen])
        for override in given:
            key, _, value = override.partition("=")
            if _is_value(key, known) and not _has(config, key):
                continue
            if _is_value(key, known):
                OmegaConf.update(config, key, OmegaConf.create(f"v: {value}").v if value else None)
        for key, value in settings.items():
            if key in choices:
                continue
            if not _has(config, key):
                if key in optional:
                    continue
                parent, _, last = key.rpartition(".")
                node = OmegaConf.select(config, parent) if parent else config
                names = [str(n) for n in node if n != "_target_"] if hasattr(node, "keys") else []
                raise ConfigError(
                    f"{key} is not a setting here. {nearest(last, names) if names else ''}"
                )
            OmegaConf.update(config, key, value)
        OmegaConf.resolve(config)
        return config


def _is_value(key: str, known: dict[str, list[str]]) -> bool:
    return key.lstrip("+~").split("@")[0] not in known and not key.startswith(("+", "~"))


def _late(given: list[str], known: dict[str, list[str]]) -> list[str]:
    """The overrides that Hydra must see: choices of groups, additions and deletions."""
    return [o for o in given if not _is_value(o.partition("=")[0], known)]


def _has(config: Any, key: str) -> bool:
    from omegaconf import DictConfig

    node = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node._content:  # type: ignore[operator]
            return False
        node = node._get_node(part)
    return True


def stages(config: Any) -> dict[str, Node]:
    """All stages of one point: curation's, then training and evaluation."""
    from dbp.config import build
    from evaluation.stage import Evaluate, sets_node
    from training.train import stage_of

    nodes = recipe(read(config))
    nodes["train"] = stage_of(config).bind(pool=nodes["index"], keep=nodes["select"])
    evaluate = build(config.evaluate, Evaluate, "evaluate")
    nodes["evaluate"] = evaluate.bind(checkpoint=nodes["train"], sets=sets_node(config))
    return nodes


def expand(
    composer: Composer,
    arms: dict[str, dict[str, Any]],
    axes: dict[str, list[Any]],
    common: dict[str, Any],
) -> list[Point]:
    """Every arm at every point of the axes.

    Args:
        composer: Of the sweep's base config.
        arms: Name -> settings.
        axes: Key -> values; keys that an arm's config does not have are not read by it.
        common: Settings of every arm.

    Raises:
        ConfigError: A setting of an arm does not exist, or an axis is read by no arm.
    """
    points: list[Point] = []
    read_by: set[str] = set()
    for arm, settings in arms.items():
        for values in itertools.product(*axes.values()):
            here = dict(zip(axes, values, strict=True))
            config = composer.config(
                common | here | settings, optional=[k for k in axes if k not in settings]
            )
            known = groups()
            here = {
                k: v
                for k, v in here.items()
                if k not in settings and (_has(config, k) or k.split("@")[0] in known)
            }
            read_by |= set(here)
            points.append(Point(arm, here, config, stages(config), seed=int(config.seed)))
    if unread := set(axes) - read_by:
        raise ConfigError(
            f"no arm of the sweep reads the axis {sorted(unread)[0]}: {', '.join(arms)}. Remove it, or "
            "correct its spelling."
        )
    return points


def distinct(points: list[Point], store: Store) -> Plan:
    """Points with different keys, labelled by the axes that make their keys differ.

    The pool must be indexed, so that keys are known.
    """
    keys = [store.key(point.last) for point in points]
    assert all(keys), "the pool is indexed"
    seen: set[str] = set()
    kept: list[Point] = []
    for point, key in zip(points, keys, strict=True):
        if key not in seen:
            seen.add(str(key))
            kept.append(point)
    for point in kept:
        siblings = [other for other in kept if other.arm == point.arm]
        varying = [
            axis
            for axis in point.axes
            if axis != SEED and len({str(other.axes.get(axis)) for other in siblings}) > 1
        ]
        point.label = " ".join([point.arm, *(f"{_tail(a)}={point.axes[a]}" for a in varying)])
    labels = list(dict.fromkeys(point.label for point in kept))
    return Plan(kept, labels)


def _tail(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def check_compute(plan: Plan, store: Store, unequal: bool) -> None:
    """Refuse arms of one comparison whose steps, batch, model or evaluation differ.

    Raises:
        ConfigError: It names two arms and what differs.
    """
    if unequal:
        return
    first: tuple[str, dict[str, Any]] | None = None
    for point in plan.points:
        train: Any = point.nodes["train"].stage
        here = {
            "train.samples_seen": train.samples_seen,
            "train.epochs": train.epochs,
            "train.batch_size": train.batch_size,
            "model": str(train.model),
            "evaluate.suite": str(point.config.evaluate.suite),
            "evaluate.protocol": point.config.evaluate.protocol,
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
