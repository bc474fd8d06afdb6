"""Write what the store holds for other tools.

    dbp export keep=KEY format=FORMAT out=FILE

datacomp     a sorted `<u8,u8` .npy of 128-bit uids
txt          a uid a line
parquet      row, uid, shard, key of what is kept
removed      the same, of what is not kept
decisions    parquet: for every row of the pool, which stage decided, why, and what was compared with what
webdataset   out=FOLDER: shards of the kept samples, copied byte for byte; also shard_size=10000, seed=0,
             shuffle=true, workers=1, verify=true

    dbp export embeddings=KEY format=FORMAT out=FOLDER

laion        img_emb/*.npy and metadata/*.parquet, as clip-retrieval and embedding-reader have them

    dbp export clusters=KEY format=FORMAT out=FOLDER

semdedup     cluster_0.npy and on: text cells of uid, row, distance, cluster, farthest first; centroids
parquet      row, uid, cluster, distance of every clustered row, and centroids.npy
"""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.decisions import explained
from dbp.engine.store import Store
from dbp.errors import ConfigError, StoreError, nearest
from dbp.formats.exchange import write_uid_file
from dbp.lineage import open_keep_list, open_pool_of
from dbp.verbs.show import read_arguments

BLOCK = 1 << 20  # rows written at once
FORMATS = {
    "keep": ("datacomp", "txt", "parquet", "removed", "decisions", "webdataset"),
    "embeddings": ("laion",),
    "clusters": ("semdedup", "parquet"),
}
SHARDS = {"shard_size": "10000", "seed": "0", "shuffle": "true", "workers": "1", "verify": "true"}


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp export`."""
    settings, words = read_arguments(arguments, (*FORMATS, *SHARDS, "format", "out", "paths.store", "paths.runs"))
    if words:
        raise ConfigError(f"dbp export takes keep=KEY format=FORMAT out=FILE; {words[0]!r} is none of them")
    kinds = [kind for kind in FORMATS if kind in settings]
    if len(kinds) != 1:
        raise ConfigError("dbp export needs one of keep=KEY, embeddings=KEY, clusters=KEY; see --help")
    for name in ("format", "out"):
        if name not in settings:
            raise ConfigError(f"dbp export needs {name}=…; see dbp export --help")
    kind, form = kinds[0], settings["format"]
    if form not in FORMATS[kind]:
        raise ConfigError(f"format={form}: {nearest(form, FORMATS[kind])}")
    if form != "webdataset" and (extra := next((name for name in SHARDS if name in settings), None)):
        raise ConfigError(f"{extra}={settings[extra]} belongs to format=webdataset")
    store = Store(settings.get("paths.store", "./store"), settings.get("paths.runs", "./runs"))
    out = Path(settings["out"])
    if not out.parent.is_dir():
        raise ConfigError(f"out={str(out)!r}: the folder {out.parent} does not exist. Make it first.")
    export = {"keep": export_keep, "embeddings": export_embeddings, "clusters": export_clusters}[kind]
    print(export(store, settings[kind], form, out, SHARDS | settings))


def export_keep(store: Store, key: str, form: str, out: Path, settings: dict[str, str]) -> str:
    """Write a keep list; return what was done, as a sentence."""
    entry, keep = open_keep_list(store, key)
    pool = open_pool_of(store, entry)
    if form == "webdataset":
        return _write_webdataset(pool, keep, out, settings)
    if form == "decisions":
        whole = explained(store, entry.key)
        tables = whole.decision_tables(np.arange(pool.num_rows), BLOCK)
        count = _write_tables(out, tables)
        return f"wrote the decisions over {count:,} rows of keep list {entry.key} to {out}"
    rows = np.flatnonzero(~keep.mask) if form == "removed" else keep.rows
    if form == "datacomp":
        write_uid_file(out, pool.index.at("uid", rows))
    elif form == "txt":
        with _beside(out) as beside, open(beside, "w", encoding="utf-8", newline="") as handle:
            for uids in _blocks(rows, lambda block: pool.uids(block)):
                if broken := next((uid for uid in uids if "\n" in uid or "\r" in uid), None):
                    raise ConfigError(
                        f"uid {broken!r} holds a line break, so a list of one uid a line cannot "
                        "hold it. Export format=parquet."
                    )
                handle.writelines(f"{uid}\n" for uid in uids)
    else:
        _write_tables(out, _blocks(rows, lambda block: _named(pool, block)))
    return f"wrote {len(rows):,} uids of keep list {entry.key} to {out}"


def _write_webdataset(pool: Pool, keep: KeepList, out: Path, settings: dict[str, str]) -> str:
    from dbp.formats.write_shards import write_shards

    for name in ("shard_size", "seed", "workers"):
        require(settings[name].isdecimal(), name, settings[name], "a whole number")
    for name in ("shuffle", "verify"):
        require(settings[name] in ("true", "false"), name, settings[name], "true or false")
    counts = write_shards(
        pool,
        keep,
        out,
        shard_size=int(settings["shard_size"]),
        seed=int(settings["seed"]),
        shuffle=settings["shuffle"] == "true",
        workers=int(settings["workers"]),
        verify=settings["verify"] == "true",
    )
    said = ", ".join(f"{name} {value:,}" for name, value in counts.items() if isinstance(value, int))
    return f"wrote keep list {keep.digest} to {out}: {said}"


def export_embeddings(store: Store, key: str, form: str, out: Path, settings: dict[str, str]) -> str:
    """Write vectors in clip-retrieval's layout: numbered `.npy` beside Parquet in the same order."""
    entry, found = store.find(key), store.open(key)
    if not isinstance(found, Embeddings):
        raise StoreError(f"{key} is the artifact of stage {entry.stage}, no embeddings.")
    pool = open_pool_of(store, entry)
    side = "text" if entry.manifest["parameters"].get("side") == "text" else "img"
    with _beside(out) as beside:
        for name in (f"{side}_emb", "metadata"):
            (beside / name).mkdir(parents=True)
        for part in range(len(found.parts)):
            rows = found.part_rows(part)
            np.save(beside / f"{side}_emb" / f"{side}_emb_{part:07d}.npy", found.gather(rows))
            pq.write_table(_named(pool, rows), beside / "metadata" / f"metadata_{part:07d}.parquet")
    return f"wrote {len(found.rows):,} vectors of width {found.width} to {out}"


def export_clusters(store: Store, key: str, form: str, out: Path, settings: dict[str, str]) -> str:
    """Write a clustering: SemDeDup's sorted text cells, or one Parquet table."""
    entry, found = store.find(key), store.open(key)
    if not isinstance(found, Clusters):
        raise StoreError(f"{key} is the artifact of stage {entry.stage}, no clustering.")
    pool = open_pool_of(store, entry)
    with _beside(out) as beside:
        beside.mkdir()
        if form == "parquet":
            np.save(beside / "centroids.npy", found.centroids)
            rows = np.flatnonzero(found.is_clustered)
            _write_tables(beside / "assignment.parquet", _blocks(rows, lambda block: _assigned(pool, found, block)))
        else:
            np.save(beside / "kmeans_centroids.npy", found.centroids)
            for cluster in range(found.num_clusters):
                np.save(beside / f"cluster_{cluster}.npy", _cells(pool, found, cluster))
    count = int(found.sizes.sum())
    return f"wrote {count:,} rows in {found.num_clusters:,} clusters to {out}"


def _cells(pool: Pool, clusters: Clusters, cluster: int) -> np.ndarray:
    """SemDeDup's cells of one cluster, farthest first; an empty cluster is what its code saves."""
    rows, _ = clusters.members(cluster, cluster + 1)
    if len(rows) == 0:
        return np.zeros(0)
    distance = np.asarray(clusters.distance_to_centroid[rows])
    order = np.argsort(-distance, kind="stable")
    uids = pool.uids(rows[order])
    cells = [
        (uid, str(row), str(float(far)), str(cluster))
        for uid, row, far in zip(uids, rows[order].tolist(), distance[order].tolist(), strict=True)
    ]
    return np.array(cells)


def _named(pool: Pool, rows: np.ndarray) -> pa.Table:
    """Row, uid, shard and key of rows."""
    number = pool.column("shard")[rows]
    names = [Path(shard).name for shard in pool.shards]
    names += [str(n) for n in range(len(names), int(number.max(initial=0)) + 1)]
    shards = pa.DictionaryArray.from_arrays(pa.array(number), pa.array(names)).cast(pa.string())
    texts = {name: pool.index.at(name, rows) for name in ("uid", "key")}
    return pa.table({"row": rows, "uid": texts["uid"], "shard": shards, "key": texts["key"]})


def _assigned(pool: Pool, clusters: Clusters, rows: np.ndarray) -> pa.Table:
    columns = {"cluster": clusters.assignment[rows], "distance": clusters.distance_to_centroid[rows]}
    return pa.table({"row": rows, "uid": pool.index.at("uid", rows), **columns})


def _blocks(rows: np.ndarray, make: Callable[[np.ndarray], Any]) -> Any:
    for start in range(0, max(len(rows), 1), BLOCK):
        yield make(rows[start : start + BLOCK])


def _write_tables(out: Path, tables: Any) -> int:
    """Write tables one after another into one Parquet file; return the rows."""
    count = 0
    with _beside(out) as beside:
        writer = None
        for table in tables:
            writer = writer or pq.ParquetWriter(beside, table.schema, compression="zstd")
            writer.write_table(table)
            count += table.num_rows
        if writer:
            writer.close()
    return count


@contextmanager
def _beside(out: Path) -> Any:
    """A name beside `out` that takes its place when all is written."""
    import shutil

    beside = out.with_name(f".{out.name}.tmp")
    if beside.is_dir():
        shutil.rmtree(beside)
    if out.is_dir():
        raise ConfigError(f"out={str(out)!r} exists. Give a new folder, or remove that one.")
    try:
        yield beside
        beside.rename(out)
    except BaseException:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        beside.unlink(missing_ok=True)
        raise
