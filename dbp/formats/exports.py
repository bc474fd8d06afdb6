"""What the store holds, in the files of other tools: keep lists, vectors, clusterings."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from dbp.data.clusters import Clusters
from dbp.data.embeddings import Embeddings
from dbp.data.pool import Pool
from dbp.decisions import explained
from dbp.engine.disk import replacing
from dbp.engine.store import Store
from dbp.errors import ConfigError, StoreError
from dbp.formats.exchange import write_uid_file
from dbp.formats.shared_names import SharedNames, shared_names
from dbp.lineage import open_keep_list, open_pool_of

BLOCK = 1 << 20  # rows written at once
Made = TypeVar("Made")


def export_keep(store: Store, key: str, form: str, out: Path) -> str:
    """Write a keep list; return what was done, as a sentence."""
    entry, keep = open_keep_list(store, key)
    pool = open_pool_of(store, entry)
    _need_new(out)
    if form == "decisions":
        tables = explained(store, entry.key).decision_tables(np.arange(pool.num_rows), BLOCK)
        count = write_tables(out, (_with_uids(pool, table) for table in tables))
        return f"wrote the decisions over {count:,} rows of keep list {entry.key} to {out}"
    rows = np.flatnonzero(~keep.mask) if form == "removed" else keep.rows
    shared = shared_names(pool, keep.mask) if form in ("datacomp", "txt") else ""
    if isinstance(shared, SharedNames):
        shared.refuse(f"keep list {entry.key[:12]}", ", or export format=parquet or webdataset, which name rows")
    if form in ("datacomp", "txt") and keep.repeats is not None:
        rows = np.repeat(rows, keep.repeats)  # a name that stands there twice is a sample that is taken twice
    if form == "datacomp":
        write_uid_file(out, pool.index.at("uid", rows))
    elif form == "txt":
        with replacing(out) as handle:
            for uids in _blocks(rows, pool.uids):
                if broken := next((uid for uid in uids if "\n" in uid or "\r" in uid), None):
                    raise ConfigError(
                        f"uid {broken!r} holds a line break, so a list of one uid a line cannot "
                        "hold it. Export format=parquet."
                    )
                handle.writelines(f"{uid}\n".encode() for uid in uids)
    elif form == "parquet" and keep.weights is not None:
        weights = keep.over(keep.weights, 0)
        write_tables(
            out, _blocks(rows, lambda block: _named(pool, block).append_column("weight", [weights[block]]))
        )
    else:
        write_tables(out, _blocks(rows, lambda block: _named(pool, block)))
    return f"wrote {len(rows):,} uids of keep list {entry.key} to {out}{shared}"


def export_embeddings(store: Store, keys: str, form: str, out: Path) -> str:
    """Write vectors in clip-retrieval's layout: numbered `.npy` beside Parquet in the same order.

    Args:
        keys: One artifact, or an image and a text side of one encoder with a comma between: then the rows that have
            both vectors.
    """
    sides: dict[str, Embeddings] = {}
    pools: dict[str, Pool] = {}
    for key in keys.split(","):
        entry, found = store.find(key), store.open(key)
        if not isinstance(found, Embeddings):
            raise StoreError(f"{key} is the artifact of stage {entry.stage}, no embeddings.")
        side = "text" if entry.manifest["parameters"].get("side") == "text" else "img"
        if side in sides:
            raise ConfigError(f"embeddings={keys}: two of them are {side} vectors. Give one of each side.")
        sides[side], pools[entry.manifest["inputs"]["pool"]["identity"]] = found, open_pool_of(store, entry)
    if len(pools) > 1:
        raise ConfigError(f"embeddings={keys}: they are of two pools, whose rows are not the same samples.")
    (pool,), every = pools.values(), list(sides.values())
    count = 0
    with _new_folder(out) as beside:
        for name in (*(f"{side}_emb" for side in sides), "metadata"):
            (beside / name).mkdir()
        for part in range(len(every[0].parts)):
            rows = every[0].part_rows(part)
            if len(every) > 1:  # parts of two sides may hold other rows
                rows = rows[np.isin(rows, every[1].rows)]
            for side, found in sides.items():
                np.save(beside / f"{side}_emb" / f"{side}_emb_{part:07d}.npy", found.gather(rows))
            pq.write_table(_named(pool, rows), beside / "metadata" / f"metadata_{part:07d}.parquet")
            count += len(rows)
    return f"wrote {count:,} {' and '.join(sides)} vectors of width {every[0].width} to {out}"


def export_clusters(store: Store, key: str, form: str, out: Path) -> str:
    """Write a clustering: SemDeDup's sorted text cells, or one Parquet table."""
    entry, found = store.find(key), store.open(key)
    if not isinstance(found, Clusters):
        raise StoreError(f"{key} is the artifact of stage {entry.stage}, no clustering.")
    pool = open_pool_of(store, entry)

    def assigned(rows: np.ndarray) -> pa.Table:
        columns = {"cluster": found.assignment[rows], "distance": found.distance_to_centroid[rows]}
        return pa.table({"row": rows, "uid": pool.index.at("uid", rows), **columns})

    with _new_folder(out) as beside:
        if form == "parquet":
            np.save(beside / "centroids.npy", found.centroids)
            write_tables(beside / "assignment.parquet", _blocks(np.flatnonzero(found.is_clustered), assigned))
        else:
            np.save(beside / "kmeans_centroids.npy", found.centroids)
            for cluster in range(found.num_clusters):
                np.save(beside / f"cluster_{cluster}.npy", _cells(pool, found, cluster))
    return f"wrote {int(found.sizes.sum()):,} rows in {found.num_clusters:,} clusters to {out}"


