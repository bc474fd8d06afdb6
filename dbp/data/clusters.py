"""Clusters: centroids, and for each row of the pool its cluster and its distance."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int, Int32

from dbp.data.columns import read_column, write_columns
from dbp.data.missing import Missing


@dataclass(frozen=True)
class Clusters:
    """An assignment of rows to k centroids.

    Laws: each row of the pool stands once; sizes sum to the rows that are clustered; centroids have unit
    length; distance is 1 - cosine, in [0, 2].
    """

    centroids: Float32[np.ndarray, "k d"]
    assignment: Int32[np.ndarray, " n"]  # -1: not clustered
    distance_to_centroid: Float32[np.ndarray, " n"]  # NaN: not clustered
    missing: Missing = field(default_factory=Missing)  # rows without a vector, and why
    runs: tuple[Path, ...] = ()  # folders with vectors sorted by cluster, where they were written

    @property
    def num_clusters(self) -> int:
        return len(self.centroids)

    @cached_property
    def is_clustered(self) -> Bool[np.ndarray, " n"]:
        return np.asarray(self.assignment >= 0)

    @cached_property
    def sizes(self) -> Int[np.ndarray, " k"]:
        return self.sizes_of(self.is_clustered)

    def sizes_of(self, mask: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
        """Members of each cluster among the rows of a mask."""
        return sizes_of(self.assignment, mask, self.num_clusters)

    def members(self, low: int, high: int) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " c"]]:
        """The rows of clusters low..high-1, ascending within each, and where each cluster begins."""
        edges = np.concatenate([[0], np.cumsum(self.sizes)])
        starts = edges[low : high + 1] - edges[low]
        if not self.runs:
            return self._by_cluster[edges[low] : edges[high]], starts
        rows = np.empty(int(starts[-1]), np.int64)
        for folder, places, span in self._segments(low, high):
            rows[places] = np.load(folder / "run_rows.npy", mmap_mode="r")[span]
        return rows, starts

    def run(self, low: int, high: int) -> Float16[np.ndarray, "m d"]:
        """The stored vectors of `members(low, high)`, one contiguous read from each run."""
        total = int(self.sizes[low:high].sum())
        found = np.empty((total, self.centroids.shape[1]), np.float16)
        for folder, places, span in self._segments(low, high):
            found[places] = np.load(folder / "run.npy", mmap_mode="r")[span]
        return found

    def _segments(self, low: int, high: int) -> Iterator[tuple[Path, np.ndarray, slice]]:
        """For each run: its folder, where its rows go among the members, and where they lie in it."""
        filled = np.concatenate([[0], np.cumsum(self.sizes[low:high])])[:-1]
        for folder in self.runs:
            starts = np.load(folder / "run_starts.npy", mmap_mode="r")[low : high + 1]
            counts = np.diff(starts)
            within = np.arange(int(starts[-1] - starts[0])) - np.repeat(starts[:-1] - starts[0], counts)
            yield folder, np.repeat(filled, counts) + within, slice(int(starts[0]), int(starts[-1]))
            filled = filled + counts

    @cached_property
    def _by_cluster(self) -> Int[np.ndarray, " m"]:
        rows = np.flatnonzero(self.is_clustered)
        return rows[np.argsort(self.assignment[rows], kind="stable")]

    def save(self, folder: Path) -> None:
        write_columns(
            folder, centroids=self.centroids, assignment=self.assignment, distance=self.distance_to_centroid
        )
        self.missing.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "Clusters":
        return cls(
            np.load(folder / "centroids.npy"),
            read_column(folder, "assignment"),
            read_column(folder, "distance"),
            Missing.load(folder),
            tuple(run.parent for run in sorted(folder.glob("part-*/run.npy"))),
        )


def spans(num_rows: int, size: int = 1 << 22) -> list[slice]:
    """Rows in slices that fit a processor's memory many times over."""
    return [slice(at, min(at + size, num_rows)) for at in range(0, num_rows, size)]


def sizes_of(cluster: Int32[np.ndarray, " n"], mask: Bool[np.ndarray, " n"], k: int) -> Int[np.ndarray, " k"]:
    """Members of each cluster in a mask."""
    from dbp.exact.kernels import cluster_totals

    sizes, sums = np.zeros(k, np.int64), np.zeros(k, np.int64)
    cluster_totals(np.asarray(cluster), np.broadcast_to(np.float32(0), len(cluster)), mask, sizes, sums)
    return sizes
