"""Spherical k-means: fitted by faiss on a sample, every row then assigned exactly."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.data.missing import save_missing
from dbp.errors import ConfigError
from dbp.stage import Stage
from dbp.work import Work

BLOCK = 8192  # rows assigned at once
UNDECIDED = 1e-5  # runners-up this near are compared again in float64


def semdedup_num_clusters(num_rows: int) -> int:
    """The number of clusters that balances assigning and comparing: sqrt(0.75 n).

    Source: 2 n k d for assigning against 1.5 d n^2 / k for the triangles of uneven clusters.
    """
    return max(1, round(math.sqrt(0.75 * num_rows)))


@dataclass(frozen=True)
class KMeans(Stage):
    """Cluster the surviving rows on the unit sphere.

    Args:
        num_clusters: k, or `auto` for sqrt(0.75 n).
        num_iterations: Lloyd iterations.
        points_per_centroid: Rows that the fit uses for each centroid, at most.
        seed: Of the sample and the start.
        modality: `image`, `text`, or `joint` (cosine is then the mean of the two).
        on: Rows to cluster: those of the `pool`, those left by `dedup`, or those left by the filter.
    """

    name: ClassVar[str] = "cluster"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "image", "text")
    makes: ClassVar[type] = Clusters

    num_clusters: int | Literal["auto"]
    num_iterations: int
    points_per_centroid: int
    seed: int
    modality: Literal["image", "text", "joint"]
    on: Literal["pool", "dedup", "filtered"]

    def __post_init__(self) -> None:
        auto = self.num_clusters == "auto"
        require(
            auto or int(self.num_clusters) >= 1,
            "num_clusters",
            self.num_clusters,
            "at least 1, or auto",
        )
        require(self.num_iterations >= 1, "num_iterations", self.num_iterations, "at least 1")
        require(
            self.points_per_centroid >= 1,
            "points_per_centroid",
            self.points_per_centroid,
            "at least 1",
        )

    def run(
        self,
        work: Work,
        rows: KeepList,
        image: Embeddings | None = None,
        text: Embeddings | None = None,
    ) -> dict[str, Any]:
        clustered, vectors = joined(rows.rows, image, text)
        clusters = self.fit(clustered, vectors)
        clusters.save(work.folder)
        save_missing(work.folder, rows.rows, image, text)
        sizes = clusters.sizes
        return {
            "rows": len(clustered),
            "without embedding": rows.num_kept - len(clustered),
            "clusters": clusters.num_clusters,
            "empty clusters": int((sizes == 0).sum()),
            "largest": int(sizes.max()),
        }

    def fit(self, rows: Int[np.ndarray, " n"], vectors: Float32[np.ndarray, "n d"]) -> Clusters:
        """Fit centroids on unit vectors and assign each row to the nearest.

        Raises:
            ConfigError: More clusters than rows.
        """
        n = len(rows)
        k = semdedup_num_clusters(n) if self.num_clusters == "auto" else int(self.num_clusters)
        if k > n:
            raise ConfigError(
                f"cannot make num_clusters={k:,} clusters of {n:,} rows. Lower num_clusters, or "
                "keep more rows before clustering."
            )
        centroids = fit_centroids(
            vectors, k, self.num_iterations, self.points_per_centroid, self.seed
        )
        assignment, distance = assign(vectors, centroids)
        return Clusters(centroids, rows, assignment, distance)


def joined(
    rows: Int[np.ndarray, " m"], image: Embeddings | None, text: Embeddings | None
) -> tuple[Int[np.ndarray, " n"], Float32[np.ndarray, "n d"]]:
    """The rows that have the vectors needed, and those vectors at unit length.

    With both sides the vectors are put side by side over the root of two, so that the cosine of two
    rows is the mean of their image and their text cosine.
    """
    sides = [side for side in (image, text) if side is not None]
    assert sides, "a modality names at least one side"
    present = np.ones(len(rows), bool)
    for side in sides:
        present &= side.positions(rows) >= 0
    found = rows[present]
    vectors = np.concatenate([side.unit(found) for side in sides], axis=1)
    return found, (vectors / np.float32(math.sqrt(len(sides)))).astype(np.float32)


def fit_centroids(
    vectors: Float32[np.ndarray, "n d"],
    k: int,
    num_iterations: int,
    points_per_centroid: int,
    seed: int,
) -> Float32[np.ndarray, "k d"]:
    """Spherical Lloyd iterations by faiss on a seeded sample; centroids have unit length."""
    import faiss

    sample = vectors
    if len(vectors) > k * points_per_centroid:
        chosen = np.random.default_rng(seed).choice(
            len(vectors), k * points_per_centroid, replace=False
        )
        sample = vectors[np.sort(chosen)]
    fit = faiss.Kmeans(
        vectors.shape[1],
        k,
        niter=num_iterations,
        seed=seed,
        spherical=True,
        verbose=False,
        min_points_per_centroid=1,
        max_points_per_centroid=max(points_per_centroid, 1),
    )
    fit.train(np.ascontiguousarray(sample))
    found = np.asarray(fit.centroids, np.float64).reshape(k, -1)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return (found / np.where(norms == 0, 1, norms)).astype(np.float32)


def assign(
    vectors: Float[np.ndarray, "n d"], centroids: Float[np.ndarray, "k d"]
) -> tuple[Int32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """The nearest centroid of each unit vector and the cosine distance to it.

    The product is taken in fp32; where the runner-up is within 1e-5, and for the distance itself, the
    cosine is taken again in float64, so that the answer does not depend on block size or threads.

    Returns:
        Cluster numbers (the lower one of equal centroids), and 1 - cosine in [0, 2].
    """
    n, k = len(vectors), len(centroids)
    assignment = np.empty(n, np.int32)
    distance = np.empty(n, np.float32)
    precise = centroids.astype(np.float64)
    for start in range(0, n, BLOCK):
        block = vectors[start : start + BLOCK]
        cosine = block @ centroids.T
        best = cosine.argmax(axis=1)
        top = cosine[np.arange(len(block)), best]
        if k > 1:
            close = cosine >= (top - UNDECIDED)[:, None]
            for at in np.flatnonzero(close.sum(axis=1) > 1):
                rivals = np.flatnonzero(close[at])
                # Row by row: a matrix product can give equal centroids cosines that differ in the last bit.
                exact = (precise[rivals] * block[at].astype(np.float64)).sum(axis=1)
                best[at] = rivals[exact.argmax()]
        exact = np.einsum("nd,nd->n", block.astype(np.float64), precise[best])
        assignment[start : start + len(block)] = best
        distance[start : start + len(block)] = np.clip(1 - exact, 0, 2)
    return assignment, distance
