"""Image-based filtering: images whose best centroid is the best one of some target image."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float32, Int

from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, WorldError
from dbp.narrowing import Narrowing

PRODUCTS = 1 << 24  # inner products held at once: 64 MB
UNDECIDED = 1e-4  # products this near to the largest are compared again in float64


@dataclass(frozen=True)
class NearTargets(Narrowing):
    """Keep images whose best centroid is the best centroid of at least one target vector.

    The best centroid has the largest inner product, as in DataComp's code. Its centroids are not of unit
    length, so this is not the nearest one. Cost: 2 k d operations a row; DataComp's k is 100,000.

    Args:
        centroids: `.npy` of shape (k, d).
        targets: `.npy` of shape (m, d).
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "image")

    centroids: str | None = runtime(None)
    targets: str | None = runtime(None)

    def identity(self) -> dict[str, Any]:
        files = {"centroids": self.centroids, "targets": self.targets}
        return {name: path and file_digest(path, f"filter.{name}") for name, path in files.items()}

    def decide(self, rows: KeepList, image: Embeddings) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        centroids = _matrix(self.centroids, "centroids", image.width)
        targets = _matrix(self.targets, "targets", image.width)
        is_wanted = np.zeros(len(centroids), bool)
        is_wanted[best_centroids(targets, centroids)] = True
        keep = np.zeros(rows.num_pool_rows, bool)
        codes, texts = image.missing.codes_over(rows.num_pool_rows, "no embedding")
        for part in range(len(image.parts)):
            own = image.part_rows(part)
            own = own[rows.mask[own]]
            keep[own] = is_wanted[best_centroids(image.gather(own), centroids)]
            codes[own] = len(texts)
        why = "far from ImageNet"
        kept = rows.within("filter", keep, (codes, [*texts, why]), "near to ImageNet")
        return kept, {"centroids near to ImageNet": int(is_wanted.sum())}


def best_centroids(vectors: np.ndarray, centroids: Float32[np.ndarray, "k d"]) -> Int[np.ndarray, " n"]:
    """For each vector the centroid of the largest inner product; of equal ones the first.

    In float32; what rounding leaves undecided is decided in float64, so that blocks and threads do not
    matter.
    """
    found = np.zeros(len(vectors), np.int64)
    size = max(1, PRODUCTS // len(centroids))
    scale = float(np.linalg.norm(centroids.astype(np.float64), axis=1).max())
    for start in range(0, len(vectors), size):
        block = np.asarray(vectors[start : start + size], np.float32)
        products = block @ centroids.T
        found[start : start + size] = products.argmax(axis=1)
        near = np.linalg.norm(block, axis=1) * (UNDECIDED * scale)
        close: Bool[np.ndarray, "b k"] = products >= (products.max(axis=1) - near)[:, None]
        for row in np.flatnonzero(np.count_nonzero(close, axis=1) > 1).tolist():
            among = np.flatnonzero(close[row])
            exact = centroids[among].astype(np.float64) @ block[row].astype(np.float64)
            found[start + row] = among[exact.argmax()]
    return found


def _matrix(path: str | None, name: str, width: int) -> Float32[np.ndarray, "k d"]:
    if path is None:
        raise ConfigError(
            f"filter.{name} is not set: the image-based filter needs a .npy of "
            + ("the pool's centroids." if name == "centroids" else "ImageNet-1k's L/14 vectors.")
        )
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise WorldError(
            f"filter.{name}={path!r} is no .npy array ({error}). DataComp's file is a pickle, which is never "
            "read; save its array with numpy.save."
        ) from error
    if found.ndim != 2 or found.dtype.kind != "f" or found.shape[1] != width or len(found) == 0:
        raise WorldError(
            f"filter.{name}={path!r} has shape {found.shape} of {found.dtype}; the pool's image vectors have "
            f"{width:,} numbers (encoder.score), and one float vector a row is needed."
        )
    if not np.isfinite(found).all():
        raise WorldError(f"filter.{name}={path!r} holds numbers that are not finite.")
    return np.asarray(found, np.float32)
