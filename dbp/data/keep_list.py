"""The keep list: the sorted rows that stay, and for every row why it stayed or went."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int

DECISIONS = pa.schema(
    [
        ("row", pa.int64()),
        ("kept", pa.bool_()),
        ("stage", pa.string()),  # the stage that decided last
        ("reason", pa.string()),
        ("value", pa.float64()),  # what was compared: similarity, score, distance
        ("limit", pa.float64()),  # what it was compared with
        ("related_row", pa.int64()),  # the duplicate's twin
        ("cluster", pa.int32()),
        ("rank", pa.int64()),  # place within the cluster, or in the whole list; 0 is taken first
        ("quota", pa.int64()),  # rows to keep in that cluster, or in all
    ]
)


@dataclass(frozen=True)
class KeepList:
    """Rows of one pool that stay.

    Laws: rows are sorted and unique; each row of the pool stands once in `decisions`; equal rows of
    an equal pool have an equal digest; `&` and `|` give keep lists of the same pool.
    """

    pool_digest: str
    num_pool_rows: int
    rows: Int[np.ndarray, " m"]
    decisions: pa.Table

    def __post_init__(self) -> None:
        assert bool(np.all(np.diff(self.rows) > 0)), "rows are sorted and unique"
        assert len(self.rows) == 0 or self.rows[-1] < self.num_pool_rows, "rows are of this pool"

    @property
    def num_kept(self) -> int:
        return len(self.rows)

    @cached_property
    def digest(self) -> str:
        """Content identity: of the pool and the rows, not of how they were found."""
        content = self.pool_digest.encode() + np.ascontiguousarray(self.rows, "<i8").tobytes()
        return hashlib.sha256(content).hexdigest()[:24]

    @cached_property
    def mask(self) -> Bool[np.ndarray, " n"]:
        mask = np.zeros(self.num_pool_rows, bool)
        mask[self.rows] = True
        return mask

    def decision(self, row: int) -> dict[str, Any]:
        """Why a row stayed or went."""
        found = self.decisions.filter(pc.field("row") == row)
        return found.to_pylist()[0]

    def counts(self) -> dict[str, int]:
        """Rows by the stage and reason that decided them."""
        grouped = self.decisions.group_by(["stage", "reason"]).aggregate([("row", "count")])
        return {
            f"{r['stage']}: {r['reason']}": r["row_count"]
            for r in sorted(grouped.to_pylist(), key=lambda r: -r["row_count"])
        }

    def narrow(
        self,
        stage: str,
        keep: Bool[np.ndarray, " m"],
        reasons: np.ndarray | str,
        kept_reason: str,
        **columns: np.ndarray,
    ) -> "KeepList":
        """Keep some of these rows, and write down why the others went.

        Args:
            stage: The stage that decides.
            keep: For each of `rows`, whether it stays.
            reasons: For each of `rows`, why it goes (read where it does), or one text for all.
            kept_reason: Why the others stay.
            columns: Further columns of the decision table, over `rows`; by default missing.
        """
        why = np.broadcast_to(np.asarray(reasons, object), keep.shape).copy()
        why[keep] = kept_reason
        data: dict[str, Any] = {
            "row": self.rows,
            "kept": keep,
            "stage": pa.array([stage]).take(np.zeros(len(keep), int)),
            "reason": why,
        }
        for item in DECISIONS:
            if item.name not in data:
                values = columns.get(item.name)
                data[item.name] = (
                    pa.nulls(len(keep), item.type) if values is None else _column(values, item.type)
                )
        decided = pa.table(data, schema=DECISIONS)
        before = self.decisions.filter(~pc.field("kept"))
        return KeepList(
            self.pool_digest,
            self.num_pool_rows,
            self.rows[keep],
            pa.concat_tables([before, decided]),
        )

    def __and__(self, other: "KeepList") -> "KeepList":
        return self._combined(other, np.intersect1d(self.rows, other.rows), "in both lists")

    def __or__(self, other: "KeepList") -> "KeepList":
        return self._combined(other, np.union1d(self.rows, other.rows), "in one of the lists")

    def _combined(self, other: "KeepList", rows: np.ndarray, reason: str) -> "KeepList":
        if other.pool_digest != self.pool_digest:
            raise ValueError(
                f"keep lists of two pools ({self.pool_digest[:12]}, "
                f"{other.pool_digest[:12]}) cannot be combined by row; export uids instead"
            )
        every = everything(self.pool_digest, np.ones(self.num_pool_rows, bool))
        keep = np.isin(every.rows, rows)
        return every.narrow("combine", keep, f"not {reason}", reason)

    def save(self, folder: Path) -> None:
        """Write `rows.npy` and `decisions.parquet`."""
        np.save(folder / "rows.npy", self.rows)
        schema = DECISIONS.with_metadata(
            {"pool": self.pool_digest, "rows": str(self.num_pool_rows)}
        )
        table = self.decisions.sort_by("row").replace_schema_metadata(schema.metadata)
        pq.write_table(
            table,
            folder / "decisions.parquet",
            compression="zstd",
            use_dictionary=["stage", "reason"],  # type: ignore[arg-type]
        )

    @classmethod
    def load(cls, folder: Path) -> "KeepList":
        table = pq.read_table(folder / "decisions.parquet")
        about = table.schema.metadata
        return cls(
            about[b"pool"].decode(),
            int(about[b"rows"]),
            np.load(folder / "rows.npy"),
            table.replace_schema_metadata(None),
        )


def everything(
    pool_digest: str, is_valid: Bool[np.ndarray, " n"], reasons: np.ndarray | str = "invalid"
) -> KeepList:
    """The keep list of all valid rows of a pool."""
    rows = np.arange(len(is_valid), dtype=np.int64)
    empty = pa.table({f.name: pa.array([], f.type) for f in DECISIONS}, schema=DECISIONS)
    return KeepList(pool_digest, len(rows), rows, empty).narrow("pool", is_valid, reasons, "valid")


def _column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    if values.dtype.kind == "f":
        return pa.array(values, kind, mask=np.isnan(values))
    return pa.array(values.astype(kind.to_pandas_dtype()), kind, mask=values < 0)
