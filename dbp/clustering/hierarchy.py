"""A hierarchy above a clustering: clusters of centroids, level by level, spread more evenly by resampling.

Vo et al. 2024 (arXiv 2405.15613): k-means of the centroids of the level below; then, a few times, the points
nearest to each centroid alone are clustered anew, and all points are assigned to the new centroids.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float16, Float32, Int, Int32

from dbp.clustering import lloyd
from dbp.clustering.kmeans import assign
from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.device import pick_device
from dbp.engine.stage import Stage, runtime
from dbp.engine.work import Work
from dbp.errors import ConfigError


@dataclass(frozen=True)
class Levels:
    """The parents of each level: of the clusters of rows first, of the highest level but one last.

    Args:
        parents: For each level, the number of each cluster's parent on the next.
    """

    parents: tuple[Int32[np.ndarray, " _"], ...]

    @classmethod
    def load(cls, folder: Path) -> "Levels":
        return cls(tuple(np.load(file) for file in sorted(folder.glob("parents-*.npy"))))


@dataclass(frozen=True)
class Hierarchy(Stage):
    """Cluster the centroids of a clustering, and theirs again.

    Centroids are clustered as fp16 vectors, as rows are, so that the sums of k-means are exact and every number is
    the same on each processor; the released code uses them as they are.

    Args:
        levels: Clusters of each level above the given one, falling, as [5000, 500, 50].
        nearest: For each level, the nearest points of a cluster that a resampling clusters anew, as [10, 5, 3].
        num_resamplings: How often; 0 for plain k-means of k-means.
        num_iterations: Of each k-means, at most.
        seed: Of the starts.
    """

    name: ClassVar[str] = "hierarchy"
    needs: ClassVar[tuple[str, ...]] = ("clusters",)
    makes: ClassVar[type] = Levels

    levels: list[int]
    nearest: list[int]
    num_resamplings: int
    num_iterations: int
    seed: int
    threads: int = runtime(1)
    device: str = runtime("auto")

    def __post_init__(self) -> None:
        falls = self.levels and all(a > b >= 1 for a, b in zip(self.levels, self.levels[1:], strict=False))
        require(bool(falls) and min(self.levels) >= 1, "levels", self.levels, "falling numbers of clusters")
        require(len(self.nearest) == len(self.levels), "nearest", self.nearest, "one number for each of levels")
        require(min(self.nearest) >= 1, "nearest", self.nearest, "at least 1 each")
        require(self.num_resamplings >= 0, "num_resamplings", self.num_resamplings, "0 or more")
        require(self.num_iterations >= 1, "num_iterations", self.num_iterations, "at least 1")

    def run(self, work: Work, clusters: Clusters) -> dict[str, Any]:
        filled = np.flatnonzero(clusters.sizes > 0)
        points = clusters.centroids[filled].astype(np.float16)
        found = []
        for level, (k, nearest) in enumerate(zip(self.levels, self.nearest, strict=True)):
            if k > len(points):
                raise ConfigError(
                    f"levels={self.levels}: level {level + 2} cannot have {k:,} clusters of the {len(points):,} "
                    "that hold rows on the level below. Lower it, or raise cluster.num_clusters."
                )
            centroids, parents = self._level(points, k, nearest)
            if level == 0:  # clusters without rows have no parent
                every = np.full(clusters.num_clusters, -1, np.int32)
                every[filled] = parents
                parents = every
            np.save(work.folder / f"parents-{level}.npy", parents)
            found.append(len(np.unique(parents[parents >= 0])))
            points = centroids.astype(np.float16)
        return {"clusters": len(filled), "clusters of each level": found}

    def _level(
        self, points: Float16[np.ndarray, "n d"], k: int, nearest: int
    ) -> tuple[Float32[np.ndarray, "k d"], Int32[np.ndarray, " n"]]:
        """The centroids of a level, and the one that each point belongs to."""
        speed = {"threads": self.threads, "device": pick_device(self.device)}
        centroids = lloyd.fit(points, k, self.num_iterations, self.seed, "kmeans++", **speed).centroids
        label, distance = assign(points, centroids)
        for _ in range(self.num_resamplings):
            chosen = nearest_of_each(label, distance, nearest)
            if len(chosen) < k:
                break
            sample = np.ascontiguousarray(points[chosen])
            centroids = lloyd.fit(sample, k, self.num_iterations, self.seed, "kmeans++", **speed).centroids
            label, distance = assign(points, centroids)
        return centroids, label


def nearest_of_each(
    label: Int32[np.ndarray, " n"], distance: Float32[np.ndarray, " n"], count: int
) -> Int[np.ndarray, " m"]:
    """The points nearest to the centroid of each cluster, `count` of each or all; ties go to the lower point."""
    order = np.lexsort((np.arange(len(label)), distance, label))
    own = label[order]
    place = np.arange(len(own)) - np.searchsorted(own, own)
    return np.sort(order[place < count])
