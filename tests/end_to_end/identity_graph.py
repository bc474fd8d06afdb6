"""A curation in many small parts, for tests that compare what runners make of it.

The recipe and its settings are the real ones; parts are made small by what is outside every key. Processes of
the pool and of submitit import this module to rebuild its stages.
"""

import dataclasses
import io
import json
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from dbp.clustering.kmeans import KMeans
from dbp.config import compose
from dbp.curate import open_store, recipe
from dbp.dedup import similar
from dbp.dedup.similar import NearestEarlier
from dbp.encoders.embed import Embed
from dbp.engine.stage import Node, Stage
from dbp.engine.work import Part
from dbp.settings import read
from dbp.verbs.command_line import overrides

NUM_SHARDS, PER_SHARD, WIDTH = 16, 200, 64
NUM_ROWS = NUM_SHARDS * PER_SHARD
NUM_COPIES = 400
ROWS_OF_VECTORS = 2 * PER_SHARD  # of a part: 8 parts
ROWS_OF_RANGES = 300  # of a part of the comparison, about


@dataclass(frozen=True)
class SmallRanges(NearestEarlier):
    """The comparison of dedup in ranges of few rows; their bound is a constant, to fit real pools."""

    def parts(self, *given: Any, **inputs: Any) -> list[Part]:
        with patch.object(similar, "PART_ROWS", ROWS_OF_RANGES):
            return super().parts(*given, **inputs)

    def make(self, *given: Any, **inputs: Any) -> dict[str, Any]:  # type: ignore[override]
        with patch.object(similar, "PART_ROWS", ROWS_OF_RANGES):
            return super().make(*given, **inputs)


def in_small_parts(node: Node, block: int | None = None, rows: int = ROWS_OF_VECTORS) -> Node:
    """The same graph with stages of more parts, and of another block size."""
    done: dict[int, Node] = {}

    def changed(stage: Stage) -> Stage:
        if isinstance(stage, Embed):
            return dataclasses.replace(stage, rows_per_part=rows)
        if isinstance(stage, KMeans) and block:
            return dataclasses.replace(stage, block=block)
        if isinstance(stage, NearestEarlier):
            same = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
            return SmallRanges(**same)
        return stage

    for old in node.lineage():
        inputs = {name: done[id(up)] for name, up in old.inputs.items()}
        done[id(old)] = Node(changed(old.stage), inputs)
    return done[id(node)]


def write_pool(folder: Path) -> None:
    """A pool and its vectors: clusters of uneven size, and rows that are copies or nearly so."""
    folder.mkdir(parents=True)
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for row in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
                out = io.BytesIO()
                Image.new("RGB", (2, 2), (row % 256, row // 256, 0)).save(out, "PNG")
                for name, content in ((f"{row:05d}.png", out.getvalue()), (f"{row:05d}.txt", b"a")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    chance = np.random.default_rng(0)
    centres = chance.normal(size=(30, WIDTH))
    sizes = chance.dirichlet(np.full(30, 0.7))
    vectors = centres[chance.choice(30, NUM_ROWS, p=sizes)]
    vectors = vectors + chance.normal(size=vectors.shape)
    copies = chance.choice(NUM_ROWS, 2 * NUM_COPIES, replace=False)
    noise = chance.choice([0.0, 1e-4, 1e-2], size=(NUM_COPIES, 1))
    vectors[copies[NUM_COPIES:]] = vectors[copies[:NUM_COPIES]] + noise * chance.normal(size=(NUM_COPIES, WIDTH))
    np.save(folder / "images.npy", vectors.astype(np.float32))


def settings(folder: Path, store: Path) -> list[str]:
    uses = [f"encoder.{use}.images={folder}/images.npy" for use in ("dedup", "cluster", "score")]
    return [
        "pool=webdataset", f"pool.shards={folder}/*.tar", "encoder=precomputed", *uses, "parts.device=cpu",
        "dedup.points_per_centroid=64", "dedup.num_iterations=5", "cluster.points_per_centroid=64",
        "cluster.num_iterations=5", "cluster.num_clusters=20", "budget.keep_fraction=0.4",
        f"paths.store={store}", f"paths.runs={store}-runs",
    ]  # fmt: skip


def curate(arguments: list[str], block: int | None = None, rows: int = ROWS_OF_VECTORS) -> dict[str, Any]:
    """Curate in small parts; return the keep list's own record, and the stages' parts."""
    config = compose("curate", overrides(arguments))
    store = open_store(config, lambda line: None)
    node = in_small_parts(recipe(read(config))["select"], block, rows)
    store.get(node)
    assert store.key(node) == store.key(recipe(read(config))["select"]), "parts are in no key"
    record = json.loads((store.folder(node) / "keep.json").read_text())  # type: ignore[operator]
    return record | {"store": store, "node": node}


if __name__ == "__main__":
    # Not as __main__, or the processes of the pool would look for these stages there.
    from identity_graph import curate as curate_from_module

    print(curate_from_module(sys.argv[1:])["digest"])
