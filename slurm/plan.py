"""A sweep as a plan: arms x axes -> points, each with its config, its stages and its key.

Configs are composed once for each distinct choice of groups; plain values are set in memory. An axis
that an arm does not read has no effect on its keys, so its points fall together into one.
"""

import copy
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dbp.command_line import USES
from dbp.command_line import overrides as spelled_out
from dbp.config import compose, groups
from dbp.curate import read, recipe
from dbp.errors import ConfigError, nearest
from dbp.stage import Node
from dbp.store import Store

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
    """

    points: list[Point]
    labels: list[str] = field(default_factory=list)
    rows: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)

    def control_of(self, label: str, control: str) -> str | None:
        """The control's row that stands at every place where `label` stands; none if several do."""
        places = {place for (_, place), name in self.rows.items() if name == label}
        found = {self.rows.get((control, place)) for place in places}
        return found.pop() if len(found) == 1 else None


class Composer:
    """Composes the configs of many points that share most of their choices."""

    def __init__(self, base: list[str], config_dirs: list[str]) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self.base, self.config_dirs = base, config_dirs
        known = groups()
        read = OverridesParser.create().parse_override
        self.values = [
            (made.key_or_group, made.value())
            for made in (read(o) for o in base if _is_value(o.partition("=")[0], known))
        ]
        self.composed: dict[tuple[str, ...], Any] = {}

    def config(
        self,
        settings: dict[str, Any],
        optional: Iterable[str] = (),
        encoder: Mapping[str, str] | None = None,
    ) -> Any:
        """The resolved config with some settings changed.

        Args:
            settings: Key or group -> value.
            optional: Keys that are left out, instead of refused, where the config has none such.
            encoder: Checkpoint and config for each encoder that names no weights of its own.

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
        chosen = tuple(spelled_out([f"{k}={v}" for k, v in choices.items()]))
        if chosen not in self.composed:
            replaced = {choice.partition("=")[0] for choice in chosen}
            late = [o for o in _late(self.base, known) if o.partition("=")[0] not in replaced]
            self.composed[chosen] = compose(
                "sweep", [*late, *chosen], self.config_dirs, resolve=False
            )
        config = copy.deepcopy(self.composed[chosen])
        for key, value in self.values:
            if _has(config, key):
                OmegaConf.update(config, key, value, merge=True)
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
        for use in USES if encoder else ():
            if _lacks_weights(config.encoder[use]):
                config.encoder[use].update(encoder)
        OmegaConf.resolve(config)
        return config


def _is_value(key: str, known: dict[str, list[str]]) -> bool:
    return key.lstrip("+~").split("@")[0] not in known and not key.startswith(("+", "~"))


def _lacks_weights(encoder: Any) -> bool:
    """Whether it is a network of no name and no file, as encoder=local_clip leaves it."""
    return _has(encoder, "checkpoint") and encoder.checkpoint is None and encoder.model is None


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
    encoder: Mapping[str, str],
) -> list[Point]:
    """Every arm at every point of the axes.

    Args:
        composer: Of the sweep's base config.
        arms: Name -> settings.
        axes: Key -> values; keys that an arm's config does not have are not read by it.
        encoder: Checkpoint and config of the sweep's own encoder; empty where it trains none.

    Raises:
        ConfigError: A setting of an arm does not exist, or an axis is read by no arm.
    """
    known = groups()
    points: list[Point] = []
    read_by: set[str] = set()
    for arm, settings in arms.items():
        for values in itertools.product(*axes.values()):
            here = dict(zip(axes, values, strict=True))
            config = composer.config(
                here | settings, [k for k in axes if k not in settings], encoder
            )
            # What an arm fixes is its place on that axis, if the axis has it.
            pinned = {k: v for k, v in settings.items() if v in axes.get(k, ())}
            place = tuple(str(v) for k, v in (here | pinned).items() if k != SEED)
            here = {k: v for k, v in here.items() if k not in settings and _reads(config, k, known)}
            read_by |= set(here)
            points.append(Point(arm, here, config, stages(config), "", int(config.seed), place))
    if unread := set(axes) - read_by:
        raise ConfigError(
            f"no arm of the sweep reads the axis {sorted(unread)[0]}: {', '.join(arms)}. Remove it, or "
            "correct its spelling."
        )
    return points


def _reads(config: Any, axis: str, known: dict[str, list[str]]) -> bool:
    return _has(config, axis) or axis.split("@")[0] in known


def distinct(points: list[Point], store: Store) -> Plan:
    """The points of each arm with different keys, labelled by the axes that make their keys differ.

    Two arms that come to the same keep a row each, and one run serves both.

    The pool must be indexed, so that keys are known.
    """
    keys = [store.key(point.last) for point in points]
    assert all(keys), "the pool is indexed"
    stands_for: dict[tuple[str, str], Point] = {}
    for point, key in zip(points, keys, strict=True):
        stands_for.setdefault((point.arm, str(key)), point)
    kept = list(stands_for.values())
    for point in kept:
        siblings = [other for other in kept if other.arm == point.arm]
        varying = [
            axis
            for axis in point.axes
            if axis != SEED and len({str(other.axes.get(axis)) for other in siblings}) > 1
        ]
        names = {axis: axis.rsplit(".", 1)[-1] for axis in varying}
        for axis, name in names.items():
            shared = list(names.values()).count(name) > 1
            point.label += f" {axis if shared else name}={point.axes[axis]}"
        point.label = point.arm + point.label
    _check_labels(kept)
    rows: dict[tuple[str, tuple[str, ...]], str] = {}
    for point, key in zip(points, keys, strict=True):
        rows.setdefault((point.arm, point.place), stands_for[point.arm, str(key)].label)
    return Plan(kept, list(dict.fromkeys(point.label for point in kept)), rows)


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
