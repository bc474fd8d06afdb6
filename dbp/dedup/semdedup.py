"""SemDeDup: near duplicates inside fine clusters.

Each row is compared with the rows of its cluster that come earlier in an order (by default hardest
first: farthest from the centroid). Its best similarity and the row that has it are stored, so any
epsilon can be applied later without reading a vector.

Abbas et al. 2023, algorithm in section 3 and the published code's chain rule: a row goes if it is more
similar than 1 - epsilon to any earlier row, also to one that itself goes.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Float64, Int

from dbp.clustering.kmeans import KMeans, joined
from dbp.clustering.order import member_order
from dbp.config import require
from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.data.missing import load_missing, reasons_of, save_missing
from dbp.data.pool import Pool
from dbp.progress import progress
from dbp.stage import Stage
from dbp.work import Work

TILE = 2048  # rows of a block of the triangle: 2048 x 2048 fp32 is 16 MB
UNDECIDED = 1e-5  # rivals this near are compared again in float64


def nearest_earlier(
    vectors: Float[np.ndarray, "n d"], order: Int[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For each row, the best cosine to a row that comes earlier in an order, and which row that is.

    Only the triangle is computed, in blocks, so memory does not grow with n squared. The similarity of
    the winner is taken again in float64.

    Args:
        vectors: Any length but zero; normalised here.
        order: A permutation of 0..n-1; `order[0]` comes first.

    Returns:
        Similarity in [-1, 1], and the row that has it (of equal ones the earliest in the order), both by
        row. The first row in the order has none before it: -inf and -1.

    Raises:
        ValueError: `order` is no permutation, or a vector is zero or not finite.
    """
    n = len(vectors)
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(f"order must hold each of 0..{n - 1} once")
    ordered = np.asarray(vectors, np.float32)[order]
    norms = np.linalg.norm(ordered.astype(np.float64), axis=1)
    if n and (not np.isfinite(norms).all() or (norms == 0).any()):
        bad = order[np.flatnonzero(~np.isfinite(norms) | (norms == 0))[0]]
        raise ValueError(f"vector {bad} is zero or not finite, so it has no direction")
    unit = (ordered / norms[:, None]).astype(np.float32)
    best = np.full(n, -np.inf)
    partner = np.full(n, -1, np.int64)
    for start in range(0, n, TILE):
        rows = slice(start, min(start + TILE, n))
        for before in range(0, start + 1, TILE):
            columns = slice(before, min(before + TILE, n))
            cosine = unit[rows] @ unit[columns].T
            if before == start:
                cosine[np.triu_indices(len(cosine))] = -np.inf
            _improve(best[rows], partner[rows], cosine, before, ordered, norms, rows)
    similarity = np.full(n, -np.inf)
    similarity[order] = best
    twin = np.full(n, -1, np.int64)
    twin[order] = np.where(partner >= 0, order[partner], -1)
    return similarity, twin


def _improve(
    best: np.ndarray,
    partner: np.ndarray,
    cosine: np.ndarray,
    before: int,
    ordered: np.ndarray,
    norms: np.ndarray,
    rows: slice,
) -> None:
    """Raise the running best of a block of rows by the columns from `before` on."""
    top = cosine.max(axis=1)
    hopeful = np.flatnonzero(top >= best - UNDECIDED)
    hopeful = hopeful[top[hopeful] > -np.inf]
    for at in hopeful:
        rivals = np.flatnonzero(cosine[at] >= top[at] - UNDECIDED)
        row = rows.start + at
        # Row by row: a matrix product can give equal vectors cosines that differ in the last bit.
        exact = (ordered[before + rivals].astype(np.float64) * ordered[row].astype(np.float64)).sum(
            axis=1
        )
        exact = np.minimum(exact / (norms[before + rivals] * norms[row]), 1.0)
        winner = int(exact.argmax())
        if exact[winner] > best[at]:
            best[at] = exact[winner]
            partner[at] = before + rivals[winner]


