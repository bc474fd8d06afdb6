"""What balancing did to each entry: its captions before and after, and the curves of head and tail."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64

from dbp.data.entries import Entries

FILE = "entries.parquet"


def write_entry_table(
    folder: Path,
    languages: Sequence[str],
    entries: Entries,
    counts: Int64[np.ndarray, "l e"],
    thresholds: Float64[np.ndarray, " l"],
    kept: Int64[np.ndarray, "l e"],
) -> None:
    """Write `entries.parquet`: language, entry, count, probability and kept.

    For all entries; of several languages, for those with a match in the language.
    """
    tables = []
    for name, own, threshold, left in zip(languages, counts, thresholds, kept, strict=True):
        at = np.flatnonzero(own) if len(languages) > 1 else np.arange(len(own))
        tables.append(
            pa.table(
                {
                    "language": pa.array([name] * len(at), pa.string()),
                    "entry": pa.array([entries.texts[n] for n in at.tolist()], pa.string()),
                    "count": own[at],
                    "probability": threshold / np.maximum(own[at], threshold),
                    "kept": left[at],
                }
            )
        )
    pq.write_table(pa.concat_tables(tables), folder / FILE, compression="zstd")


def head_and_tail(folder: Path, num_top: int = 20, num_points: int = 200) -> dict[str, Any]:
    """The entries with a match of a selection, for people to look at.

    Returns:
        `top`: the most frequent entries with their captions before and after. `curve`: for entries from
        the most frequent to the rarest, at places that are even on a logarithmic scale: `place` (from 1),
        `before` and `after`, the share of all matches on the entries up to that place.
    """
    order: Any = [("count", "descending"), ("language", "ascending"), ("entry", "ascending")]
    table = pq.read_table(folder / FILE, filters=[("count", ">", 0)]).sort_by(order)
    size = table.num_rows
    places = np.unique(np.geomspace(1, max(size, 1), num_points).astype(np.int64))[: max(size, 0)]
    curve: dict[str, list[Any]] = {"place": places.tolist()}
    for name, column in (("before", "count"), ("after", "kept")):
        mass = np.cumsum(table[column].to_numpy())
        share = mass / max(int(mass[-1]) if size else 1, 1)
        curve[name] = share[places - 1].tolist() if size else []
    return {
        "entries": size,
        "matches": pc.call_function("sum", [table["count"]]).as_py() or 0,
        "matches kept": pc.call_function("sum", [table["kept"]]).as_py() or 0,
        "top": table.slice(0, num_top).to_pylist(),
        "curve": curve,
    }
