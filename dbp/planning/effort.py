"""What a stage costs before it runs, in units that a machine has a rate for.

A stage with a method `effort(sizes)` says how many operations, bytes and rows it handles; `Effort.on`
turns them into seconds by the rates of a machine (`dbp/planning/machine.py`). n rows, d width, k
clusters; an operation is one multiplication or one addition, so a product of (n, d) and (d, k) is
2 n k d of them.
"""

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

UNEVENNESS = 1.5  # assumed of clusters that are not there yet: sum of squared sizes over n^2 / k

PRODUCT, MEMORY, COLUMNS = "matrix product", "memory", "columns"
READING, WRITING, SENDING = "disk reading", "disk writing", "sending to the GPU"
DECODING, NETWORK, CAPTIONS = "decoding", "encoder's network", "reading captions"


Number = float | int


@runtime_checkable
class Rates(Protocol):
    """What `Effort.on` asks of a machine; per second, None where it is not known."""

    @property
    def product(self) -> Number: ...
    @property
    def memory(self) -> Number: ...
    @property
    def columns(self) -> Number: ...
    @property
    def reading(self) -> Number | None: ...
    @property
    def writing(self) -> Number | None: ...
    @property
    def sending(self) -> Number | None: ...


@dataclass(frozen=True)
class Sizes:
    """What is known of a stage's inputs.

    Args:
        rows: That reach the stage.
        pool_rows: Of the whole pool; columns have so many.
        width: Numbers of a row's vector, of both sides together where there are two.
        clusters: k of the clustering that it makes or reads.
        unevenness: Sum of the squared sizes of clusters over n^2 / k; 1 when all are equal.
        pool_bytes: Of the shards.
        row_seconds: Time for a row where no rate of the machine gives it: of one process that tried some rows,
            or of an earlier run. None if not known.
        workers: Processes that share the stage's parts.
    """

    rows: int
    pool_rows: int
    width: int = 0
    clusters: int = 0
    unevenness: Number = UNEVENNESS
    pool_bytes: Number = 0.0
    row_seconds: Number | None = None
    workers: int = 1


