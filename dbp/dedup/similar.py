"""The stored half of SemDeDup: for each row its best earlier similarity, and the row that has it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from dbp.clustering.kmeans import KMeans
from dbp.data.clusters import Clusters
from dbp.data.columns import read_column, write_columns
from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.data.missing import Missing
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.data.vectors import Vectors
from dbp.dedup.pairs import nearest_earlier, similar_pairs
from dbp.device import pick_device
from dbp.engine.parts import Parted
from dbp.engine.stage import runtime
from dbp.engine.work import Part, Work
from dbp.exact.order import keyed_hash
from dbp.offers import ReadsScore, other_side

Keep = Literal["hard", "easy", "random", "score", "largest"]
Match = Literal["image", "text", "joint", "both", "either"]

PART_COST = 1e11  # multiplications of a part: about a second of one core
MOST_PARTS = 4096
PART_ROWS = 65_536  # rows of a part, unless one cluster has more: 100 MB of vectors of width 768


@dataclass(frozen=True)
class Pairs:
    """Pairs of one cluster above a floor, by cluster, then by the later row's place in its order."""

    later: Int[np.ndarray, " p"]
    earlier: Int[np.ndarray, " p"]
    similarity: Float32[np.ndarray, " p"]


@dataclass(frozen=True)
class SimilarRows:
    """For each row of the pool: the best similarity to an earlier row of its cluster, and that row."""

    similarity: Float32[np.ndarray, " n"]  # NaN: no vector; -inf: nothing came earlier
    twin: Int[np.ndarray, " n"]  # -1: none
    cluster: Int32[np.ndarray, " n"]
    pairs: Pairs | None = None
    missing: Missing = field(default_factory=Missing)

    @cached_property
    def has_vector(self) -> Bool[np.ndarray, " n"]:
        return ~np.isnan(self.similarity)

    @classmethod
    def load(cls, folder: Path) -> "SimilarRows":
        pairs = None
        if (folder / "later.npy").exists():
            later, earlier, similarity = (
                read_column(folder, name) for name in ("later", "earlier", "pair_similarity")
            )
            pairs = Pairs(later, earlier, similarity)
        similarity, twin, cluster = (read_column(folder, name) for name in ("similarity", "twin", "cluster"))
        return cls(similarity, twin, cluster, pairs, Missing.load(folder))


AT_ONCE = 128 << 20  # bytes of fp16 vectors that a part gathers in one go


