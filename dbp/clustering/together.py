"""One reading of the vectors for several clusterings of the same rows, as a study of k asks for."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dbp.clustering.kmeans import KMeans
from dbp.data.vectors import Vectors, in_blocks
from dbp.device import pick_device
from dbp.engine.progress import progress
from dbp.engine.stage import Node
from dbp.engine.store import Store
from dbp.engine.work import Part, Work
from dbp.exact.products import Assigner


def with_others(cluster: Node, sizes: Sequence[int], fit: Node) -> list[Node]:
    """A clustering, and the same with other numbers of clusters."""
    stage = cluster.stage
    assert isinstance(stage, KMeans), "other clusterings fit no centroids here"
    found = [cluster]
    for size in sizes:
        other = replace(stage, num_clusters=size, also=())
        own = {**cluster.inputs, "centroids": other.fitting().bind(**_all(fit))}
        found.append(Node(other, own))
    return found


def _all(node: Node) -> dict[str, Node | None]:
    return {name: node.inputs.get(name) for name in node.stage.needs}


def assign_together(store: Store, clusterings: Sequence[Node]) -> int:
    """Assign the rows of several clusterings, reading each part of the vectors once.

    Clusterings of the same rows and vectors are made together; where only one of them is missing there is
    nothing to gain, and it is left to the store.

    Returns:
        The number of clusterings that were made with others.
    """
    with store.steady():
        groups: dict[Any, dict[str, Node]] = defaultdict(dict)
        for node in clusterings:
            if not isinstance(node.stage, KMeans) or store.entry(node) is not None:
                continue
            same = {name: up for name, up in node.inputs.items() if name != "centroids"}
            for up in same.values():
                store.get(up)
            shared = tuple(sorted((name, store.key(up)) for name, up in same.items()))
            key = store.key(node)
            assert key is not None, "its inputs are complete"
            groups[shared][key] = node
        made = 0
        for group in groups.values():
            if len(group) > 1:
                _one_pass(store, group)
                made += len(group)
        return made


def _one_pass(store: Store, group: dict[str, Node]) -> None:
    first = next(iter(group.values()))
    inputs = {name: store.get(up) for name, up in first.inputs.items()}
    stage: Any = first.stage
    fitted = {key: store.get(node.inputs["centroids"]).values for key, node in group.items()}
    desks = {}
    for key, node in group.items():
        shared = store.shared(node, key)
        desks[key] = Work(shared, shared, key)
    vectors = Vectors.of(inputs.get("image"), inputs.get("text"))
    device = pick_device(stage.device)
    assigners = {key: Assigner(values, device) for key, values in fitted.items()}
    parts: list[Part] = stage.parts(**inputs)
    with progress(f"assign to {len(group)} clusterings", len(parts), "parts") as bar:
        for part in parts:
            left = [key for key, desk in desks.items() if desk.counts(part.name, part.cost) is None]
            rows = vectors.part_rows(part.number, inputs["rows"].mask)
            label = {key: np.empty(len(rows), np.int32) for key in left}
            product = {key: np.empty(len(rows)) for key in left}
            for start, own in in_blocks(rows, stage.block):
                block, span = vectors.gather(own), slice(start, start + len(own))
                for key in left:
                    label[key][span], product[key][span], _ = assigners[key](block)
            norms = vectors.norms(rows)
            for key in left:
                distance = np.clip(1 - product[key] / norms, 0, 2).astype(np.float32)

                def write(folder: Path, own: Any = (rows, label[key], distance)) -> dict[str, Any]:
                    for name, values in zip(("rows", "label", "distance"), own, strict=True):
                        np.save(folder / f"{name}.npy", values)
                    return {"rows": len(own[0]), "run": False}

                desks[key].part(part.name, write, part.cost)
            bar.advance()
    for node in group.values():
        store.get(node)
