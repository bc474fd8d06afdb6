"""What a stage handles, in units that a machine has a rate for.

`Effort.on` turns operations, bytes and rows into seconds by the rates of a machine (`dbp/planning/machine.py`).
An operation is one multiplication or one addition, so a product of (n, d) and (d, k) is 2 n k d of them.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dbp.planning.amounts import Number
from dbp.planning.machine import Machine

UNEVENNESS = 1.5  # assumed of clusters that are not there yet: sum of squared sizes over n^2 / k

PRODUCT, MEMORY, COLUMNS = "matrix product", "memory", "columns"
READING, WRITING, SENDING = "disk reading", "disk writing", "sending to the GPU"
DECODING, NETWORK, CAPTIONS = "decoding", "encoder's network", "reading captions"
TARS = "reading tars"


@dataclass(frozen=True)
class Sizes:
    """What is known of what reaches a stage, or of what it leaves behind.

    Args:
        rows: That reach it, or come out of it.
        pool_rows: Of the whole pool; columns have so many.
        width: Numbers of a row's vector, of both sides together where there are two; 0 without vectors.
        clusters: k of the clustering that it makes or reads; 0 without one.
        unevenness: Sum of the squared sizes of clusters over n^2 / k; 1 when all are equal.
        pool_bytes: Of the files that the index reads.
        row_seconds: Time for a row where no rate of the machine gives it: of one process that tried some rows,
            or of an earlier run. None if not known.
        workers: Processes that share the stage's parts.
        is_about: Whether the rows are an estimate, or the most there can be.
    """

    rows: int
    pool_rows: int
    width: int = 0
    clusters: int = 0
    unevenness: Number = UNEVENNESS
    pool_bytes: Number = 0.0
    row_seconds: Number | None = None
    workers: int = 1
    is_about: bool = False


class Timing(NamedTuple):
    """Seconds on a machine, None where a part is not known; what takes the most of them; of each resource."""

    seconds: Number | None
    bound_by: str
    by: dict[str, Number]


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

    def on(self, machine: Machine, is_in_memory: bool = False) -> Timing:
        """Seconds on a machine, one resource after another; `is_in_memory` if nothing must be read from disk.

        Nothing but `elsewhere` is taken to overlap, since stages read, multiply and write in turn.
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
        if self.elsewhere is not None:
            name, seconds = self.elsewhere
            if seconds is None or seconds > sum(by.values()):
                return Timing(seconds, name, by)
        if unknown := [name for name, (work, rate) in parts.items() if work and not rate]:
            return Timing(None, unknown[0], by)
        return Timing(sum(by.values()), max(by, key=lambda name: by[name], default=""), by)

    def __add__(self, other: "Effort") -> "Effort":
        """One after the other: work adds up, memory is the larger."""
        both = [each.elsewhere for each in (self, other) if each.elsewhere]
        known = [seconds for _, seconds in both if seconds is not None]
        work = ("flops", "values", "columns", "bytes_read", "bytes_written", "sent")
        return Effort(
            rows=max(self.rows, other.rows),
            memory=max(self.memory, other.memory),
            elsewhere=(both[0][0], sum(known) if len(known) == len(both) else None) if both else None,
            **{name: getattr(self, name) + getattr(other, name) for name in work},
        )


def vector_bytes(rows: Number, width: int) -> Number:
    """Bytes of stored vectors: fp16."""
    return 2.0 * rows * width
