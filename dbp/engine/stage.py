"""What a stage is, and what names its result.

A stage is a frozen dataclass: its fields are parameters, `needs` names its input artifacts, `version`
counts changes of meaning, `run` does the work. Bound to its inputs it is a `Node`, and a node's key
is `sha256(stage, version, parameters, identities of inputs)` over canonical JSON of typed values.

Laws (tests/laws/test_stage_keys.py): any parameter that changes the answer changes the key; any
runtime parameter (batch size, device, workers, paths) does not; a parameter that was added later
leaves old keys alone while it stays at its default.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from dbp.engine.work import Work
from dbp.names import name_of


def runtime(default: Any = dataclasses.MISSING, *, default_factory: Any = dataclasses.MISSING) -> Any:
    """A field that changes the speed or the place, never the answer, and so stays out of the key."""
    return field(default=default, default_factory=default_factory, metadata={"runtime": True})


@runtime_checkable
class Offered(Protocol):
    """What a curation offers by name (`dbp/offers.py`)."""

    def __getitem__(self, name: str) -> "Node | None": ...

    def named(self, group: str) -> list[str]: ...

    def beside(self, **made: Any) -> "Offered": ...

    def bind(self, stage: "Stage") -> "Node": ...


@dataclass(frozen=True)
class Stage:
    """One step from input artifacts to one artifact."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()  # inputs that it may have beside; without them its key is as before
    makes: ClassVar[type]
    home: ClassVar[str] = "store"  # or "runs": the folder tree that keeps the result
    opens_with: ClassVar[tuple[str, ...]] = ()  # the inputs that `open` needs, of a finished one
    content_named: ClassVar[bool] = False  # downstream keys use the content digest, not the key

    def run(self, work: Work, **inputs: Any) -> dict[str, Any]:
        """Write the artifact into `work.folder`; return counts for the manifest."""
        raise TypeError(f"{type(self).__name__} does not say how it runs")

    def open(self, home: Path, **inputs: Any) -> Any:
        """Load the artifact from the folder that `run` wrote."""
        return self.makes.load(home)

    def source(self) -> dict[str, Any]:
        """What names an input from outside the store, such as the sizes of shards."""
        return {}

    def accept(self, counts: Mapping[str, Any]) -> None:
        """Refuse a result of other counts than the user expects, or that settings outside the key do not allow.

        Called before the result is committed, and when a committed one is taken or a result that rests on it.
        Opening by key alone asks nothing.
        """

    def unneeded(self) -> set[str]:
        """Those of `needs` that these parameters do not read; they are not built."""
        return set()

    def offered_as(self, need: str) -> str:
        """What a curation calls what this stage needs as `need`: the same, unless a setting says another."""
        return need

    def upstream(self, offers: "Offered") -> "Mapping[str, Node | None]":
        """What this stage has made for itself, by name: some of `needs`, and what else a user may ask for."""
        return {}

    def bind(self, **inputs: "Node | None") -> "Node":
        """Bind this stage to the nodes that it needs."""
        if unknown := set(inputs) - {*self.needs, *self.takes}:
            raise TypeError(f"{type(self).__name__} has no input {sorted(unknown)}")
        if missing := set(self.needs) - set(inputs):
            raise TypeError(f"{type(self).__name__} needs {sorted(missing)}")
        return Node(self, {name: node for name, node in inputs.items() if node is not None})


@dataclass(frozen=True, eq=False)
class Node:
    """A stage bound to its inputs: one vertex of the graph that ends in a keep list."""

    stage: Stage
    inputs: Mapping[str, "Node"]

    def lineage(self) -> list["Node"]:
        """This node and all it rests on, inputs first, each once."""
        seen: dict[int, Node] = {}

        def visit(node: Node) -> None:
            if id(node) not in seen:
                for upstream in node.inputs.values():
                    visit(upstream)
                seen[id(node)] = node

        visit(self)
        return list(seen.values())


def parameters(value: Any) -> dict[str, Any]:
    """The parameters of a dataclass that decide its result, as plain typed values.

    Runtime fields are left out, and fields that have a default in code while they are at it. A
    dataclass with a method `identity` (an encoder: the digest of its weights) adds what it returns;
    one with a method `unread` names fields that do not matter beside the others (the seed, when
    members are taken by distance), so that arms that differ in nothing else are one arm.
    """
    found: dict[str, Any] = {}
    unread = value.unread() if hasattr(value, "unread") else set()
    for item in dataclasses.fields(value):
        if item.metadata.get("runtime") or item.name in unread:
            continue
        current = getattr(value, item.name)
        if item.default is not dataclasses.MISSING and current == item.default:
            continue
        if item.default_factory is not dataclasses.MISSING and current == item.default_factory():
            continue
        found[item.name] = plain(current)
    if callable(identity := getattr(value, "identity", None)):
        found |= plain(identity())
    return found


def runtime_parameters(value: Any) -> dict[str, Any]:
    """The fields that stay out of the key, for the manifest's reader."""
    return {
        item.name: plain(getattr(value, item.name))
        for item in dataclasses.fields(value)
        if item.metadata.get("runtime")
    }


def describe(value: Any) -> Any:
    """A stage as JSON from which `rebuild` makes it again, runtime fields included."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {item.name: describe(getattr(value, item.name)) for item in dataclasses.fields(value) if item.init}
        return {"_target_": name_of(kind), **fields}
    if isinstance(value, Mapping):
        return {str(name): describe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return plain(value)


def rebuild(described: Any) -> Any:
    """The stage that `describe` described.

    Raises:
        ConfigError: This version of the program has no such stage, or other fields.
    """
    from dbp.config import build

    return build(described)


def plain(value: Any) -> Any:
    """A value as JSON knows it, dataclasses with their type's name."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a parameter is {value}; parameters must be finite")
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value):
        named = getattr(type(value), "key_name", type(value).__name__)
        return {"type": named, **parameters(value)}
    raise TypeError(f"{type(value).__name__} cannot be part of a key")


def canonical(value: Any) -> bytes:
    """The one JSON text of a plain value: sorted names, no blanks, ASCII, finite numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def key_of(stage: Stage, inputs: Mapping[str, str]) -> str:
    """The content identity of a stage's result, given the identities of its inputs."""
    described = {
        "stage": stage.name,
        "version": stage.version,
        "parameters": parameters(stage),
        "source": stage.source(),
        "inputs": dict(inputs),
    }
    return hashlib.sha256(canonical(described)).hexdigest()[:24]
