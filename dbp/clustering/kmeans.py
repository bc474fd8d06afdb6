"""Spherical k-means in two stages: centroids fitted on a sample, then every row assigned in one pass."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float16, Float32, Float64, Int32

from dbp.clustering import lloyd
from dbp.clustering.separate import apart
from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.vectors import Vectors, in_blocks
from dbp.device import pick_device
from dbp.engine.disk import link_or_copy
from dbp.engine.parts import Parted
from dbp.engine.progress import log
from dbp.engine.stage import Node, Offered, Stage, runtime
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError
from dbp.exact.products import BLOCK, Assigner, side_by_side
from dbp.offers import other_side

RUNS_ABOVE = 4e9  # bytes of vectors that a small machine keeps at hand, so that reading here and there is fast

Sides = Literal["image", "text", "joint"]


def semdedup_num_clusters(num_rows: int) -> int:
    """The number of clusters that balances assigning and comparing: sqrt(0.75 n).

    Source: 2 n k d for assigning against 1.5 d n^2 / k for the triangles of uneven clusters.
    """
    return max(1, round(math.sqrt(0.75 * num_rows)))


@dataclass(frozen=True)
class Centroids:
    """Cluster centres of unit length, on the grid of 2^-24."""

    values: Float32[np.ndarray, "k d"]

    @classmethod
    def load(cls, folder: Path) -> "Centroids":
        return cls(np.load(folder / "centroids.npy"))


@dataclass(frozen=True)
class FitCentroids(Stage):
    """Fit centroids on the rows with the smallest hashes of their uid, or on all rows.

    Args:
        num_clusters: k, or `auto` for sqrt(0.75 n).
        num_iterations: Lloyd iterations, at most.
        points_per_centroid: Rows of the sample for each centroid, at most. faiss' default is 256.
        seed: Of the sample and the start.
        modality: What a vector is.
        start: `random` rows, or `kmeans++`.
        full: Use every row, streamed once for each iteration, instead of a sample in memory. Under
            torchrun or srun the processes share the rows.
        most_cosine: Drop each centroid whose cosine to one before it is at least this; null keeps all.
    """

    name: ClassVar[str] = "centroids"
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool", "image", "text")
    makes: ClassVar[type] = Centroids

    num_clusters: int | Literal["auto"]
    num_iterations: int
    points_per_centroid: int
    seed: int
    modality: Sides
    start: lloyd.Start = "random"
    full: bool = False
    most_cosine: float | None = None
    threads: int = runtime(1)
    device: str = runtime("auto")

    def unneeded(self) -> set[str]:
        return other_side(self.modality)

    def run(
        self,
        work: Work,
        rows: KeepList,
        pool: Pool,
        image: Embeddings | None = None,
        text: Embeddings | None = None,
    ) -> dict[str, Any]:
        vectors = Vectors.of(image, text)
        usable = vectors.present(rows.num_pool_rows) & rows.mask
        n = int(np.count_nonzero(usable))
        k = semdedup_num_clusters(n) if self.num_clusters == "auto" else int(self.num_clusters)
        if k > n:
            lacking = rows.num_kept - n
            of = f"{lacking:,} of {rows.num_kept:,} rows have no embedding"
            why = f" ({of}: {vectors.missing.told()})" if lacking else ""
            raise ConfigError(
                f"cannot make num_clusters={k:,} clusters of {n:,} rows{why}. "
                + (f"Lower num_clusters to {n:,} or less, or keep more rows before clustering." if n else "")
                + (" Check encoder.cluster: its vectors must be those of this pool." if lacking else "")
            )
        count = lloyd.num_sampled(k, self.points_per_centroid, n)
        chosen = lloyd.choose_sample(pool.uid_hashes, usable, count, self.seed)
        speed = {
            "threads": self.threads,
            "device": pick_device(self.device),
            "length": math.sqrt(len(vectors.sides)),
            "say": _say_step,
        }
        if self.full:
            from dbp.clustering.distributed import fit_all

            first = lloyd.on_grid(vectors.gather(chosen[:k]).astype(np.float64))
            found = fit_all(first, vectors, usable, self.num_iterations, work.shared, **speed)
        else:
            sample = vectors.gather(chosen)
            found = lloyd.fit(sample, k, self.num_iterations, self.seed, self.start, **speed)
        centroids = found.centroids if self.most_cosine is None else apart(found.centroids, self.most_cosine)
        np.save(work.folder / "centroids.npy", centroids)
        return {
            "rows": n,
            "clusters": len(centroids),
            "sample": n if self.full else count,
            "points per centroid": round((n if self.full else count) / k, 1),
            "iterations": len(found.objective),
            "objective": [round(value, 8) for value in found.objective],
            "split clusters": sum(found.empty),
        }


def _say_step(step: int, objective: float) -> None:
    log.debug("k-means step %d: mean cosine distance %.6f", step, objective)


@dataclass(frozen=True)
class KMeans(Parted):
    """Cluster the surviving rows on the unit sphere: assign each to its nearest centroid.

    The fields of `FitCentroids`, and:

    Args:
        on: Rows to cluster: those of the `pool`, those left by `dedup`, or those left by the filter.
        runs: Whether to write each part's vectors sorted by cluster, too, so that who compares the members
            of clusters reads them in one piece: `yes`, `no`, or `auto` above 4 GB of vectors.
        also: Further numbers of clusters that are fitted and assigned in the same reading of the vectors.
    """

    name: ClassVar[str] = "cluster"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("rows", "image", "text", "centroids")
    makes: ClassVar[type] = Clusters

    num_clusters: int | Literal["auto"]
    num_iterations: int
    points_per_centroid: int
    seed: int
    modality: Sides
    on: Literal["pool", "dedup", "filtered"]
    start: lloyd.Start = "random"
    full: bool = False
    most_cosine: float | None = None
    runs: Literal["auto", "yes", "no"] = runtime("no")
    also: tuple[int, ...] = runtime(())
    threads: int = runtime(1)
    block: int = runtime(BLOCK)
    device: str = runtime("auto")

    def __post_init__(self) -> None:
        auto = self.num_clusters == "auto"
        require(auto or int(self.num_clusters) >= 1, "num_clusters", self.num_clusters, "at least 1, or auto")
        for name in ("num_iterations", "points_per_centroid", "threads", "block"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        near = self.most_cosine
        require(near is None or -1 < near <= 1, "most_cosine", near, "above -1 and at most 1, or null")

    def unneeded(self) -> set[str]:
        return other_side(self.modality)

    def upstream(self, offers: Offered) -> dict[str, Node]:
        return {"centroids": offers.bind(self.fitting())}

    def fitting(self) -> FitCentroids:
        """The stage that makes the centroids."""
        return FitCentroids(
            self.num_clusters,
            self.num_iterations,
            self.points_per_centroid,
            self.seed,
            self.modality,
            self.start,
            self.full,
            self.most_cosine,
            self.threads,
            self.device,
        )

    def parts(self, rows: KeepList, centroids: Centroids, **sides: Embeddings | None) -> list[Part]:
        """One for each part of the embeddings."""
        first = Vectors.of(*_sides(sides)).sides[0]
        return [
            Part(f"part-{number:07d}", number, float((path / "vectors.npy").stat().st_size))
            for number, path in enumerate(first.parts)
        ]

    def make(self, part: Part, folder: Path, rows: KeepList, centroids: Centroids, **sides: Any) -> dict[str, Any]:
        vectors = Vectors.of(*_sides(sides))
        own = vectors.part_rows(part.number, rows.mask)
        label, distance = assign_rows(
            vectors, own, centroids.values, self.threads, self.block, pick_device(self.device)
        )
        np.save(folder / "rows.npy", own)
        np.save(folder / "label.npy", label)
        np.save(folder / "distance.npy", distance)
        runs = self.runs == "yes" or (self.runs == "auto" and _num_bytes(vectors) > RUNS_ABOVE)
        if runs:
            write_run(folder, vectors, own, label, len(centroids.values))
        return {"rows": len(own), "run": runs}

    def finish(
        self,
        work: Work,
        counts: Mapping[str, dict[str, Any]],
        rows: KeepList,
        centroids: Centroids,
        **sides: Embeddings | None,
    ) -> dict[str, Any]:
        assignment = np.full(rows.num_pool_rows, -1, np.int32)
        distance = np.full(rows.num_pool_rows, np.nan, np.float32)
        for name in counts:
            own = np.load(work.shared / name / "rows.npy")
            assignment[own] = np.load(work.shared / name / "label.npy")
            distance[own] = np.load(work.shared / name / "distance.npy")
        if all(found["run"] for found in counts.values()):
            collect_runs(work, counts)
        missing = Vectors.of(*_sides(sides)).missing
        clusters = Clusters(centroids.values, assignment, distance, missing)
        clusters.save(work.folder)
        sizes = clusters.sizes
        return {
            "rows": int(sizes.sum()),
            "without embedding": rows.num_kept - int(sizes.sum()),
            "clusters": clusters.num_clusters,
            "empty clusters": int((sizes == 0).sum()),
            "largest": int(sizes.max()),
            "unevenness": round(float((sizes.astype(float) ** 2).mean() / sizes.mean() ** 2), 3),
        }


def _sides(sides: Mapping[str, Embeddings | None]) -> tuple[Embeddings | None, Embeddings | None]:
    return sides.get("image"), sides.get("text")


def assign_rows(
    vectors: Vectors,
    rows: np.ndarray,
    centroids: Float32[np.ndarray, "k d"],
    threads: int = 1,
    block: int = BLOCK,
    device: str = "cpu",
) -> tuple[Int32[np.ndarray, " m"], Float32[np.ndarray, " m"]]:
    """The nearest centroid of ascending rows and the cosine distance to it, read block by block.

    Returns:
        Cluster numbers (the lower one of equally near centroids), and 1 - cosine in [0, 2].
    """
    label, distance = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    norms = vectors.norms(rows)
    blocks = list(in_blocks(rows, block))

    def share(number: int) -> None:
        with Assigner(centroids, device) as nearest:
            for start, own in blocks[number::threads]:
                span = slice(start, start + len(own))
                label[span], product, _ = nearest(vectors.gather(own))
                distance[span] = np.clip(1 - product / norms[span], 0, 2)

    side_by_side(share, list(range(min(threads, max(len(blocks), 1)))), threads)
    return label, distance


def assign(
    vectors: Float16[np.ndarray, "n d"], centroids: Float32[np.ndarray, "k d"], block: int = BLOCK
) -> tuple[Int32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """The nearest centroid of each stored vector in memory, and the cosine distance to it."""
    nearest = Assigner(centroids)
    label, product = np.empty(len(vectors), np.int32), np.empty(len(vectors))
    for at in range(0, len(vectors), block):
        span = slice(at, at + block)
        label[span], product[span], _ = nearest(np.ascontiguousarray(vectors[span]))
    return label, np.clip(1 - product / lengths(vectors), 0, 2).astype(np.float32)


def lengths(vectors: Float16[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    """The exact lengths of stored vectors."""
    return np.sqrt(np.square(vectors.astype(np.float64)).sum(axis=1))


def _num_bytes(vectors: Vectors) -> int:
    return sum(side.num_bytes for side in vectors.sides)


def collect_runs(work: Work, parts: Iterable[str]) -> None:
    """Bring the sorted runs of parts into the artifact."""
    for name in parts:
        (work.folder / name).mkdir()
        for file in ("run.npy", "run_rows.npy", "run_starts.npy"):
            link_or_copy(work.shared / name / file, work.folder / name / file)


def write_run(folder: Path, vectors: Vectors, rows: np.ndarray, label: np.ndarray, k: int) -> None:
    """Write a part's vectors and rows sorted by cluster, and where each cluster begins."""
    order = np.argsort(label, kind="stable")
    np.save(folder / "run_starts.npy", np.searchsorted(label[order], np.arange(k + 1)))
    np.save(folder / "run_rows.npy", rows[order])
    run = np.lib.format.open_memmap(folder / "run.npy", "w+", np.float16, (len(rows), vectors.width))
    for start, own in in_blocks(rows[order], BLOCK):
        run[start : start + len(own)] = vectors.gather(own)
    run.flush()
