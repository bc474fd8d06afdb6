"""A clustering that others published, joined to the rows of a pool."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.data.missing import Missing
from dbp.data.pool import Pool, hash_64
from dbp.engine.progress import progress
from dbp.engine.stage import Stage, runtime
from dbp.engine.work import Work
from dbp.errors import WorldError
from dbp.formats.sorted_clusters import Members, SortedClusters, find_centroids, load_centroids

RUN = 2_000_000  # members joined at once: about 400 MB of keys, theirs and the pool's
ROUNDING = 1e-3  # how far a distance may lie outside [0, 2]
ABSENT = "not in the cluster files"


@dataclass(frozen=True)
class Imported(Stage):
    """SemDeDup's sorted clusters as the clustering that selection uses.

    Samples are joined by uid. Where a uid repeats, the first row of the pool takes the first member of the
    files, and so on. Rows that no file names, and members that the pool lacks, are counted. Memory: about
    40 bytes a row of the pool, and one run of keys.

    Args:
        on: Rows that are clustered: those of the `pool`, those left by `dedup`, or those left by the filter.
        path: The folder of `cluster_{j}.npy`.
        centroids: The centroids' .npy file; null for SemDeDup's own name in the folder or above it.
    """

    name: ClassVar[str] = "cluster"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")
    makes: ClassVar[type] = Clusters

    on: Literal["pool", "dedup", "filtered"]
    path: str = runtime("")
    centroids: str | None = runtime(None)

    def source(self) -> dict[str, Any]:
        clusters = self._clusters()
        stat = self._centroids(clusters).stat()
        described = f"{clusters.source()} {stat.st_size} {stat.st_mtime_ns}"
        return {"sorted clusters": hashlib.sha256(described.encode()).hexdigest()}

    def run(self, work: Work, rows: KeepList, pool: Pool) -> dict[str, Any]:
        clusters = self._clusters()
        path = self._centroids(clusters)
        centroids = load_centroids(path)
        if len(centroids) != clusters.num_clusters:
            raise WorldError(
                f"{path} holds {len(centroids):,} centroids, and {clusters.folder} holds "
                f"{clusters.num_clusters:,} clusters. Give cluster.centroids of the same k-means."
            )
        lengths = np.linalg.norm(centroids.astype(np.float64), axis=1, keepdims=True)
        unit = (centroids / lengths).astype(np.float32)
        join = Join(pool, rows.mask)
        with progress("cluster", clusters.num_rows, "members") as bar:
            for members in runs(clusters):
                join.add(members)
                bar.advance(len(members.keys))
        absent = np.flatnonzero(rows.mask & (join.assignment < 0))
        missing = Missing(absent, np.zeros(len(absent), np.uint8), (ABSENT,))
        made = Clusters(unit, join.assignment, join.distance, missing)
        made.save(work.folder)
        sizes = made.sizes
        num_found = int(np.count_nonzero(join.is_found))
        return {
            "rows": int(sizes.sum()),
            ABSENT: len(absent),
            "members not in the pool": clusters.num_rows - num_found,
            "members that had gone before": num_found - int(sizes.sum()),
            "clusters": len(unit),
            "empty clusters": int((sizes == 0).sum()),
            "largest": int(sizes.max()),
            "centroids not of unit length": int((np.abs(lengths - 1) > ROUNDING).sum()),
        }

    def _clusters(self) -> SortedClusters:
        return SortedClusters.open(self.path, setting="cluster.path")

    def _centroids(self, clusters: SortedClusters) -> Path:
        return find_centroids(clusters.folder, self.centroids, "cluster.centroids")


@dataclass(frozen=True)
class Run:
    """Consecutive members of the cluster files."""

    keys: list[str]
    cluster: Int32[np.ndarray, " r"]
    distance: Float32[np.ndarray, " r"]


def runs(clusters: SortedClusters, num_rows: int = RUN) -> Iterator[Run]:
    """All members of all clusters in order, about `num_rows` at once.

    Raises:
        WorldError: A distance is no cosine distance.
    """
    waiting: list[Members] = []
    count = 0
    for cluster in range(clusters.num_clusters):
        for members in clusters.blocks(cluster):
            _check_distances(members, clusters.path(cluster))
            waiting.append(members)
            count += len(members.keys)
            if count >= num_rows:
                yield _run(waiting)
                waiting, count = [], 0
    if waiting:
        yield _run(waiting)


def _run(members: list[Members]) -> Run:
    return Run(
        [key for some in members for key in some.keys],
        np.concatenate([np.full(len(some.keys), some.cluster, np.int32) for some in members]),
        np.concatenate([some.distance_to_centroid for some in members]).clip(0, 2).astype(np.float32),
    )


def _check_distances(members: Members, path: Path) -> None:
    distance = members.distance_to_centroid
    outside = (distance < -ROUNDING) | (distance > 2 + ROUNDING)
    if outside.any():
        raise WorldError(
            f"{path} has a distance to the centroid of {distance[np.argmax(outside)]:.6g}, and a cosine "
            "distance lies between 0 and 2. The embeddings were not of unit length, or the clusters were "
            "sorted by l2; sort them again by sim_metric=cosine, or use cluster=kmeans."
        )


class Join:
    """Members found among the rows of a pool by uid: by hash, then by the uid itself.

    Args:
        pool: Whose rows are looked for.
        wanted: Rows that may be clustered.
    """

    def __init__(self, pool: Pool, wanted: Bool[np.ndarray, " n"]) -> None:
        hashes = pool.uid_hashes
        self.pool, self.wanted = pool, wanted
        self.assignment: Int32[np.ndarray, " n"] = np.full(len(hashes), -1, np.int32)
        self.distance: Float32[np.ndarray, " n"] = np.full(len(hashes), np.nan, np.float32)
        self.is_found: Bool[np.ndarray, " n"] = np.zeros(len(hashes), bool)
        self._order = np.argsort(hashes, kind="stable")  # of equal hashes the lower row first
        self._hashes = hashes[self._order]
        self._met = np.zeros(len(hashes), np.int32)  # by a hash's first place: members so far
        self._shared: set[int] = set()  # first places of hashes that different uids have

    def add(self, run: Run) -> None:
        """Give the rows that these members name their cluster and distance."""
        hashes = np.fromiter((hash_64(k.encode()) for k in run.keys), np.uint64, len(run.keys))
        first = np.searchsorted(self._hashes, hashes, "left")
        behind = np.searchsorted(self._hashes, hashes, "right")
        met = np.flatnonzero(first < behind)
        # The i-th member of a uid takes the i-th row of it.
        place = first[met] + self._met[first[met]] + earlier_equals(first[met])
        np.add.at(self._met, first[met], 1)
        is_there = place < behind[met]
        tried, rows = met[is_there], self._order[place[is_there]]
        same = self._same(rows, [run.keys[at] for at in tried.tolist()]) & ~self.is_found[rows]
        self._take(run, tried[same], rows[same])
        # Two uids of one hash: in 100 million rows one time in 4,000.
        self._shared.update(first[tried[~same]].tolist())
        if not self._shared:
            return
        waiting = np.setdiff1d(met, tried[same], assume_unique=True)
        for at in waiting[np.isin(first[waiting], list(self._shared))].tolist():
            rows = self._order[first[at] : behind[at]]
            rows = rows[~self.is_found[rows]]
            rows = rows[self._same(rows, [run.keys[at]] * len(rows))][:1]
            self._take(run, np.full(len(rows), at), rows)

    def _same(self, rows: Int[np.ndarray, " m"], keys: list[str]) -> Bool[np.ndarray, " m"]:
        uids = self.pool.uids(rows) if len(rows) else []
        return np.array([uid == key for uid, key in zip(uids, keys, strict=True)], bool)

    def _take(self, run: Run, at: Int[np.ndarray, " m"], rows: Int[np.ndarray, " m"]) -> None:
        self.is_found[rows] = True
        wanted = self.wanted[rows]
        self.assignment[rows[wanted]] = run.cluster[at[wanted]]
        self.distance[rows[wanted]] = run.distance[at[wanted]]


def earlier_equals(values: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """For each value, how many equal ones stand before it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begins = np.searchsorted(ordered, ordered, "left")
    found = np.empty(len(values), np.int64)
    found[order] = np.arange(len(values)) - begins
    return found
