"""What is known of each stage of a graph before it runs: its sizes, its effort, and the machine it runs on.

Finished artifacts say their rows, width and clusters; what is not there yet follows from what it rests on.
Where a number of rows depends on what a stage will decide, the most that it can be is taken.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from dbp.clustering.kmeans import semdedup_num_clusters
from dbp.data.clusters import Clusters
from dbp.data.embeddings import Embeddings
from dbp.data.pool import Pool
from dbp.device import pick_device
from dbp.engine.parts import Parted
from dbp.engine.stage import Node, canonical, parameters
from dbp.engine.store import Entry, Store
from dbp.errors import BudgetError, ConfigError
from dbp.narrowing import Narrowing, PassAll
from dbp.planning.amounts import Number
from dbp.planning.effort import UNEVENNESS, Effort, Sizes
from dbp.planning.efforts import effort_of
from dbp.planning.from_files import pool_size, usual_width
from dbp.planning.machine import Machine, probe

HEADER = 128  # bytes of a .npy before its numbers


class Outlook:
    """The outcomes, sizes and efforts of the stages of a graph.

    Args:
        store: Where finished artifacts lie, and who makes the parts.
        seconds: That measuring the machine may take, and as much again if stages differ in threads.
        quick: Sizes alone: no sample is timed and no earlier run is looked for.
    """

    def __init__(self, store: Store, seconds: Number = 2.0, quick: bool = False) -> None:
        self.store, self.seconds, self.quick = store, seconds, quick
        self.notes: dict[str, None] = {}  # what was assumed, in order, each once
        self._outcomes: dict[Node, Sizes | None] = {}

    def outcome(self, node: Node) -> Sizes | None:
        """What a node leaves; None where not even the pool's rows are known."""
        if node not in self._outcomes:
            self._outcomes[node] = self._outcome(node)
        return self._outcomes[node]

    def sizes(self, node: Node) -> Sizes | None:
        """What reaches a node."""
        there = {name: found for name, up in node.inputs.items() if (found := self.outcome(up)) is not None}
        own = self.outcome(node)
        if own is None or len(there) < len(node.inputs):
            return None
        reaches = there.get("rows") or there.get("pool") or own
        clustering = there.get("clusters") or there.get("centroids") or own
        experience = self.experience(node)
        return Sizes(
            rows=reaches.rows if "rows" in there else own.pool_rows,
            pool_rows=own.pool_rows,
            width=sum(there[name].width for name in ("image", "text") if name in there) or own.width,
            clusters=clustering.clusters,
            unevenness=clustering.unevenness,
            pool_bytes=(there.get("pool") or own).pool_bytes,
            row_seconds=own.row_seconds if experience is None else experience[0],
            workers=self.workers(node),
            is_about=reaches.is_about,
        )

    def effort(self, node: Node) -> Effort | None:
        """What a node costs; None where its stage does not say, or its sizes are not known."""
        sizes = self.sizes(node)
        if sizes is None:
            return None
        stage: Any = node.stage
        if (entry := self.store.entry(node)) and "iterations" in entry.manifest["counts"]:
            stage = replace(stage, num_iterations=entry.manifest["counts"]["iterations"])
        return effort_of(stage, sizes)

    def experience(self, node: Node) -> tuple[float, Entry] | None:
        """Seconds of a row in the longest earlier run of the same encoder, or of the same stage."""
        if makes(node) is Pool or self.quick:
            return None
        ours = _made_by(parameters(node.stage))
        found = [
            (rows, made["seconds"] / rows, entry)
            for entry in self.entries
            if (made := entry.manifest)["stage"] == node.stage.name
            and made["version"] == node.stage.version
            and (rows := made["counts"].get("rows"))
            and _made_by(made["parameters"]) == ours
        ]
        return max(found, key=lambda item: item[0])[1:] if found else None

    @cached_property
    def entries(self) -> list[Entry]:
        """All that the store holds."""
        return list(self.store.entries())

    def workers(self, node: Node) -> int:
        """Processes that share a node's parts."""
        return int(getattr(self.store.runner, "workers", 1)) if isinstance(node.stage, Parted) else 1

    def machine(self, node: Node) -> Machine:
        """The machine, or machines, with the threads that a node's stage uses.

        Nodes of a cluster are taken to be like this machine, and to share its disk.
        """
        workers = self.workers(node)
        on_cluster = workers > 1 and hasattr(self.store.runner, "settings")
        lanes: int = getattr(node.stage, "threads", 1) * (1 if on_cluster else workers)
        found = probe(self.store.root, None if lanes == 1 else lanes, self._device(node), self.seconds)
        if on_cluster:
            self.notes[f"{workers} tasks of SLURM are taken to be like this machine"] = None
            return found.times(workers)
        return found

    def _device(self, node: Node) -> str:
        device = getattr(node.stage, "device", "cpu")
        try:
            return pick_device(device)
        except ConfigError:
            self.notes[f"device={device} is not on this machine; times are its processor's"] = None
            return "cpu"

    def _outcome(self, node: Node) -> Sizes | None:
        entry = self.store.entry(node)
        counts: dict[str, Any] = entry.manifest["counts"] if entry else {}
        if makes(node) is Pool:
            return self._pool(node, counts)
        if not node.inputs:  # a list that the user brought
            return Sizes(0, 0)
        before = [found for up in node.inputs.values() if (found := self.outcome(up)) is not None]
        if len(before) < len(node.inputs):
            return None
        rows = self.outcome(node.inputs["rows"]) if "rows" in node.inputs else None
        reached = rows or before[0]
        own = Sizes(reached.rows, before[0].pool_rows, is_about=reached.is_about)
        if isinstance(node.stage, Narrowing):
            return self._narrowed(node, own, counts)
        if makes(node) is Embeddings:
            return replace(own, width=self._width(node, entry))
        if "clusters" in counts:
            k = int(counts["clusters"])
            return replace(own, clusters=k, unevenness=counts.get("unevenness", UNEVENNESS))
        fitted = [found.clusters for found in before if found.clusters]
        if makes(node) is Clusters and fitted:
            return replace(own, clusters=fitted[0])
        if (wanted := getattr(node.stage, "num_clusters", None)) is not None:
            k = semdedup_num_clusters(own.rows) if wanted == "auto" else int(wanted)
            return replace(own, clusters=min(k, max(own.rows, 1)))
        return own

    def _pool(self, node: Node, counts: dict[str, Any]) -> Sizes | None:
        if rows := counts.get("rows"):
            return Sizes(rows, rows, pool_bytes=_pool_bytes(node))
        found, said = pool_size(node, not self.quick) or (None, "")
        if said:
            self.notes[f"about: {said}"] = None
        return found

    def _narrowed(self, node: Node, own: Sizes, counts: dict[str, Any]) -> Sizes:
        if "kept" in counts:
            return replace(own, rows=counts["kept"], is_about=False)
        stage: Any = node.stage
        if getattr(stage, "budget", None) is not None:
            base = self.outcome(node.inputs["base"]) if "base" in node.inputs else None
            try:
                kept = stage.budget.resolve((base or own).rows, own.rows)
            except BudgetError:  # said when the rows are counted
                return own
            return replace(own, rows=kept, is_about=own.is_about and not stage.budget.num_kept)
        most = stage.at_most(own.rows) if isinstance(stage, Narrowing) else own.rows
        return replace(own, rows=most, is_about=not isinstance(stage, PassAll) or own.is_about)

    def _width(self, node: Node, entry: Entry | None) -> int:
        """The width of vectors: from the sizes of finished files, or what is usual for the encoder."""
        if entry is None and (found := self.experience(node)):
            entry = found[1]
        if entry is not None and (rows := entry.manifest["counts"].get("rows", 0)):
            files = entry.manifest["files"]
            size = sum(size - HEADER for name, size in files.items() if name.endswith("/vectors.npy"))
            if width := round(size / 2 / rows):
                return width
        stage: Any = node.stage
        width, assumed = usual_width(stage.encoder, stage.side)
        if assumed:
            self.notes[f"about: {assumed}"] = None
        return width


