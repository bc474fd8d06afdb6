"""Clusters: centroids, and for each clustered row its cluster and distance."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int, Int32

from dbp.data.missing import load_missing


@dataclass(frozen=True)
class Clusters:
    """An assignment of rows to k centroids.

    Laws: each clustered row stands once; sizes sum to their number; centroids have unit length;
    distance is 1 - cosine, in [0, 2].
    """

    centroids: Float32[np.ndarray, "k d"]
    rows: Int[np.ndarray, " n"]
    assignment: Int32[np.ndarray, " n"]
    distance_to_centroid: Float32[np.ndarray, " n"]
    missing: dict[int, str] = field(default_factory=dict)  # row -> why it has no vector

    @property
    def num_clusters(self) -> int:
        return len(self.centroids)

    @property
    def sizes(self) -> Int[np.ndarray, " k"]:
        return np.bincount(self.assignment, minlength=self.num_clusters)

    def of(self, rows: Int[np.ndarray, " m"]) -> tuple[np.ndarray, "Clusters"]:
        """These clusters seen by some rows only: which of `rows` are clustered, and the masked view.

        No vector is read: members, sizes and d_intra follow from the stored distances.
        """
        is_member = np.isin(rows, self.rows, assume_unique=True)
        inside = np.isin(self.rows, rows, assume_unique=True)
        return is_member, Clusters(
            self.centroids,
            self.rows[inside],
            self.assignment[inside],
            self.distance_to_centroid[inside],
            self.missing,
        )

    def save(self, folder: Path) -> None:
        np.save(folder / "centroids.npy", self.centroids)
        pq.write_table(
            pa.table(
                {
                    "row": self.rows,
                    "cluster": self.assignment,
                    "distance": self.distance_to_centroid,
                }
            ),
            folder / "assignment.parquet",
            compression="zstd",
        )

    @classmethod
    def load(cls, folder: Path) -> "Clusters":
        table = pq.read_table(folder / "assignment.parquet")
        return cls(
            np.load(folder / "centroids.npy"),
            table["row"].to_numpy(),
            table["cluster"].to_numpy(),
            table["distance"].to_numpy(),
            load_missing(folder),
        )