@dataclass(frozen=True)
class NearestEarlier(Stage):
    """The stored half of SemDeDup: for each row its best earlier similarity and that row.

    Args:
        clusters: The fine clustering.
        keep: Which row of a group comes first and so stays: `hard`, `easy` or `random`.
        seed: For `random`.
    """

    name: ClassVar[str] = "similar"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "image", "text", "pool")
    makes: ClassVar[type] = "SimilarRows"  # type: ignore[assignment]

    clusters: KMeans
    keep: Literal["hard", "easy", "random"]
    seed: int

    def unread(self) -> set[str]:
        return set() if self.keep == "random" else {"seed"}

    def run(
        self,
        work: Work,
        rows: KeepList,
        pool: Pool,
        image: Embeddings | None = None,
        text: Embeddings | None = None,
    ) -> dict[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        found, vectors = joined(rows.rows, image, text)
        clusters = self.clusters.fit(found, vectors)
        similarity = np.full(len(found), -np.inf)
        twin = np.full(len(found), -1, np.int64)
        by_cluster = np.argsort(clusters.assignment, kind="stable")
        ends = np.cumsum(clusters.sizes)
        with progress("compare", len(found), "rows") as bar:
            for start, stop in zip(np.r_[0, ends[:-1]], ends, strict=True):
                members = by_cluster[start:stop]
                order = member_order(
                    self.keep,
                    clusters.distance_to_centroid[members],
                    found[members],
                    pool.uid_hashes[found[members]],
                    self.seed,
                )
                best, which = nearest_earlier(vectors[members], order)
                similarity[members] = best
                twin[members] = np.where(which >= 0, found[members][which], -1)
                bar.advance(len(members))
        pq.write_table(
            pa.table(
                {
                    "row": found,
                    "similarity": similarity,
                    "twin": twin,
                    "cluster": clusters.assignment,
                }
            ),
            work.folder / "similar.parquet",
            compression="zstd",
        )
        save_missing(work.folder, rows.rows, image, text)
        return {
            "rows": len(found),
            "clusters": clusters.num_clusters,
            "largest cluster": int(clusters.sizes.max()),
        }


@dataclass(frozen=True)
class SimilarRows:
    """For each row with a vector: the best similarity to an earlier row of its cluster, and that row."""

    rows: Int[np.ndarray, " n"]
    similarity: Float64[np.ndarray, " n"]
    twin: Int[np.ndarray, " n"]
    cluster: Int[np.ndarray, " n"]
    missing: dict[int, str] = field(default_factory=dict)  # row -> why it has no vector

    @classmethod
    def load(cls, folder: Any) -> "SimilarRows":
        import pyarrow.parquet as pq

        table = pq.read_table(folder / "similar.parquet")
        row, similarity, twin, cluster = (
            table[name].to_numpy() for name in ("row", "similarity", "twin", "cluster")
        )
        return cls(row, similarity, twin, cluster, load_missing(folder))


NearestEarlier.makes = SimilarRows


@dataclass(frozen=True)
class SemDeDup(Stage):
    """Remove rows that are more similar than 1 - epsilon to an earlier row of their fine cluster.

    Args:
        epsilon: In [0, 2]; larger removes more.
        clusters: The fine clustering: k about sqrt(0.75 n).
        keep: Which row of a group stays.
        seed: For `keep=random`.
        modality: What is compared.
    """

    name: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "similar")
    makes: ClassVar[type] = KeepList

    epsilon: float
    num_clusters: int | Literal["auto"]
    num_iterations: int
    points_per_centroid: int
    keep: Literal["hard", "easy", "random"]
    seed: int
    modality: Literal["image", "text", "joint"]

    def __post_init__(self) -> None:
        require(0 <= self.epsilon <= 2, "epsilon", self.epsilon, "in [0, 2]: 1 - cosine")
        self.comparison()

    def comparison(self) -> NearestEarlier:
        """The stage whose result this one thresholds."""
        clusters = KMeans(
            self.num_clusters,
            self.num_iterations,
            self.points_per_centroid,
            self.seed,
            self.modality,
            "pool",
        )
        return NearestEarlier(clusters, self.keep, self.seed)

    def run(self, work: Work, rows: KeepList, similar: SimilarRows) -> dict[str, Any]:
        kept = remove_similar(rows, similar, self.epsilon)
        kept.save(work.folder)
        return {"rows": rows.num_kept, "kept": kept.num_kept, **_removed(kept, "dedup")}


def remove_similar(rows: KeepList, similar: SimilarRows, epsilon: float) -> KeepList:
    """Apply the chain rule at an epsilon to stored similarities.

    The comparison is in float32, as published, so that exact copies go at epsilon = 0 only where their
    stored cosine exceeds 1 - epsilon.
    """
    has_vector = np.isin(rows.rows, similar.rows, assume_unique=True)
    at = np.searchsorted(similar.rows, rows.rows[has_vector])

    def over(values: np.ndarray, missing: float | int) -> np.ndarray:
        spread = np.full(rows.num_kept, missing, values.dtype)
        spread[has_vector] = values[at]
        return spread

    similarity = over(similar.similarity, np.nan)
    with np.errstate(invalid="ignore"):
        is_duplicate = similarity.astype(np.float32) > np.float32(1 - epsilon)
    absent = reasons_of(rows.rows, similar.missing, "no embedding")
    reasons = np.where(has_vector, "duplicate", absent)
    return rows.narrow(
        "dedup",
        has_vector & ~is_duplicate,
        reasons,
        "no earlier duplicate",
        value=np.where(np.isneginf(similarity), np.nan, similarity),
        limit=np.full(rows.num_kept, 1 - epsilon),
        related_row=over(similar.twin, -1),
        cluster=over(similar.cluster, -1),
    )


def _removed(kept: KeepList, stage: str) -> dict[str, int]:
    return {
        name.removeprefix(f"{stage}: "): count
        for name, count in kept.counts().items()
        if name.startswith(f"{stage}: ") and "no earlier" not in name
    }
