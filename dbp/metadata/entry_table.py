"""What balancing did to each entry: its captions before and after."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int64

from dbp.data.entries import Entries

FILE = "entries.parquet"


def write_entry_table(
    folder: Path,
    languages: Sequence[str],
    places: Sequence[slice],
    entries: Entries,
    counts: Int64[np.ndarray, " c"],
    thresholds: Float64[np.ndarray, " l"],
    kept: Int64[np.ndarray, " c"],
) -> None:
    """Write `entries.parquet`: language, entry, count, probability and kept.

    For all entries; of several languages, for those with a match in the language.
    """
    tables = []
    for name, place, threshold in zip(languages, places, thresholds, strict=True):
        own, left, start = counts[place], kept[place], place.start % len(entries)
        texts = entries.texts[start : start + len(own)]
        at = np.flatnonzero(own) if len(languages) > 1 else np.arange(len(own))
        tables.append(
            pa.table(
                {
                    "language": pa.array([name] * len(at), pa.string()),
                    "entry": pa.array([texts[n] for n in at.tolist()], pa.string()),
                    "count": own[at],
                    "probability": threshold / np.maximum(own[at], threshold),
                    "kept": left[at],
                }
            )
        )
    pq.write_table(pa.concat_tables(tables), folder / FILE, compression="zstd")
