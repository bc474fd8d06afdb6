"""Pools and vectors for tests of scores: made-up rows, laid out in shards and parts of any sizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dbp.data.columns import Columns
from dbp.data.embeddings import Embeddings, save_part
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.work import Work
from dbp.formats.uid_pairs import hashes_64


def pool_of(folder: Path, uids: Sequence[str], shards: Sequence[int] | None = None) -> Pool:
    """A pool of metadata alone: uids in their order, cut into shards of some sizes."""
    files, start = [], 0
    for number, size in enumerate(shards or [len(uids)]):
        own = pa.array(uids[start : start + size], pa.large_string())
        home = folder / f"part-{number:07d}"
        home.mkdir(parents=True)
        pq.write_table(pa.table({"uid": own, "uid_hash": pa.array(hashes_64(own))}), home / "index.parquet")
        files.append(home / "index.parquet")
        start += size
    assert start == len(uids)
    return Pool(Columns(files), [], "pool", "txt", 10**6)


def valid_of(pool: Pool, without: Sequence[int] = ()) -> KeepList:
    """The rows of a pool but some."""
    return KeepList(pool.digest, ~np.isin(np.arange(pool.num_rows), np.asarray(without, int)))


def embeddings_of(folder: Path, vectors: np.ndarray, parts: int = 1, without: Sequence[int] = ()) -> Embeddings:
    """The vectors of all rows but some, in parts."""
    for number, rows in enumerate(np.array_split(np.arange(len(vectors)), parts)):
        home = folder / f"part-{number:07d}"
        home.mkdir(parents=True)
        there = np.setdiff1d(rows, without)
        save_part(home, there, vectors[there], {int(r): "cut" for r in np.intersect1d(rows, without)})
    return Embeddings.load(folder)


def stored(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors in float64, as the fp16 in the store gives them."""
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    half = (vectors / lengths).astype(np.float32).astype(np.float16).astype(np.float64)
    return half / np.sqrt((half**2).sum(axis=1, keepdims=True))


def made(stage: Any, folder: Path, **inputs: Any) -> tuple[Scores, dict[str, Any]]:
    """What a score stage makes, and its counts."""
    folder.mkdir(parents=True)
    counts = stage.run(Work(folder, folder / "shared", "key"), **inputs)
    return Scores.load(folder), counts
