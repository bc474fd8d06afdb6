"""What a run needs and does not find, all of it, before any work.

A stage, or a part of one (an encoder, a filter of a chain, a model), that needs more than its inputs has a
method `lacks(inputs)`: it gives an error for each thing that is not at hand, and a text for what the user
should know before a long run. It loads and reads next to nothing. What is wrong with a key (shards, lists,
checkpoints that are not there) is found by asking for the key.
"""

import dataclasses
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dbp.engine.stage import Node, parameters
from dbp.engine.store import Store
from dbp.errors import DbpError, MissingError, WorldError
from dbp.planning.amounts import bytes_text
from dbp.planning.outlook import Outlook, same_once


def require(store: Store, wanted: Sequence[Node], to_come: Collection[str] = ()) -> None:
    """Stop if something that a run needs is not at hand; print what else should be known.

    Args:
        store: What is finished there needs nothing.
        wanted: What the run makes.
        to_come: Files that the run will have made by then.

    Raises:
        DbpError: All that is missing.
    """
    found, notes = missing(store, wanted, to_come)
    for note in notes:
        print(f"note: {note}")
    refuse(found)


def refuse(found: Sequence[DbpError]) -> None:
    """Raise an error that names each thing in a line, and the way out of each kind once.

    Raises:
        DbpError: One is missing: that itself. Several are missing: a `WorldError`.
    """
    if len(found) == 1:
        raise found[0]
    if found:
        lines = [one.what if isinstance(one, MissingError) else str(one) for one in found]
        ways = dict.fromkeys(one.way_out for one in found if isinstance(one, MissingError))
        raise WorldError("\n".join([f"{len(found)} things are missing, and nothing was begun:", *lines, *ways]))


def missing(
    store: Store, wanted: Sequence[Node], to_come: Collection[str] = ()
) -> tuple[list[DbpError], list[str]]:
    """Everything that is not at hand, each once, and what else should be known; the arguments are `require`'s."""
    of_keys, of_nodes = dict[str, DbpError](), list[list[DbpError]]()
    notes: dict[str, None] = {}
    to_build: dict[Node, None] = {}
    late = _resting_on(wanted, to_come)
    left, seen = list(wanted), set[Node]()
    with store.steady():
        while left:
            node = left.pop()
            if node in seen:
                continue
            seen.add(node)
            there = key = None
            if node not in late:
                try:
                    key, there = store.key(node), store.entry(node)
                except DbpError as error:
                    of_keys.setdefault(str(error), error)
            if there is None:
                to_build[node] = None
                of_nodes.insert(0, [])  # nodes are met from the last to the first; a reader begins with the pool
                for one in _lacks(node, to_come):
                    if isinstance(one, str):
                        notes[one] = None
                    elif key is not None or not _may_be_there(store, node):
                        of_nodes[0].append(one)
            left += [up for name, up in node.inputs.items() if there is None or name in node.stage.opens_with]
        space = list(_space(store, [node for node in to_build if node not in late]))
    found = {str(one): one for one in [*of_keys.values(), *(one for own in of_nodes for one in own), *space]}
    return list(found.values()), list(notes)


def parts_of(value: Any) -> Iterator[Any]:
    """A dataclass and those that it holds, in fields, lists of them, and the steps of a chain."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from parts_of(item)
    elif dataclasses.is_dataclass(value):
        yield value
        for item in dataclasses.fields(value):
            yield from parts_of(getattr(value, item.name, None))
        if callable(steps := getattr(value, "steps", None)):
            yield from parts_of(steps())


def _lacks(node: Node, to_come: Collection[str]) -> Iterator[DbpError | str]:
    for part in parts_of(node.stage):
        if callable(lacks := getattr(part, "lacks", None)) and getattr(part, "checkpoint", None) not in to_come:
            found: Any = lacks(node.inputs)
            yield from found


def _resting_on(wanted: Sequence[Node], to_come: Collection[str]) -> set[Node]:
    """The nodes whose keys are not known before files are there that the run makes."""
    late: set[Node] = set()
    for node in dict.fromkeys(up for last in wanted for up in last.lineage()) if to_come else ():
        own = any(getattr(part, "checkpoint", None) in to_come for part in parts_of(node.stage))
        if own or any(up in late for up in node.inputs.values()):
            late.add(node)
    return late


def _may_be_there(store: Store, node: Node) -> bool:
    """Whether a key that only the index of the pool will tell may be that of an artifact of the same settings."""
    with suppress(DbpError):
        ours = parameters(node.stage)
        entries = (entry for entry in store.entries() if entry.stage == node.stage.name)
        return any(entry.manifest["parameters"] == ours for entry in entries)
    return False


def _space(store: Store, to_build: Sequence[Node]) -> Iterator[MissingError]:
    """Disks with less space than the plan says that stages will write to them."""
    outlook, needed = Outlook(store, quick=True), dict[int, tuple[Path, float]]()
    with suppress(Exception):  # no estimate that fails may stop a run
        to_build = list(dict.fromkeys(same_once(to_build)))
    for node in to_build:
        with suppress(Exception):
            if effort := outlook.effort(node):
                home = store.runs if node.stage.home == "runs" else store.root
                disk = next(folder for folder in (home, *home.parents) if folder.exists())
                device = os.stat(disk).st_dev
                needed[device] = home, needed.get(device, (home, 0.0))[1] + float(effort.bytes_written)
    for home, size in needed.values():
        disk = next(folder for folder in (home, *home.parents) if folder.exists())
        if size > (free := shutil.disk_usage(disk).free):
            what = f"disk space in {home}: the plan writes {bytes_text(size)}, and {bytes_text(free)} are free"
            way_out = "Free space (`dbp gc` lists what may go), or give another folder with paths.store=FOLDER."
            yield MissingError(what, way_out)
