"""How many rows a pool has, before it is indexed: from its files' sizes and a look at the first.

A plan needs a number, and reading all of a pool to get one is what the plan is there to avoid.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.engine.paths import is_remote
from dbp.engine.stage import Node
from dbp.errors import DbpError

SCANNED = 20_000  # samples of the first shard that are counted, at most
TRIED = 200  # samples that are read as the index reads them, at most
PATIENCE = 0.3  # seconds for each of the two


@dataclass(frozen=True)
class PoolSize:
    """What is known of a pool before it is indexed.

    Args:
        rows: Samples, damaged ones included.
        is_about: Whether that is an estimate.
        pool_bytes: Of the files that the index reads.
        row_seconds: One core's time to read a sample for the index; None where it was not tried.
        said: How the number of rows was found.
    """

    rows: int
    is_about: bool
    pool_bytes: float = 0.0
    row_seconds: float | None = None
    said: str = ""


def pool_size(node: Node) -> PoolSize | None:
    """The size of the pool that an index will have; None where nothing is known of it.

    Shards of tars are counted by headers in the first shard, and the others taken to be like it. Parquet
    metadata and synthetic pools say their rows. What is wrong with the files is said when they are read.
    """
    stage: Any = node.stage
    try:
        if hasattr(stage, "metadata"):
            return _of_metadata(stage)
        if "folder" in node.inputs:
            return _of_render(stage, node.inputs["folder"].stage)
        if hasattr(stage, "paths"):
            return _of_tars(stage)
        if isinstance(rows := getattr(stage, "rows", None), int):
            return PoolSize(rows, False)
        if path := getattr(stage, "path", None):
            return _of_sorted_clusters(path)
    except (DbpError, OSError, ValueError):
        return None
    return None


def _of_metadata(stage: Any) -> PoolSize:
    import pyarrow.parquet as pq

    from dbp.pools.datacomp import metadata_files

    files = metadata_files(stage.metadata)
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    rows = min(rows, stage.max_samples or rows)
    return PoolSize(rows, False, float(sum(file.stat().st_size for file in files)))


def _of_sorted_clusters(path: str) -> PoolSize:
    from dbp.formats.sorted_clusters import SortedClusters

    clusters = SortedClusters.open(path, setting="pool.path")
    sizes = (clusters.path(j).stat().st_size for j in range(clusters.num_clusters))
    return PoolSize(clusters.num_rows, False, float(sum(sizes)))


def _of_render(stage: Any, render: Any) -> PoolSize | None:
    """A pool that is rendered first: copies and pictures that fail make its rows differ a little."""
    rows = getattr(getattr(render, "plan", None), "num_pairs", None)
    if rows is None:
        return None
    return PoolSize(min(rows, stage.max_samples or rows), True, said="rows as pool.plan says")


def _of_tars(stage: Any) -> PoolSize | None:
    shards = stage.paths(None)
    local = [shard for shard in shards if not is_remote(shard)]
    if len(local) < len(shards):
        return None  # what is streamed has no size
    total = float(sum(Path(shard).stat().st_size for shard in shards))
    samples, size, is_whole = _count(shards[0])
    if not samples:
        return None
    is_exact = is_whole and len(shards) == 1
    rows = samples if is_exact else round(total / size * samples)
    limit = stage.max_samples
    if limit is not None and limit < rows:
        total, rows, is_exact = total * limit / rows, limit, True
    said = f"rows from {samples:,} samples in {size / 1e6:,.1f} MB of {Path(shards[0]).name}"
    return PoolSize(rows, not is_exact, total, _row_seconds(stage, shards[0]), said)


def _count(shard: str) -> tuple[int, int, bool]:
    """Samples at the front of a tar, the bytes that hold them, and whether that is all of it."""
    from dbp.formats.tar_headers import Damaged, spans, split
    from dbp.formats.tars import SAMPLE_FORMATS

    wanted = {kind.encode() for kind in SAMPLE_FORMATS}
    handle = os.open(shard, os.O_RDONLY)
    samples, end, seen = 0, 0, (b"", set[bytes]())
    began = time.perf_counter()
    try:
        for name, start, *_, behind in spans(handle):
            key, kind = split(name)
            if kind not in wanted:
                continue
            if key != seen[0] or kind in seen[1]:
                if samples == SCANNED or time.perf_counter() - began > PATIENCE:
                    return samples, start, False
                samples, seen = samples + 1, (key, set())
            seen[1].add(kind)
            end = behind
    except Damaged:  # the samples before the damage say enough
        return samples, max(end, 1), False
    finally:
        os.close(handle)
    return samples, Path(shard).stat().st_size, True


def _row_seconds(stage: Any, shard: str) -> float | None:
    """Seconds that one sample takes the index, from a few at the front of a shard.

    Members, hashes and picture headers are read as in earnest. The first call is not counted, since it
    loads what reads pictures.
    """
    from dbp.formats.tars import samples

    began, count = 0.0, -1
    try:
        for sample in samples(shard):
            stage._row(sample, shard, 0)
            count += 1
            began = began or time.perf_counter()
            if count == TRIED or time.perf_counter() - began > PATIENCE:
                break
    except DbpError:
        return None
    return (time.perf_counter() - began) / count if count > 0 else None
