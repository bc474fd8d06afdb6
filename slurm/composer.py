"""The configs of many points that share most of their choices, and their stages.

Hydra composes once for each distinct choice of groups. All else happens in memory: a point's values are
set in a copy of the resolved config, and what is interpolated from them is brought up to date.
"""

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dbp.config import close, compose, groups
from dbp.curate import read, recipe
from dbp.engine.stage import Node
from dbp.errors import ConfigError, nearest
from dbp.verbs.command_line import USES
from dbp.verbs.command_line import overrides as spelled_out

LINK = re.compile(r"\$\{([A-Za-z_]\w*(?:\.\w+)*)\}")


@dataclass(frozen=True)
class Template:
    """One choice of groups.

    Args:
        open: Its config with interpolations.
        closed: The config without them, pickled: a deep copy takes seven times as long.
        links: Key -> the key whose value it takes.
    """

    open: Any
    closed: bytes
    links: dict[str, str]


class Composer:
    """Composes the configs of many points that share most of their choices."""

    def __init__(self, base: list[str], config_dirs: list[str]) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self.base, self.config_dirs, self.known = base, config_dirs, groups()
        parse = OverridesParser.create().parse_override
        self.values = [(made.key_or_group, made.value()) for made in map(parse, filter(self._is_value, base))]
        self.composed: dict[tuple[str, ...], Template] = {}
        self.made: dict[str, Any] = {}

    def config(
        self, settings: dict[str, Any], optional: Iterable[str] = (), encoder: Mapping[str, str] | None = None
    ) -> Any:
        """The resolved config with some settings changed; one object for equal settings, to be read alone.

        Args:
            settings: Key or group -> value.
            optional: Keys that are left out, instead of refused, where the config has none such.
            encoder: Checkpoint and config for each encoder that names no weights of its own.

        Raises:
            ConfigError: A setting does not exist.
        """
        from omegaconf import OmegaConf

        choices = {
            k: v
            for k, v in settings.items()
            if (k.split("@")[0] in self.known and isinstance(v, str))
            or (k.startswith("encoder.") and k.count(".") == 1)
        }
        chosen = tuple(spelled_out([f"{k}={v}" for k, v in choices.items()]))
        if chosen not in self.composed:
            self.composed[chosen] = self._template(chosen)
        template = self.composed[chosen]
        values = {key: value for key, value in settings.items() if key not in choices}
        for key in list(values):
            if not has(template.open, key):
                if key not in optional:
                    parent, _, last = key.rpartition(".")
                    node = OmegaConf.select(template.open, parent) if parent else template.open
                    names = [str(n) for n in node if n != "_target_"] if hasattr(node, "keys") else []
                    raise ConfigError(f"{key} is not a setting here. {nearest(last, names) if names else ''}")
                del values[key]
        name = repr((chosen, values, encoder))
        if name not in self.made:
            self.made[name] = _filled(template, values, encoder or {})
        return self.made[name]

    def _is_value(self, override: str) -> bool:
        """Whether an override sets a value; choices of groups, additions and deletions are for Hydra."""
        key = override.partition("=")[0]
        return key.split("@")[0] not in self.known and not key.startswith(("+", "~"))

    def _template(self, chosen: tuple[str, ...]) -> Template:
        from omegaconf import OmegaConf

        replaced = {choice.partition("=")[0] for choice in chosen}
        late = [o for o in self.base if not self._is_value(o) and o.partition("=")[0] not in replaced]
        config = compose("sweep", [*late, *chosen], self.config_dirs, resolve=False)
        for key, value in self.values:
            if has(config, key):
                OmegaConf.update(config, key, value, merge=True)
        closed = pickle.loads(pickle.dumps(config))
        close(closed)
        links = dict(_links(OmegaConf.to_container(config, resolve=False)))
        return Template(config, pickle.dumps(closed), links)


def _filled(template: Template, values: Mapping[str, Any], encoder: Mapping[str, str]) -> Any:
    from omegaconf import OmegaConf

    is_plain = not any("${" in str(text) for text in [*values.values(), *template.links.values()])
    config = pickle.loads(template.closed if is_plain else pickle.dumps(template.open))
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    if is_plain:
        # A link may lead to another, so that changes are followed until none is left.
        changed, left = list(values), {k: v for k, v in template.links.items() if k not in values}
        while changed:
            source = changed.pop()
            for key in [key for key, target in left.items() if _touch(source, target)]:
                OmegaConf.update(config, key, OmegaConf.select(config, left.pop(key)))
                changed.append(key)
    if encoder:
        for one in _encoders(config):
            # A network of no name and no file, as encoder=local_clip leaves it.
            if has(one, "checkpoint") and one.checkpoint is None and one.model is None:
                one.update(encoder)
    if not is_plain:
        close(config)
    return config


def _encoders(config: Any) -> Iterable[Any]:
    """The encoders of the recipe, and those that components hold themselves."""
    yield from (config.encoder[use] for use in USES)
    holders = [
        *(config.get(slot) for slot in ("captioner", "dedup", "score")),
        *(config.get("scores") or {}).values(),
    ]
    for one in holders:
        if one is not None and has(one, "encoder") and one.encoder is not None:
            yield one.encoder
    if (online := config.get("online")) is not None and has(online, "reference"):
        yield online.reference


def _touch(changed: str, target: str) -> bool:
    """Whether a changed key is the target, a part of it, or holds it."""
    return f"{target}.".startswith(f"{changed}.") or f"{changed}.".startswith(f"{target}.")


def _links(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    """Each interpolation below a config with its key: what it names, or its text where it is more."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _links(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from ((key, f"${{{text}}}") for _, text in _links(inner, key))
    elif isinstance(value, str) and "${" in value:
        found = LINK.fullmatch(value)
        yield key, found.group(1) if found else value


def has(config: Any, key: str) -> bool:
    """Whether a config has a key, without following interpolations."""
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
    from training.train import node_of

    nodes = recipe(read(config))
    nodes["train"] = node_of(config, nodes)
    evaluate = build(config.evaluate, Evaluate, "evaluate")
    nodes["evaluate"] = evaluate.bind(checkpoint=nodes["train"], sets=sets_node(config))
    return nodes


class SharedStages:
    """The stages of many points, each stage on equal inputs once: its key is then found once."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[Any, ...], Node] = {}
        self.points: dict[int, tuple[Any, dict[str, Node]]] = {}

    def of(self, config: Any) -> dict[str, Node]:
        """All stages of one point."""
        if id(config) not in self.points:
            made: dict[int, Node] = {}
            nodes = {name: self._share(node, made) for name, node in stages(config).items()}
            self.points[id(config)] = config, nodes
        return self.points[id(config)][1]

    def _share(self, node: Node, made: dict[int, Node]) -> Node:
        if id(node) not in made:
            inputs = {name: self._share(up, made) for name, up in node.inputs.items()}
            # The text of a stage holds all its fields, those that are not hashable, too.
            name = (type(node.stage), repr(node.stage), *((n, id(up)) for n, up in inputs.items()))
            made[id(node)] = self.nodes.setdefault(name, Node(node.stage, inputs))
        return made[id(node)]
