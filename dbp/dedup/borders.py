"""How many near duplicates fall across the borders of fine clusters, measured on a sample.

SemDeDup compares rows of one cluster only. Rows with the smallest hashes of their uid are compared with
every row of the pool, once, by brute force; a near duplicate that lies in another cluster is one that
SemDeDup cannot see.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from dbp.clustering.lloyd import choose_sample
from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.vectors import Vectors, in_blocks
from dbp.engine.parts import Parted
from dbp.engine.work import Part, Work
from dbp.exact.products import BLOCK, widened

EPSILONS = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)


@dataclass(frozen=True)
class BorderLoss:
    """For each epsilon: sampled rows with a near duplicate anywhere, and in their own cluster."""

    table: list[dict[str, Any]]

    def lines(self) -> list[str]:
        """The table as text."""
        head = "epsilon   with a near duplicate   of them in the own cluster"
        rows = (
            f"{row['epsilon']:<9g} {row['near duplicate']:>21,} {row['in own cluster']:>12,}"
            + (f"  ({row['seen']:.1%})" if row["seen"] is not None else "")
            for row in self.table
        )
        return [head, *rows]

    @classmethod
    def load(cls, folder: Path) -> "BorderLoss":
        return cls(json.loads((folder / "borders.json").read_text()))


@dataclass(frozen=True)
class Borders(Parted):
    """Compare a sample with the whole pool, inside and outside of each row's cluster.

    Args:
        sample: Rows compared; the cost is 2 sample n d operations. The share of 1,000 rows is known to about
            three points.
    """

    name: ClassVar[str] = "borders"
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool", "image", "text", "clusters")
    makes: ClassVar[type] = BorderLoss

    sample: int = 1000

    def __post_init__(self) -> None:
        require(self.sample >= 1, "sample", self.sample, "at least 1")

    def parts(self, clusters: Clusters, **inputs: Any) -> list[Part]:
        """One for each part of the embeddings."""
        first = Vectors.of(inputs.get("image"), inputs.get("text")).sides[0]
        return [Part(f"part-{number:07d}", number) for number in range(len(first.parts))]

    def make(  # type: ignore[override]
        self,
        part: Part,
        folder: Path,
        /,
        rows: KeepList,
        pool: Pool,
        clusters: Clusters,
        image: Embeddings | None = None,
        text: Embeddings | None = None,
    ) -> dict[str, Any]:
        vectors = Vectors.of(image, text)
        chosen = self.chosen(pool, clusters)
        unit = _unit(vectors, chosen)
        own_cluster = np.asarray(clusters.assignment[chosen])
        best = np.full((2, len(chosen)), -np.inf, np.float32)  # anywhere, and in the own cluster
        for _, block in in_blocks(vectors.part_rows(part.number, rows.mask), BLOCK):
            cosine = unit @ _unit(vectors, block).T
            at = np.searchsorted(block, chosen)
            inside = (at < len(block)) & (block[np.minimum(at, len(block) - 1)] == chosen)
            cosine[np.flatnonzero(inside), at[inside]] = -np.inf  # a row is no copy of itself
            best[0] = np.maximum(best[0], cosine.max(axis=1))
            same = own_cluster[:, None] == np.asarray(clusters.assignment[block])
            best[1] = np.maximum(best[1], np.where(same, cosine, -np.inf).max(axis=1))
        np.save(folder / "best.npy", best)
        return {"rows": len(chosen)}

    def chosen(self, pool: Pool, clusters: Clusters) -> np.ndarray:
        """The sampled rows."""
        return choose_sample(pool.uid_hashes, clusters.is_clustered, self.sample, seed=0)

    def finish(  # type: ignore[override]
        self, work: Work, counts: Mapping[str, dict[str, Any]], **inputs: Any
    ) -> dict[str, Any]:
        best = np.max([np.load(work.shared / name / "best.npy") for name in counts], axis=0)
        table = []
        for epsilon in EPSILONS:
            anywhere, inside = (int((side > 1 - epsilon).sum()) for side in best)
            seen = round(inside / anywhere, 4) if anywhere else None
            table.append({"epsilon": epsilon, "near duplicate": anywhere, "in own cluster": inside, "seen": seen})
        (work.folder / "borders.json").write_text(json.dumps(table, indent=1) + "\n")
        return {"rows": best.shape[1], "table": table}


def _unit(vectors: Vectors, rows: np.ndarray) -> Float32[np.ndarray, "m d"]:
    found = widened(vectors.gather(rows)).numpy()
    return found / vectors.norms(rows)[:, None].astype(np.float32)
