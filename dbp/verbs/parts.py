"""Drive long stages part by part, for any scheduler.

    dbp parts run stage=embed index=3 of=64 [key=value ...]     make every 64th part, from the fourth on
    dbp parts status [stage=NAME] [key=value ...]               parts done and to do, from files alone
    dbp parts verify [stage=NAME] [key=value ...]               read what is finished again, compare checksums

The settings are those of `dbp curate`, budget included (or `until=cluster`, which needs none): they say which
stages there are; `status` lists them in their order. What a stage rests on must be complete before its parts
can be made. Whoever makes the last part joins them, as `dbp curate` does. index=0 makes a stage without parts.
"""

import json
from typing import Any

from dbp.config import require
from dbp.engine.parts import Parted, make_one, unfinished
from dbp.engine.signs import at_work
from dbp.engine.stage import Node, key_of
from dbp.engine.store import Store
from dbp.engine.work import PART, Work, checksums
from dbp.errors import ConfigError, StoreError, WorldError, nearest

VERBS = ("run", "status", "verify")
OWN = ("stage", "index", "of")


def main(keys: list[str], folders: list[str], print_only: bool) -> int:
    """Run `dbp parts`."""
    from dbp.config import compose
    from dbp.curate import open_store, recipe
    from dbp.planning.wanted import UNTIL
    from dbp.settings import read
    from dbp.verbs.command_line import overrides

    if not keys or keys[0] not in VERBS:
        said = "".join(key for key in keys[:1] if "=" not in key)
        raise ConfigError(f"{f'dbp parts {said}'.strip()}: {nearest(said, VERBS)}")
    verb, rest = keys[0], keys[1:]
    own = dict(key.split("=", 1) for key in rest if key.partition("=")[0] in OWN and "=" in key)
    config = compose("curate", overrides([k for k in rest if k.split("=")[0] not in own]), folders)
    if print_only:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config))
        return 0
    require(config.until in UNTIL, "until", config.until, f"one of {', '.join(UNTIL)}")
    made = recipe(read(config))
    wanted = [made[config.until]] if config.until in made else made.values()
    nodes = _distinct([up for node in wanted for up in node.lineage()])
    if "stage" in own:
        names = {node.stage.name for node in nodes}
        nodes = [node for node in nodes if node.stage.name == own["stage"]]
        if not nodes:
            raise ConfigError(f"stage={own['stage']}: {nearest(own['stage'], names)}")
    store = open_store(config, lambda line: None)
    with store.steady():
        if verb == "verify":
            return verify(store, nodes)
        if verb == "status":
            print(*(status(store, node) for node in nodes), sep="\n")
            return 0
        if "stage" not in own:
            parted = {node.stage.name for node in nodes if _has_parts(node)}
            raise ConfigError(f"dbp parts run needs stage=NAME. {', '.join(sorted(parted))} have parts")
        own = {"index": "0", "of": "1", **own}
        for name in ("index", "of"):
            require(own[name].isdecimal(), name, own[name], "a whole number")
        index, of = int(own["index"]), int(own["of"])
        require(of >= 1, "of", of, "at least 1")
        require(0 <= index < of, "index", index, f"from 0 to of - 1 = {of - 1}")
        run(store, nodes, index, of)
        return 0


def run(store: Store, nodes: list[Node], index: int, of: int) -> None:
    """Make every `of`-th part of stages of one name, and join the parts of those that are complete then.

    Raises:
        StoreError: Each of them rests on something that is missing.
    """
    waiting = {}
    for node in nodes:
        if store.entry(node) is None and (missing := _missing(store, node)) is not None:
            waiting[node] = missing
        else:
            print(_run(store, node, index, of))
    if len(waiting) == len(nodes):
        up = next(iter(waiting.values()))
        raise StoreError(
            f"{_label(nodes[0])} rests on {_label(up)}, which is not complete in {store.root}. Make it first: "
            f"dbp parts run stage={up.stage.name}, or dbp curate with the same settings"
        )
    for node, up in waiting.items():
        print(f"{_label(node)} waits for {_label(up)}")


