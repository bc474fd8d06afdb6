"""What each stage costs, by its registered name: operations, bytes and memory from sizes alone.

A stage of other people is taken to read scalar columns where it narrows rows, and is not known otherwise.
n rows, d width, k clusters.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dbp.clustering import lloyd
from dbp.clustering.kmeans import RUNS_ABOVE
from dbp.dedup.pairs import COLUMNS, ROWS
from dbp.dedup.similar import PART_ROWS
from dbp.engine.stage import Stage
from dbp.exact.products import BLOCK
from dbp.filtering.near_targets import PRODUCTS
from dbp.formats.target_vectors import CHUNK, Targets
from dbp.names import name_of
from dbp.narrowing import Narrowing
from dbp.planning.amounts import Number
from dbp.planning.effort import CAPTIONS, DECODING, NETWORK, TARS, Effort, Sizes, vector_bytes
from dbp.scoring.clip_loss import ROWS as PASS_ROWS


def effort_of(stage: Stage, sizes: Sizes) -> Effort | None:
    """What a stage costs at some sizes; None where that is not known."""
    if found := EFFORTS.get(name_of(type(stage))):
        return found(stage, sizes)
    if stage.name == "select":  # no vector is read; within clusters it takes about three passes more
        return over_columns(sizes, 8 if "clusters" in stage.needs else 4)
    return over_columns(sizes) if isinstance(stage, Narrowing) else None


def over_columns(sizes: Sizes, passes: Number = 1.0) -> Effort:
    """Columns are read and a keep list is written, in `passes` over the rows: 1 to mask, about 4 to order them.

    Source: measured on 2 million rows: a mask 8 to 20 ns a row, an order over all 50, one within clusters
        150; 20 to 40 bytes of memory a row; 0.125 bytes a row for the bits of a list and about 0.15 a stage
        for compressed reasons.
    """
    n = sizes.pool_rows
    return Effort(
        rows=sizes.rows,
        columns=passes * n,
        bytes_read=12.0 * n,
        bytes_written=0.7 * n,
        memory=(16.0 + 6.0 * passes) * n,
    )


def over_captions(sizes: Sizes) -> Effort:
    """Each caption is looked at, too: how long that takes is known from a run of it alone."""
    return replace(over_columns(sizes), elsewhere=(CAPTIONS, _known_seconds(sizes)))


def _read_column(stage: Any, sizes: Sizes) -> Effort:
    """A field of the json members takes a read of every tar; other columns lie in Parquet."""
    columns = over_columns(sizes)
    if stage.kind != "json":
        return columns
    seconds = _known_seconds(sizes, sizes.workers)
    return replace(columns, bytes_read=columns.bytes_read + sizes.pool_bytes, elsewhere=(TARS, seconds))


def _known_seconds(sizes: Sizes, workers: int = 1) -> Number | None:
    return None if sizes.row_seconds is None else sizes.row_seconds * sizes.rows / workers


def _index(stage: Any, sizes: Sizes) -> Effort:
    """Every byte of the shards, once; Python's time for headers and hashes is most of it.

    Source: measured, 80 bytes a row of index and 2.5 kB a row of one shard in memory.
    """
    one_shard = sizes.rows / max(len(stage.paths(None)) if stage.shards else 1, 1)
    return Effort(
        rows=sizes.rows,
        bytes_read=sizes.pool_bytes,
        bytes_written=80.0 * sizes.rows,
        memory=2500 * one_shard + 16.0 * sizes.rows,
        elsewhere=(DECODING, _known_seconds(sizes, 1 if stage.max_samples else sizes.workers)),
    )


def _pack(stage: Any, sizes: Sizes) -> Effort:
    """Every byte is read, and written into tars; compressed tars are taken not to grow."""
    _, total = stage.size()
    return Effort(rows=sizes.rows, bytes_read=total, bytes_written=total, memory=float(1 << 28))


def _embed(stage: Any, sizes: Sizes) -> Effort:
    """Vectors in fp16 with 16 bytes of row and lengths; the network's time is known from a run alone.

    Vectors that are read and not computed are taken to be fp32; a rehearsal's are neither. In memory a
    number of a part costs up to 30 bytes: its fp32 copies, and float64 for its length; the network's own
    memory is not counted.
    """
    n, d = sizes.rows, sizes.width
    is_file = stage.encoder.reads and not hasattr(stage.encoder, "plan")
    return Effort(
        rows=n,
        values=6.0 * n * d if is_file else 0.0,
        bytes_read=4.0 * n * d if is_file else sizes.pool_bytes,
        bytes_written=vector_bytes(n, d) + 16.0 * n,
        memory=30.0 * min(n, stage.rows_per_part) * d + 9.0 * sizes.pool_rows,
        elsewhere=None if is_file else (NETWORK, _known_seconds(sizes)),
    )


def _fit(stage: Any, sizes: Sizes) -> Effort:
    """2 m k d operations for each iteration over m sampled rows, as if no fit ended early.

    Sampled rows lie scattered, so a row costs a page of 4 KiB at least, up to all there are; a full fit reads all
    rows anew for each iteration and holds none. Centroid sums are float64, one array for each thread. The sample is
    chosen among 8-byte hashes of all rows. k-means++ draws the start in k passes with one centroid each.
    """
    n, d, k, iterations = sizes.rows, sizes.width, sizes.clusters, stage.num_iterations
    sample = n if stage.full else lloyd.num_sampled(k, stage.points_per_centroid, n)
    whole = vector_bytes(n, d)
    read = whole * iterations if stage.full else min(whole, sample * max(2.0 * d, 4096.0))
    start = float(sample * k) if stage.start == "kmeans++" and not stage.full else 0.0
    products = min(sample, BLOCK) * (4.0 * k + 6.0 * d)
    return Effort(
        rows=sample * iterations,
        flops=2.0 * sample * k * d * iterations + 2 * start * d,
        values=(4.0 * sample * k + 3.0 * sample * d) * iterations + start * (d + 4),
        columns=4.0 * sizes.pool_rows,
        bytes_read=read + 8.0 * sizes.pool_rows,
        bytes_written=4.0 * k * d,
        memory=(0.0 if stage.full else 2.0 * sample * d)
        + 40.0 * sizes.pool_rows
        + stage.threads * (products + 8.0 * k * d)
        + 24.0 * k * d,
        sent=4.0 * sample * d * iterations,
    )


def of_assignment(sizes: Sizes, threads: int, block: int, runs: str = "no") -> Effort:
    """The effort of finding each row's nearest centroid: 2 n k d operations.

    Each of the n k products is looked through for the largest and for candidates, about four times as
    long as one maximum takes; vectors are widened to fp32. Written are 16 bytes a row in parts and 8 in the
    end; with `runs` (yes, no, or auto: above a size) the vectors, too, sorted by cluster.

    Source: the product's size; looking through measured for k from 274 to 2,000: 3 to 4.6 maxima.
    """
    n, d, k = sizes.rows, sizes.width, sizes.clusters
    vectors = vector_bytes(n, d)
    own = 16.0 * n + 8.0 * sizes.pool_rows + 4.0 * k * d
    has_runs = runs == "yes" or (runs == "auto" and vectors > RUNS_ABOVE)
    return Effort(
        rows=n,
        flops=2.0 * n * k * d,
        values=4.0 * n * k + 3.0 * n * d,
        bytes_read=vectors * (2 if has_runs else 1) + 16.0 * n,
        bytes_written=own + (vectors + 8.0 * n if has_runs else 0.0),
        memory=threads * min(n, block) * (4.0 * k + 6.0 * d + 12) + 20.0 * k * d + 12.0 * sizes.pool_rows,
        sent=4.0 * n * d,
    )


def _similar(stage: Any, sizes: Sizes) -> Effort:
    """Each row against the earlier rows of its cluster: f d n^2 / k operations and more.

    Half of each cluster's square, two operations for each number of a vector: d times the sum of squared
    sizes, which is f n^2 / k with f the unevenness. The tiles on the diagonal are multiplied whole, which
    doubles it for clusters of fewer rows than a tile. Products are looked through about three times as long
    as for a maximum; vectors are gathered, widened and measured in float64. Stored pairs are not counted.

    Source: the triangle's size; f = 1 + the squared coefficient of variation of the sizes. 1.5 is assumed
        where no clustering has been measured.
    """
    n, d, k = sizes.rows, sizes.width, max(sizes.clusters, 1)
    squares = sizes.unevenness * n * n / k
    pairs = (squares + n * min(squares / max(n, 1), ROWS)) / 2
    largest = 8 * n / k  # rows of the largest cluster, assumed
    return Effort(
        rows=n,
        flops=2.0 * d * pairs,
        values=3.0 * pairs + 8.0 * n * d,
        bytes_read=vector_bytes(n, d) + 12.0 * sizes.pool_rows,
        bytes_written=20.0 * n + 12.0 * sizes.pool_rows,
        memory=max(min(n, PART_ROWS), largest) * (2.0 * d + 60)
        + min(largest * 4 * d, 64e6)
        + stage.threads * 4.0 * ROWS * COLUMNS
        + 16.0 * sizes.pool_rows,
        sent=4.0 * d * pairs * (1 / ROWS + 1 / COLUMNS),  # both sides of each tile
    )


def _borders(stage: Any, sizes: Sizes) -> Effort:
    """The sample against every row: 2 sample n d operations."""
    n, d = sizes.rows, sizes.width
    return Effort(rows=n, flops=2.0 * stage.sample * n * d, bytes_read=vector_bytes(n, d))


def _cosines(stage: Any, sizes: Sizes) -> Effort:
    """Vectors are widened to float64, and a cosine is written for each of 50 prototypes, which is assumed."""
    n, d, c = sizes.rows, sizes.width, 50
    return Effort(
        rows=n,
        flops=4.0 * n * c * d,
        values=6.0 * n * d,
        bytes_read=vector_bytes(n, d) + 16.0 * n,
        bytes_written=4.0 * c * (n + sizes.pool_rows),
        memory=BLOCK * (14.0 * d + 12.0 * c) + 4.0 * c * min(n, 32_768),
    )


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


def _clip_loss(stage: Any, sizes: Sizes) -> Effort:
    """2 n B d operations a pass, and an exponential for each product, which takes as long as looking twice.

    Rows lie scattered where batches are of the whole pool, so a row of a side costs a page of 4 KiB at least, and
    each batch reads the rows' places of every part: 16 bytes a row and side.

    Source: measured: products 15 ns an entry at width 768, all else 1.3 ns.
    """
    n, d, passes = sizes.rows, sizes.width, stage.num_passes
    batch = min(stage.batch_size, max(n, 1))
    row = 2 * max(1.0 * d, 4096.0) if stage.within == "pool" else 2.0 * d
    places = 32.0 * n * (n / batch if stage.within == "pool" else 1)
    return Effort(
        rows=n * passes,
        flops=1.0 * n * batch * d * passes,  # d is of both sides together
        values=(2.0 * n * batch + 3.0 * n * d) * passes,
        columns=2.0 * sizes.pool_rows * max(1, n // PASS_ROWS) * passes,
        bytes_read=(n * row + places) * passes,
        bytes_written=16.0 * n * passes + 4.0 * sizes.pool_rows,
        memory=batch * (5.0 * d + 1000) + 17.0 * sizes.pool_rows,
        sent=4.0 * n * d * passes,
    )


def _norm_sim(stage: Any, sizes: Sizes) -> Effort:
    """d^2 operations a row in float64, twice the time of fp32; or as an assignment to all targets."""
    n, d = sizes.rows, sizes.width
    if stage.norm == "max":
        m = Targets(Path(stage.targets), "score.targets").num_rows if stage.targets else 0
        found = of_assignment(replace(sizes, clusters=m), stage.threads, BLOCK)
        chunk = of_assignment(replace(sizes, clusters=min(m, CHUNK)), stage.threads, BLOCK)
        return replace(found, memory=chunk.memory)
    return Effort(
        rows=n,
        flops=4.0 * n * d * d,
        values=6.0 * n * d,
        bytes_read=vector_bytes(n, d) + 16.0 * n,
        bytes_written=12.0 * n + 4.0 * sizes.pool_rows,
        memory=stage.threads * min(n, BLOCK) * 26.0 * d + 8.0 * d * d + 2.0 * min(n, 32_768) * d,
        sent=4.0 * n * d,
    )


def _norm_sim_dynamic(stage: Any, sizes: Sizes) -> Effort:
    """Each step takes xᵀ Σ x of what is left, in float64: of (1 + keep_fraction) / 2 of the rows on average."""
    n, d = sizes.rows * stage.among, sizes.width
    times = stage.num_steps * (1 + stage.keep_fraction) / 2 + stage.keep_fraction
    return Effort(
        rows=int(n * times),
        flops=4.0
        * n
        * d
        * d
        * (times + 2 - stage.keep_fraction),  # and the sums of Σ: all rows, then those that go
        values=6.0 * n * d * times,
        columns=4.0 * sizes.pool_rows * stage.num_steps,
        bytes_read=vector_bytes(1, d) * n * (times + 2),
        bytes_written=12.0 * n + 4.0 * sizes.pool_rows,
        memory=min(n, BLOCK) * 34.0 * d + 24.0 * d * d + 40.0 * sizes.pool_rows,
        sent=4.0 * n * d * times,
    )


def _near_targets(stage: Any, sizes: Sizes) -> Effort:
    """As an assignment to the file's centroids; the targets' are not counted."""
    k = len(np.load(stage.centroids, mmap_mode="r")) if stage.centroids else sizes.clusters
    block = max(1, PRODUCTS // max(k, 1))
    return over_columns(sizes) + of_assignment(replace(sizes, clusters=k), threads=1, block=block)


def _chain(stage: Any, sizes: Sizes) -> Effort:
    """All filters one after another, as if each let every row through."""
    efforts = (effort_of(step, sizes) or over_columns(sizes) for step in stage.steps())
    return sum(efforts, over_columns(sizes, 0))


EFFORTS: dict[str, Callable[[Any, Sizes], Effort]] = {
    "index": _index,
    "column/read": _read_column,
    "pack/folder": _pack,
    "pack/parquet": _pack,
    "pack/tars": _pack,
    "captions/column": _read_column,
    "captions/best": lambda s, sizes: over_captions(sizes),
    "embed": _embed,
    "centroids/kmeans": _fit,
    "cluster/kmeans": lambda s, sizes: of_assignment(sizes, s.threads, s.block, s.runs),
    "score/clip": _clip_score,
    "score/flipped_clip": _clip_score,
    "score/clip_loss": _clip_loss,
    "score/norm_sim": _norm_sim,
    "score/norm_sim_dynamic": _norm_sim_dynamic,
    "score/mix": lambda s, sizes: over_columns(sizes, len(s.combined())),
    "dedup/similar": _similar,
    "dedup/borders": _borders,
    "dedup/cosines": _cosines,
    "dedup/fairdedup": lambda s, sizes: over_columns(sizes, 8),
    # A threshold on stored similarities, or their order where a number of rows is asked for.
    "dedup/semdedup": lambda s, sizes: over_columns(sizes, 1 if s.num_kept is None else 4),
    "filter/top_fraction": lambda s, sizes: over_columns(sizes, 4),
    "filter/score_column": lambda s, sizes: over_columns(sizes, 1 if s.fraction is None else 4),
    "filter/near_targets": _near_targets,
    # Captions are read only where their words are counted, or a detector is called.
    "filter/basic": lambda s, sizes: over_captions(sizes) if s.min_words > 0 else over_columns(sizes),
    "filter/language": lambda s, sizes: over_columns(sizes) if s.by.startswith("column:") else over_captions(sizes),
    "select/metaclip": lambda s, sizes: over_columns(sizes, 20),  # ten passes find the threshold
    "select/metaclip_threshold": lambda s, sizes: over_columns(sizes, 8),
}
for name in ("all", "datacomp_basic", "text_based", "laion2b", "image_based"):
    EFFORTS[f"filter/{name}"] = _chain
for name in ("filter/names_object", "entries/captions", "match"):
    EFFORTS[name] = lambda s, sizes: over_captions(sizes)
for name in ("select/none", "select/imported", "filter/column", "score/from_column"):
    EFFORTS[name] = lambda s, sizes: over_columns(sizes)
