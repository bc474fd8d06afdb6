"""The pool whose rows are those of SemDeDup's sorted cluster files."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from dbp.data.pool import SCHEMA, Pool, digest_16, hash_64
from dbp.engine.parts import Parted
from dbp.engine.stage import Node, runtime
from dbp.engine.work import Part, Work
from dbp.errors import PoolError
from dbp.formats.sorted_clusters import BLOCK, SortedClusters
from dbp.pools.identity import joined, warn_of_twins
from dbp.pools.index import part_name

PART = 1_000_000  # rows of one part of the index, up to a cluster more


@dataclass(frozen=True)
class SortedClusterPool(Parted):
    """The pool of the samples that sorted cluster files name, in cluster order.

    The uid is the key, whole. There are no pictures, captions or shards: every row is valid, and `shard` is
    the cluster's number. The content of a sample is not known, so its content hash is that of its uid,
    and no two uids are taken for exact copies.

    Args:
        path: The folder of `cluster_{j}.npy`.
        centroids: Where `cluster=imported` finds the centroids; not read here.
    """

    name: ClassVar[str] = "index"
    version: ClassVar[int] = 1
    makes: ClassVar[type] = Pool
    content_named: ClassVar[bool] = True
    unit: ClassVar[str] = "runs of clusters"
    keeps_parts: ClassVar[bool] = True

    path: str = runtime("")
    centroids: str | None = runtime(None)

    def node(self) -> Node:
        """This pool as a config names it."""
        return self.bind()

    def source(self) -> dict[str, Any]:
        # Read anew: files may have changed since.
        return {"sorted clusters": SortedClusters.open(self.path, setting="pool.path").source()}

    def parts(self) -> list[Part]:
        """One for each run of cluster files."""
        clusters = self._clusters
        return [
            Part(part_name(n), n, float(clusters.sizes[run].sum())) for n, run in enumerate(runs(clusters.sizes))
        ]

    def make(self, part: Part, folder: Path) -> dict[str, Any]:
        clusters, content = self._clusters, hashlib.sha256()
        run = runs(clusters.sizes)[part.number]
        with pq.ParquetWriter(folder / "index.parquet", SCHEMA, compression="zstd") as writer:
            waiting, count = [], 0  # clusters can be small, and a group of rows should not be
            for cluster in range(run.start, run.stop):
                for members in clusters.blocks(cluster):
                    encoded = [key.encode() for key in members.keys]
                    content.update(b"".join(len(key).to_bytes(4, "little") + key for key in encoded))
                    waiting.append(_rows(cluster, members.keys, encoded))
                    count += len(encoded)
                    if count >= BLOCK:
                        writer.write_table(pa.concat_tables(waiting).combine_chunks())
                        waiting, count = [], 0
            if waiting:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
        return {"digest": content.hexdigest()}

    def finish(self, work: Work, counts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        clusters = self._clusters
        if clusters.num_rows == 0:
            raise PoolError(
                f"all {clusters.num_clusters:,} clusters in {clusters.folder} are empty. Give pool.path of "
                "a clustering with members."
            )
        index = joined(work.shared, counts)
        warn_of_twins(index, "the keys of the cluster files")
        empty = int((clusters.sizes == 0).sum())
        return index.counts(clusters.num_rows, clusters=clusters.num_clusters, **{"empty clusters": empty})

    def open(self, home: Path, **inputs: Any) -> Pool:
        return Pool.load(home, [], "txt", 1)

    @cached_property
    def _clusters(self) -> SortedClusters:
        return SortedClusters.open(self.path, setting="pool.path")


def runs(sizes: Int[np.ndarray, " k"]) -> list[slice]:
    """Consecutive clusters of about `PART` rows together: by the data alone, so that parts stay."""
    group = (np.cumsum(sizes) - sizes) // PART
    starts = np.flatnonzero(np.diff(group, prepend=-1)).tolist()
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(sizes)], strict=True)]


def _rows(cluster: int, keys: list[str], encoded: list[bytes]) -> pa.Table:
    uids = pa.array(keys, pa.string())
    n = len(uids)
    known = {
        "uid": uids,
        "key": uids,
        "uid_hash": pa.array(np.fromiter(map(hash_64, encoded), np.uint64, n)),
        "shard": pa.repeat(pa.scalar(cluster, pa.int32()), n),
        "orientation": pa.repeat(pa.scalar(1, pa.int8()), n),
        "content_hash": pa.array([digest_16(key) for key in encoded], pa.binary(16)),
        "caption_hash": pa.array([digest_16(b"")] * n, pa.binary(16)),
    }
    for field in SCHEMA:
        nothing = "" if field.type == pa.string() else 0
        if field.name not in known:
            known[field.name] = pa.repeat(pa.scalar(nothing, field.type), n)
    return pa.table([known[name] for name in SCHEMA.names], schema=SCHEMA)