@dataclass(frozen=True)
class Timing:
    """Seconds that an effort takes on a machine.

    Args:
        seconds: In all; None where a part of it is not known.
        bound_by: What takes the most of it.
        by: Seconds of each resource.
    """

    seconds: Number | None
    bound_by: str
    by: dict[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Effort:
    """What a stage handles.

    Args:
        rows: That it works on; one that is read in several passes counts in each.
        flops: Operations of matrix products.
        values: Numbers of products, or of vectors, that are looked through one by one.
        columns: Rows of plain columns that are passed over, sorted or masked; one pass of one row is 1.
        bytes_read: From disk, if nothing of it lies in memory.
        bytes_written: To disk, half-way files included.
        memory: Peak bytes of one process above its level before the stage.
        sent: Bytes that a GPU is sent, if one computes.
        elsewhere: What takes time that no rate of a machine gives, and its seconds; None if not known. The
            system reads ahead of it and writes behind it, so it stands beside the other times.
    """

    rows: int
    flops: Number = 0.0
    values: Number = 0.0
    columns: Number = 0.0
    bytes_read: Number = 0.0
    bytes_written: Number = 0.0
    memory: Number = 0.0
    sent: Number = 0.0
    elsewhere: tuple[str, Number | None] | None = None

    def on(self, machine: Rates, is_in_memory: bool = False) -> Timing:
        """Seconds on a machine, one resource after another.

        Nothing but `elsewhere` is taken to overlap, since stages read, multiply and write in turn.

        Args:
            machine: Its rates.
            is_in_memory: What is read lies in memory, so that reading takes no time.
        """
        on_gpu = machine.sending is not None and self.sent > 0
        parts: dict[str, tuple[Number, Number | None]] = {
            PRODUCT: (self.flops, machine.product),
            MEMORY: (0.0 if on_gpu else self.values, machine.memory),
            COLUMNS: (self.columns, machine.columns),
            READING: (0.0 if is_in_memory else self.bytes_read, machine.reading),
            WRITING: (self.bytes_written, machine.writing),
            SENDING: (self.sent if on_gpu else 0.0, machine.sending),
        }
        by = {name: work / rate for name, (work, rate) in parts.items() if work and rate}
        unknown = [name for name, (work, rate) in parts.items() if work and not rate]
        if self.elsewhere is not None:
            name, seconds = self.elsewhere
            if seconds is None:
                return Timing(None, name, by)
            if seconds > sum(by.values()):
                return Timing(seconds, name, {**by, name: seconds})
        if unknown:
            return Timing(None, unknown[0], by)
        return Timing(sum(by.values()), max(by, key=lambda name: by[name], default=""), by)

    def __add__(self, other: "Effort") -> "Effort":
        """One after the other: work adds up, memory is the larger."""
        both = [each.elsewhere for each in (self, other) if each.elsewhere]
        known = [seconds for _, seconds in both if seconds is not None]
        return Effort(
            rows=max(self.rows, other.rows),
            flops=self.flops + other.flops,
            values=self.values + other.values,
            columns=self.columns + other.columns,
            bytes_read=self.bytes_read + other.bytes_read,
            bytes_written=self.bytes_written + other.bytes_written,
            memory=max(self.memory, other.memory),
            sent=self.sent + other.sent,
            elsewhere=(both[0][0], sum(known) if len(known) == len(both) else None) if both else None,
        )


def over_columns(sizes: Sizes, passes: Number = 1.0) -> Effort:
    """The effort of a stage that reads columns and writes a keep list.

    Args:
        sizes: What reaches it.
        passes: Over the rows: 1 to mask them, about 4 to order them.

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
    """The effort of a stage that looks at each caption: known from a run of it alone."""
    known = sizes.row_seconds
    return replace(
        over_columns(sizes),
        elsewhere=(CAPTIONS, None if known is None else known * sizes.rows),
    )


def of_assignment(sizes: Sizes, threads: int, block: int, runs: bool = False) -> Effort:
    """The effort of finding each row's nearest centroid: 2 n k d operations.

    Each of the n k products is looked through for the largest and for candidates, about four times as
    long as one maximum takes; vectors are widened to fp32. Written are 16 bytes a row in parts and 8 in the
    end; with `runs` the vectors, too, sorted by cluster.

    Source: the product's size; looking through measured for k from 274 to 2,000: 3 to 4.6 maxima.
    """
    n, d, k = sizes.rows, sizes.width, sizes.clusters
    vectors = vector_bytes(n, d)
    own = 16.0 * n + 8.0 * sizes.pool_rows + 4.0 * k * d
    return Effort(
        rows=n,
        flops=2.0 * n * k * d,
        values=4.0 * n * k + 3.0 * n * d,
        bytes_read=vectors * (2 if runs else 1) + 16.0 * n,
        bytes_written=own + (vectors + 8.0 * n if runs else 0.0),
        memory=threads * min(n, block) * (4.0 * k + 6.0 * d + 12) + 20.0 * k * d + 12.0 * sizes.pool_rows,
        sent=4.0 * n * d,
    )


def of_triangles(sizes: Sizes, threads: int, part_rows: int, tile: tuple[int, int]) -> Effort:
    """The effort of comparing each row with the earlier rows of its cluster: f d n^2 / k operations and more.

    Half of each cluster's square, two operations for each number of a vector: d times the sum of squared
    sizes, which is f n^2 / k with f the unevenness. The tiles on the diagonal are multiplied whole, which
    doubles it for clusters of fewer rows than a tile. Products are looked through about three times as long
    as for a maximum; vectors are gathered, widened and measured in float64.

    Source: the triangle's size; f = 1 + the squared coefficient of variation of the sizes. 1.5 is assumed
        where no clustering has been measured.

    Args:
        sizes: What reaches it.
        threads: Strips of a triangle at once.
        part_rows: Rows whose vectors are held at once, unless one cluster has more.
        tile: Rows and columns of one product.
    """
    n, d, k = sizes.rows, sizes.width, max(sizes.clusters, 1)
    squares = sizes.unevenness * n * n / k
    pairs = (squares + n * min(squares / max(n, 1), tile[0])) / 2
    largest = 8 * n / k  # rows of the largest cluster, assumed
    return Effort(
        rows=n,
        flops=2.0 * d * pairs,
        values=3.0 * pairs + 8.0 * n * d,
        bytes_read=vector_bytes(n, d) + 12.0 * sizes.pool_rows,
        bytes_written=20.0 * n + 12.0 * sizes.pool_rows,
        memory=max(min(n, part_rows), largest) * (2.0 * d + 60)
        + min(largest * 4 * d, 64e6)
        + threads * 4.0 * tile[0] * tile[1]
        + 16.0 * sizes.pool_rows,
        sent=4.0 * d * pairs * (1 / tile[0] + 1 / tile[1]),  # both sides of each tile
    )


def of_lloyd(
    sizes: Sizes,
    sample: int,
    iterations: int,
    threads: int,
    block: int,
    is_full: bool = False,
    is_drawn: bool = False,
) -> Effort:
    """The effort of fitting k centroids: 2 m k d operations for each iteration over m sampled rows.

    Sampled rows lie scattered, so a row costs a page of 4 KiB at least, up to all there are. Centroid sums
    are float64, one array for each thread. The sample is chosen among 8-byte hashes of all rows.

    Args:
        sizes: What reaches it.
        sample: m.
        iterations: At most.
        threads: Blocks at once.
        block: Rows of one.
        is_full: All rows are read anew for each iteration, and none is held.
        is_drawn: The start is drawn by k-means++: k passes over the sample with one centroid each.
    """
    n, d, k = sizes.rows, sizes.width, sizes.clusters
    sample = n if is_full else sample
    whole = vector_bytes(n, d)
    read = whole * iterations if is_full else min(whole, sample * max(2.0 * d, 4096.0))
    start = float(sample * k) if is_drawn else 0.0
    products = min(sample, block) * (4.0 * k + 6.0 * d)
    return Effort(
        rows=sample * iterations,
        flops=2.0 * sample * k * d * iterations + 2 * start * d,
        values=(4.0 * sample * k + 3.0 * sample * d) * iterations + start * (d + 4),
        columns=4.0 * sizes.pool_rows,
        bytes_read=read + 8.0 * sizes.pool_rows,
        bytes_written=4.0 * k * d,
        memory=(0.0 if is_full else 2.0 * sample * d)
        + 40.0 * sizes.pool_rows
        + threads * (products + 8.0 * k * d)
        + 24.0 * k * d,
        sent=4.0 * sample * d * iterations,
    )


def vector_bytes(rows: Number, width: int) -> Number:
    """Bytes of stored vectors: fp16."""
    return 2.0 * rows * width
