"""Why rows have no vector, kept beside what was made without them, for the decision table."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from dbp.data.embeddings import Embeddings


def save_missing(folder: Path, rows: Int[np.ndarray, " n"], *sides: Embeddings | None) -> None:
    """Write `missing.parquet`: of these rows those without a vector, and the first side's reason."""
    reasons: dict[int, str] = {}
    for side in sides:
        for row, reason in side.failed.items() if side else ():
            reasons.setdefault(row, reason)
    failed = np.array(sorted(reasons), np.int64)
    failed = failed[np.isin(failed, rows)]
    found = [reasons[row] for row in failed.tolist()]
    table = pa.table({"row": failed, "reason": pa.array(found, pa.string())})
    pq.write_table(table, folder / "missing.parquet")


def load_missing(folder: Path) -> dict[int, str]:
    """Row -> why it has no vector, as `save_missing` wrote it; nothing where it wrote none."""
    if not (folder / "missing.parquet").exists():
        return {}
    table = pq.read_table(folder / "missing.parquet")
    return dict(zip(table["row"].to_pylist(), table["reason"].to_pylist(), strict=True))


def reasons_of(
    rows: Int[np.ndarray, " n"], missing: dict[int, str], otherwise: str | np.ndarray
) -> np.ndarray:
    """For each row why it is missing, where that is known; else `otherwise`."""
    reasons = np.broadcast_to(np.asarray(otherwise, object), rows.shape).copy()
    for at in np.flatnonzero(np.isin(rows, list(missing))):
        reasons[at] = missing[int(rows[at])]
    return reasons