def _run(store: Store, node: Node, index: int, of: int) -> str:
    label, stage = _label(node), node.stage
    if store.entry(node) is None and not _has_parts(node):
        if index:
            return f"{label} {store.key(node)} has no parts; index=0 makes it"
        store.get(node)
    if store.entry(node) is not None:
        return f"{label} {store.key(node)} is complete"
    assert isinstance(stage, Parted), "it has parts"
    inputs = {name: store.get(up) for name, up in node.inputs.items()}
    work, parts = _work(store, node), stage.parts(**inputs)
    mine, made = parts[index::of], 0
    try:
        with at_work(work.shared, (str(store.key(up)) for up in node.inputs.values())):
            for part in unfinished(work, mine):
                make_one(stage, work, part, inputs)
                made += 1
        if store.entry(node) is None and not unfinished(work, parts):
            store.get(node)
    except FileNotFoundError as error:  # another process completed it, and took the parts away
        if store.entry(node) is None:
            raise StoreError(f"{label}: {error.filename} was removed. Run the same command again.") from error
    left = 0 if store.entry(node) is not None else len(unfinished(work, parts))
    then = f"{left} of {len(parts)} left" if left else "complete"
    return f"{label} {work.key}: {made} of {len(mine)} parts made here, {then}"


def status(store: Store, node: Node) -> str:
    """One line: parts done and to do."""
    key, stage = store.key(node), node.stage
    line = f"{_label(node):<14} {key or '':<24} "
    if store.entry(node) is not None:
        return f"{line}complete"
    if (missing := _missing(store, node)) is not None:
        return f"{line}waits for {_label(missing)}"
    if not _has_parts(node):
        return f"{line}to do, in one piece"
    assert isinstance(stage, Parted), "it has parts"
    parts = stage.parts(**{name: store.get(up) for name, up in node.inputs.items()})
    done = len(parts) - len(unfinished(_work(store, node), parts))
    return f"{line}{done} of {len(parts)} parts done"


def verify(store: Store, nodes: list[Node]) -> int:
    """Read every finished artifact and part again and compare with what was recorded.

    Raises:
        WorldError: Something differs; it names the files.
    """
    damaged, files = [], 0
    for node in nodes:
        entry = store.entry(node)
        found: dict[Any, dict[str, int]] = {}
        if entry is not None:
            found[entry.folder] = entry.manifest.get("crc32", {})
        elif store.key(node) is not None and _has_parts(node):
            for record in _work(store, node).shared.glob(f"[!.]*/{PART}"):
                try:
                    found[record.parent] = json.loads(record.read_text())["crc32"]
                except (OSError, ValueError):  # cut short: not finished, and made again
                    continue
        for folder, recorded in found.items():
            now = checksums(folder, recorded)
            files += len(recorded)
            damaged += [str(folder / name) for name in recorded if now.get(name) != recorded[name]]
    if damaged:
        raise WorldError(
            f"{len(damaged)} of {files:,} files are not as they were written: {', '.join(damaged[:5])}. Remove "
            "their folders and run the same command again; only they are made anew."
        )
    print(f"{files:,} files are as they were written")
    return 0


def _has_parts(node: Node) -> bool:
    return isinstance(node.stage, Parted) and not node.stage.in_one_piece


def _distinct(nodes: list[Node]) -> list[Node]:
    """Nodes without those that make what an earlier one makes; inputs stand before what they are for."""
    marks: dict[int, str] = {}
    first: dict[str, Node] = {}
    for node in nodes:
        mark = key_of(node.stage, {name: marks[id(up)] for name, up in node.inputs.items()})
        first.setdefault(marks.setdefault(id(node), mark), node)
    return list(first.values())


def _missing(store: Store, node: Node) -> Node | None:
    """What must be made before a node can be: the first thing whose own inputs are complete."""
    for up in node.inputs.values():
        if store.entry(up) is None:
            return _missing(store, up) or up
    return None


def _work(store: Store, node: Node) -> Work:
    key = store.key(node)
    assert key is not None, "its inputs are complete"
    return Work(shared := store.shared(node, key), shared, key)


def _label(node: Node) -> str:
    return f"{node.stage.name} {getattr(node.stage, 'side', None) or ''}".rstrip()