def _cells(pool: Pool, clusters: Clusters, cluster: int) -> np.ndarray:
    """SemDeDup's cells of one cluster, farthest first; an empty cluster is what its code saves."""
    rows, _ = clusters.members(cluster, cluster + 1)
    if len(rows) == 0:
        return np.zeros(0)
    distance = np.asarray(clusters.distance_to_centroid[rows])
    order = np.argsort(-distance, kind="stable")
    found = zip(pool.uids(rows[order]), rows[order].tolist(), distance[order].tolist(), strict=True)
    return np.array([(uid, str(row), str(float(far)), str(cluster)) for uid, row, far in found])


def _named(pool: Pool, rows: Int[np.ndarray, " m"]) -> pa.Table:
    """Row, uid, shard and key of rows; the shard by its file's name, with its folders where names repeat."""
    number = pool.column("shard")[rows]
    names = list(pool.shard_names)
    names += [str(n) for n in range(len(names), int(number.max(initial=0)) + 1)]
    shards = pa.DictionaryArray.from_arrays(pa.array(number), pa.array(names)).cast(pa.string())
    uid, key = (pool.index.at(name, rows) for name in ("uid", "key"))
    return pa.table({"row": rows, "uid": uid, "shard": shards, "key": key})


def _with_uids(pool: Pool, table: pa.Table) -> pa.Table:
    """A decision table with the names of its rows, and of those that they were compared with."""
    related = table["related_row"].combine_chunks()
    is_there = related.is_valid().to_numpy(zero_copy_only=False)
    uids = np.full(len(table), None, object)
    uids[is_there] = pool.uids(related.drop_null().to_numpy())
    place = table.column_names.index("related_row") + 1
    table = table.add_column(place, "related_uid", pa.array(uids, pa.string()))
    return table.add_column(1, "uid", pool.index.at("uid", table["row"].to_numpy()))


def _blocks(rows: np.ndarray, make: Callable[[np.ndarray], Made]) -> Iterator[Made]:
    for start in range(0, max(len(rows), 1), BLOCK):
        yield make(rows[start : start + BLOCK])


def write_tables(out: Path, tables: Iterable[pa.Table]) -> int:
    """Write one table or more, one after another, into one Parquet file; return the rows."""
    count, writer = 0, None
    with replacing(out) as handle:
        for table in tables:
            writer = writer or pq.ParquetWriter(handle, table.schema, compression="zstd")
            writer.write_table(table)
            count += table.num_rows
        if writer:
            writer.close()
    return count


def _need_new(out: Path) -> None:
    if out.is_dir():
        raise ConfigError(f"out={str(out)!r} exists. Give a new folder, or remove that one.")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all is written."""
    _need_new(out)
    beside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
