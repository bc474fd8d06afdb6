"""What each stage costs, by its registered name: operations, bytes and memory from sizes alone.

A stage of other people is taken to read scalar columns where it narrows rows, and is not known otherwise.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from dbp.clustering import lloyd
from dbp.clustering.kmeans import RUNS_ABOVE
from dbp.dedup.pairs import COLUMNS, ROWS
from dbp.dedup.similar import PART_ROWS
from dbp.engine.stage import Stage
from dbp.exact.products import BLOCK
from dbp.filtering.near_targets import PRODUCTS
from dbp.names import name_of
from dbp.narrowing import Narrowing
from dbp.planning.effort import (
    DECODING,
    NETWORK,
    Effort,
    Sizes,
    of_assignment,
    of_lloyd,
    of_triangles,
    over_captions,
    over_columns,
    vector_bytes,
)


def effort_of(stage: Stage, sizes: Sizes) -> Effort | None:
    """What a stage costs at some sizes; None where that is not known."""
    if found := EFFORTS.get(name_of(type(stage))):
        return found(stage, sizes)
    if stage.name == "select":  # no vector is read; within clusters it takes about three passes more
        return over_columns(sizes, 8 if "clusters" in stage.needs else 4)
    return over_columns(sizes) if isinstance(stage, Narrowing) else None


def _index(stage: Any, sizes: Sizes) -> Effort:
    """Every byte of the shards, once; Python's time for headers and hashes is most of it.

    Source: measured, 80 bytes a row of index and 2.5 kB a row of one shard in memory.
    """
    one_shard = sizes.rows / max(len(stage.paths(None)) if stage.shards else 1, 1)
    workers = 1 if stage.max_samples else sizes.workers
    seconds = None if sizes.row_seconds is None else sizes.row_seconds * sizes.rows / workers
    return Effort(
        rows=sizes.rows,
        bytes_read=sizes.pool_bytes,
        bytes_written=80.0 * sizes.rows,
        memory=2500 * one_shard + 16.0 * sizes.rows,
        elsewhere=(DECODING, seconds),
    )


def _embed(stage: Any, sizes: Sizes) -> Effort:
    """Vectors in fp16 with 16 bytes of row and lengths; the network's time is known from a run alone.

    Vectors that are read and not computed are taken to be fp32; a rehearsal's are neither. In memory a
    number of a part costs up to 30 bytes: its fp32 copies, and float64 for its length; the network's own
    memory is not counted.
    """
    n, d = sizes.rows, sizes.width
    is_file = stage.encoder.reads and not hasattr(stage.encoder, "plan")
    seconds = None if sizes.row_seconds is None else sizes.row_seconds * n
    return Effort(
        rows=n,
        values=6.0 * n * d if is_file else 0.0,
        bytes_read=4.0 * n * d if is_file else sizes.pool_bytes,
        bytes_written=vector_bytes(n, d) + 16.0 * n,
        memory=30.0 * min(n, stage.rows_per_part) * d + 9.0 * sizes.pool_rows,
        elsewhere=None if is_file else (NETWORK, seconds),
    )


def _fit(stage: Any, sizes: Sizes) -> Effort:
    """Lloyd iterations on the sample, as if none ended early."""
    sample = lloyd.num_sampled(sizes.clusters, stage.points_per_centroid, sizes.rows)
    drawn = stage.start == "kmeans++" and not stage.full
    return of_lloyd(sizes, sample, stage.num_iterations, stage.threads, BLOCK, stage.full, drawn)


def _assign(stage: Any, sizes: Sizes) -> Effort:
    """2 n k d operations, and the sorted runs where they are written."""
    vectors = vector_bytes(sizes.rows, sizes.width)
    runs = stage.runs == "yes" or (stage.runs == "auto" and vectors > RUNS_ABOVE)
    return of_assignment(sizes, stage.threads, stage.block, runs)


def _similar(stage: Any, sizes: Sizes) -> Effort:
    """The triangles of all clusters: d times the sum of their squared sizes. Stored pairs are not counted."""
    return of_triangles(sizes, stage.threads, PART_ROWS, (ROWS, COLUMNS))


def _borders(stage: Any, sizes: Sizes) -> Effort:
    """The sample against every row: 2 sample n d operations."""
    n, d = sizes.rows, sizes.width
    return Effort(rows=n, flops=2.0 * stage.sample * n * d, bytes_read=vector_bytes(n, d))


def _clip_score(stage: Any, sizes: Sizes) -> Effort:
    """Both sides are read and widened, and multiplied in float64 by one thread."""
    n, d = sizes.rows, sizes.width
    return Effort(
        rows=n,
        values=2.0 * n * d,
        bytes_read=vector_bytes(n, d) + 32.0 * n,
        bytes_written=12.0 * n + 4.0 * sizes.pool_rows,
        memory=BLOCK * 6.0 * d + 8.0 * sizes.pool_rows,
    )


def _near_targets(stage: Any, sizes: Sizes) -> Effort:
    """2 n k d operations, as for an assignment to the file's centroids; the targets' are not counted."""
    k = len(np.load(stage.centroids, mmap_mode="r")) if stage.centroids else sizes.clusters
    return over_columns(sizes) + of_assignment(
        replace(sizes, clusters=k), threads=1, block=max(1, PRODUCTS // max(k, 1))
    )


def _chain(stage: Any, sizes: Sizes) -> Effort:
    """All filters one after another, as if each let every row through."""
    found = over_columns(sizes, 0)
    for step in stage.steps():
        found += effort_of(step, sizes) or over_columns(sizes)
    return found


EFFORTS: dict[str, Callable[[Any, Sizes], Effort]] = {
    "index": _index,
    "embed": _embed,
    "centroids/kmeans": _fit,
    "cluster/kmeans": _assign,
    "score/clip": _clip_score,
    "dedup/similar": _similar,
    "dedup/borders": _borders,
    # A threshold on stored similarities, or their order where a number of rows is asked for.
    "dedup/semdedup": lambda s, sizes: over_columns(sizes, 1 if s.num_kept is None else 4),
    "filter/top_fraction": lambda s, sizes: over_columns(sizes, 4),
    "filter/score_column": lambda s, sizes: over_columns(sizes, 1 if s.fraction is None else 4),
    "filter/near_targets": _near_targets,
    # Captions are read only where their words are counted, or a detector is called.
    "filter/basic": lambda s, sizes: over_captions(sizes) if s.min_words > 0 else over_columns(sizes),
    "filter/language": lambda s, sizes: over_columns(sizes) if s.by.startswith("column:") else over_captions(sizes),
    "filter/names_object": lambda s, sizes: over_captions(sizes),
    "filter/all": _chain,
    "filter/datacomp_basic": _chain,
    "filter/text_based": _chain,
    "filter/laion2b": _chain,
    "filter/image_based": _chain,
    "entries/captions": lambda s, sizes: over_captions(sizes),
    "match": lambda s, sizes: over_captions(sizes),
    "select/metaclip": lambda s, sizes: over_columns(sizes, 20),  # ten passes find the threshold
    "select/metaclip_threshold": lambda s, sizes: over_columns(sizes, 8),
    "select/none": lambda s, sizes: over_columns(sizes),
    "select/imported": lambda s, sizes: over_columns(sizes),
}