@dataclass(frozen=True)
class NearestEarlier(ReadsScore, Parted):
    """Compare each row with the earlier rows of its fine cluster.

    Args:
        clusters: The fine clustering.
        keep: Which row of a group comes first and so stays.
        seed: For `random`.
        match: What two rows must share to be alike.
        floor: Also store all pairs above this similarity; null for none.
        threads: Strips of a cluster's triangle worked on at once.
        score: Name of the score of `keep=score`, of `scores`; empty for the one of `score=`.
    """

    name: ClassVar[str] = "similar"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("rows", "image", "text", "pool", "clusters", "scores")
    makes: ClassVar[type] = SimilarRows
    unit: ClassVar[str] = "ranges of clusters"

    clusters: KMeans
    keep: Keep
    seed: int
    match: Match
    floor: float | None = None
    threads: int = runtime(1)
    device: str = runtime("auto")
    score: str = runtime("")

    def unread(self) -> set[str]:
        return set() if self.keep == "random" else {"seed"}

    def unneeded(self) -> set[str]:
        return other_side(self.match) | (set() if self.keep == "score" else {"scores"})

    def parts(self, clusters: Clusters, **inputs: Any) -> list[Part]:
        """Contiguous ranges of clusters of about equal work."""
        bounds, costs = cluster_ranges(clusters.sizes, clusters.centroids.shape[1])
        return [
            Part(f"range-{number:07d}", number, cost)
            for number, cost in zip(range(len(bounds) - 1), costs, strict=True)
        ]

    def make(  # type: ignore[override]
        self,
        part: Part,
        folder: Path,
        rows: KeepList,
        pool: Pool,
        clusters: Clusters,
        image: Embeddings | None = None,
        text: Embeddings | None = None,
        scores: Scores | None = None,
    ) -> dict[str, Any]:
        bounds, _ = cluster_ranges(clusters.sizes, clusters.centroids.shape[1])
        low, high = int(bounds[part.number]), int(bounds[part.number + 1])
        members, starts = clusters.members(low, high)
        if self.match in ("both", "either"):
            assert text is not None
            by_row = np.argsort(members)
            has = np.empty(len(members), bool)
            has[by_row] = text.has(members[by_row])
            starts = np.concatenate([[0], np.cumsum(has)])[starts]
            members = members[has]
        n = len(members)
        similarity, twin = np.full(n, -np.inf, np.float32), np.full(n, -1, np.int64)
        pairs: list[tuple[np.ndarray, ...]] = []
        vectors = self._vectors(clusters, low, high, members, image, text)
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            own = members[start:stop]
            if len(own) < 2:
                continue
            order = self.order(own, clusters, pool, scores)
            sides = [side(start, stop) for side in vectors]
            how: dict[str, Any] = {"combine": "max" if self.match == "either" else "min", "threads": self.threads}
            best, which = nearest_earlier(sides, order, device=pick_device(self.device), **how)
            similarity[start:stop] = best
            twin[start:stop] = np.where(which >= 0, own[which], -1)
            if self.floor is not None:
                later, earlier, similar = similar_pairs(sides, order, self.floor, **how)
                pairs.append((own[later], own[earlier], similar.astype(np.float32)))
        write_columns(folder, rows=members, similarity=similarity, twin=twin)
        if self.floor is not None:
            empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
            later, earlier, similar = (np.concatenate(c) for c in zip(empty, *pairs, strict=True))
            write_columns(folder, later=later, earlier=earlier, pair_similarity=similar)
        return {"rows": n, "pairs": sum(len(found[0]) for found in pairs)}

    def order(
        self, rows: np.ndarray, clusters: Clusters, pool: Pool, scores: Scores | None
    ) -> Int[np.ndarray, " n"]:
        """Places of a cluster's rows in the order of keeping; ties go to the lower row."""
        if self.keep == "random":
            first: Any = keyed_hash(pool.uid_hashes[rows], self.seed)
        elif self.keep == "score":
            assert scores is not None, "keep=score has scores"
            values = scores.goodness[rows]
            first = np.where(np.isnan(values), np.inf, -values)
        elif self.keep == "largest":
            width, height = (pool.column(name)[rows].astype(np.int64) for name in ("width", "height"))
            first = -width * height
        else:
            distance = np.asarray(clusters.distance_to_centroid[rows])
            first = -distance if self.keep == "hard" else distance
        return np.lexsort((rows, first))

    def _vectors(
        self,
        clusters: Clusters,
        low: int,
        high: int,
        members: np.ndarray,
        image: Embeddings | None,
        text: Embeddings | None,
    ) -> list[Any]:
        """For each side a function from places among the members to stored vectors."""
        several = self.match in ("both", "either")
        groups = [Vectors.of(image), Vectors.of(text)] if several else [Vectors.of(image, text)]
        if not several and clusters.runs:
            whole = clusters.run(low, high)
            return [lambda start, stop: whole[start:stop]]
        sides = []
        for vectors in groups:
            # A gather looks into every part of the vectors, so small clusters share one.
            if 2 * len(members) * vectors.width <= AT_ONCE:
                together = vectors.gather(members)
                sides.append(lambda start, stop, own=together: own[start:stop])
            else:
                sides.append(lambda start, stop, v=vectors: v.gather(members[start:stop]))
        return sides

    def finish(  # type: ignore[override]
        self, work: Work, counts: Mapping[str, dict[str, Any]], rows: KeepList, clusters: Clusters, **inputs: Any
    ) -> dict[str, Any]:
        n = rows.num_pool_rows
        similarity = np.full(n, np.nan, np.float32)
        twin = np.full(n, -1, np.int32 if n < 1 << 31 else np.int64)
        for name in counts:
            own = np.load(work.shared / name / "rows.npy")
            similarity[own] = np.load(work.shared / name / "similarity.npy")
            twin[own] = np.load(work.shared / name / "twin.npy")
        write_columns(work.folder, similarity=similarity, twin=twin, cluster=clusters.assignment)
        if self.floor is not None:
            for column in ("later", "earlier", "pair_similarity"):
                every = [np.load(work.shared / name / f"{column}.npy") for name in counts]
                np.save(work.folder / f"{column}.npy", np.concatenate(every))
        missing = clusters.missing
        if inputs.get("text") is not None:
            missing = missing | inputs["text"].missing
        missing.save(work.folder)
        return {
            "rows": int(np.count_nonzero(clusters.is_clustered)),
            "clusters": clusters.num_clusters,
            "largest cluster": int(clusters.sizes.max()),
            **({"pairs": sum(c["pairs"] for c in counts.values())} if self.floor is not None else {}),
        }


def cluster_ranges(sizes: Int[np.ndarray, " k"], width: int) -> tuple[Int[np.ndarray, " r"], list[float]]:
    """Where contiguous ranges of clusters begin and end, and the multiplications of each.

    A range is closed when its triangles or its rows reach their bound; a cluster is never divided.
    """
    cost = sizes.astype(np.float64) ** 2 * width / 2 + 1
    bound = max(PART_COST, float(cost.sum()) / MOST_PARTS)
    bounds, costs = [0], []
    work, rows = 0.0, 0
    for cluster, (own, members) in enumerate(zip(cost.tolist(), sizes.tolist(), strict=True)):
        if cluster > bounds[-1] and (work + own > bound or rows + members > PART_ROWS):
            bounds.append(cluster)
            costs.append(work)
            work, rows = 0.0, 0
        work, rows = work + own, rows + members
    return np.array([*bounds, len(sizes)]), [*costs, work]