def makes(node: Node) -> type | None:
    """What a node makes; None where its stage does not say."""
    return getattr(node.stage, "makes", None)


def same_once(wanted: Sequence[Node]) -> list[Node]:
    """A graph with one node for each artifact: a recipe may name the same encoding several times."""
    known: dict[Any, Node] = {}
    seen: dict[Node, Node] = {}

    def visit(node: Node) -> Node:
        if node not in seen:
            inputs = {name: visit(up) for name, up in node.inputs.items()}
            described = canonical([node.stage.name, parameters(node.stage)])
            means = (described, tuple(inputs.items())) if inputs else node
            is_same = all(inputs[name] is up for name, up in node.inputs.items())
            seen[node] = known.setdefault(means, node if is_same else Node(node.stage, inputs))
        return seen[node]

    return [visit(node) for node in wanted]


def needed_for(store: Store, wanted: Sequence[Node]) -> set[Node]:
    """What a run asks the store for: what a finished artifact rests on is not read, but for what opens it."""
    found: set[Node] = set()
    left = list(wanted)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            is_there = store.entry(node) is not None
            left += [up for name, up in node.inputs.items() if not is_there or name in node.stage.opens_with]
    return found


def _pool_bytes(node: Node) -> float:
    """Bytes of the files that an index reads, where they lie at hand."""
    reads = hasattr(node.stage, "paths") or hasattr(node.stage, "metadata")
    if not reads or not isinstance(node.stage, Parted) or node.inputs:
        return 0.0
    try:
        return float(sum(part.cost for part in node.stage.parts()))
    except (OSError, ConfigError, RuntimeError):  # the index answers although the shards are away
        return 0.0


def _made_by(described: dict[str, Any]) -> dict[str, Any]:
    """What decides how long a row takes: of an encoding the encoder and the side, else all parameters."""
    if "encoder" in described:
        return {name: described.get(name) for name in ("encoder", "side")}
    return described
