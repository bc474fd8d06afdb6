"""SemDeDup's sorted clusters, read with bounded memory.

A folder holds `cluster_0.npy` to `cluster_{k-1}.npy`, one row a sample, every cell text: the key, the row
in the array of embeddings, the distance to the own centroid (farthest first), the cluster's number. The
cells are `<U..` where keys were text and `|S..` where they were bytes; an empty cluster has shape (0,).
`kmeans_centroids.npy` lies beside or above them. A row takes four cells, 512 bytes as `<U32`, so sizes are
taken from the files' headers and cells are read through a memory map, a block of rows at a time.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64

from dbp.errors import ConfigError, WorldError

BLOCK = 65_536  # rows read at once
CENTROIDS = "kmeans_centroids.npy"  # SemDeDup's name
NAME = re.compile(r"cluster_(0|[1-9]\d*)\.npy")
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Members:
    """Some consecutive rows of one cluster's file."""

    cluster: int
    keys: list[str]
    distance_to_centroid: Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class SortedClusters:
    """A folder of sorted cluster files whose headers were read and whose sizes are right."""

    folder: Path  # where they lie
    sizes: Int64[np.ndarray, " k"]  # rows of each cluster, from the headers

    @classmethod
    def open(cls, folder: Path | str, num_clusters: int | None = None, setting: str = "path") -> "SortedClusters":
        """Read the headers of all cluster files.

        Args:
            folder: Where the files lie; other files in it are left alone.
            num_clusters: How many there must be; None for all that there are.
            setting: What the folder comes from, for messages.

        Raises:
            ConfigError: No folder, no cluster files, or another number than `num_clusters`.
            WorldError: A number is missing, or a file is no cluster file or is cut short.
        """
        home = Path(folder)
        if not str(folder) or not home.is_dir():
            raise ConfigError(
                f"{setting}={str(folder)!r} is no folder. Give the one that holds SemDeDup's sorted "
                "clusters, cluster_0.npy and on."
            )
        numbers = sorted(int(m.group(1)) for f in home.iterdir() if (m := NAME.fullmatch(f.name)) is not None)
        if not numbers:
            raise ConfigError(
                f"{setting}={str(folder)!r} holds no file cluster_0.npy. Give the folder of SemDeDup's "
                "sorted clusters."
            )
        if num_clusters is not None and num_clusters != len(numbers):
            raise ConfigError(
                f"{home} holds {len(numbers):,} cluster files, and {num_clusters:,} clusters were said. "
                "Say the number that is there, or restore the missing files."
            )
        if numbers[-1] != len(numbers) - 1:
            gap = next(i for i, number in enumerate(numbers) if i != number)
            raise WorldError(
                f"{home} holds cluster_{numbers[-1]}.npy and no cluster_{gap}.npy: "
                f"{numbers[-1] + 1 - len(numbers):,} cluster files are missing. Restore them; an empty "
                "cluster is a file, too."
            )
        sizes = [_num_rows(home / f"cluster_{j}.npy") for j in numbers]
        return cls(home, np.array(sizes, np.int64))

    @property
    def num_clusters(self) -> int:
        return len(self.sizes)

    @property
    def num_rows(self) -> int:
        return int(self.sizes.sum())

    def path(self, cluster: int) -> Path:
        return self.folder / f"cluster_{cluster}.npy"

    def distances(self, cluster: int) -> Float64[np.ndarray, " n"]:
        """The distances of a cluster's members to their centroid, in the file's order.

        Raises:
            WorldError: A cell is no finite number, or the file says that it is another cluster's.
        """
        found = [self._distances(cluster, cells, at) for at, cells in self._cells(cluster)]
        return np.concatenate([np.zeros(0), *found])

    def keys(self, cluster: int, rows: Int[np.ndarray, " m"]) -> list[str]:
        """The keys of some rows of a cluster's file, whole, in the order asked for.

        Raises:
            WorldError: A key is empty, or cannot be told in UTF-8.
        """
        return self._keys(cluster, self._mapped(cluster)[rows]) if len(rows) else []

    def blocks(self, cluster: int, num_rows: int = BLOCK) -> Iterator[Members]:
        """A cluster's members in the file's order, at most `num_rows` at once.

        Raises:
            WorldError: As `distances` and `keys`.
        """
        for at, cells in self._cells(cluster, num_rows):
            yield Members(cluster, self._keys(cluster, cells), self._distances(cluster, cells, at))

    def source(self) -> str:
        """Names, sizes and times of the files in one digest: changed files are read again."""
        stats = [self.path(j).stat() for j in range(self.num_clusters)]
        described = [[j, s.st_size, s.st_mtime_ns] for j, s in enumerate(stats)]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def _mapped(self, cluster: int) -> np.ndarray:
        return np.load(self.path(cluster), mmap_mode="r", allow_pickle=False)

    def _cells(self, cluster: int, num_rows: int = BLOCK) -> Iterator[tuple[int, np.ndarray]]:
        size = int(self.sizes[cluster])
        cells = self._mapped(cluster) if size else None  # an empty file cannot be mapped
        for start in range(0, size, num_rows):
            assert cells is not None
            yield start, cells[start : start + num_rows]

    def _keys(self, cluster: int, cells: np.ndarray) -> list[str]:
        keys = cells[:, 0].tolist()
        try:
            if cells.dtype.kind == "S":
                keys = [key.decode() for key in keys]
            else:
                "".join(keys).encode()  # half a surrogate pair has no bytes
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            raise WorldError(
                f"{self.path(cluster)}: a key cannot be told in UTF-8 ({error.reason}). Write the cluster "
                "files again with keys as text."
            ) from error
        if "" in keys:
            raise WorldError(
                f"{self.path(cluster)}: a row has no key, so no sample can be found by it. Write the "
                "cluster files again."
            )
        return keys

    def _distances(self, cluster: int, cells: np.ndarray, start: int) -> Float64[np.ndarray, " n"]:
        path = self.path(cluster)
        number = str(cluster) if cells.dtype.kind == "U" else str(cluster).encode()
        if (strange := cells[:, 3] != number).any():
            at = int(np.argmax(strange))
            raise WorldError(
                f"{path}: row {start + at:,} says that it is of cluster {cells[at, 3]}. The file was "
                "renamed or mixed with another clustering's; restore it."
            )
        try:
            found = cells[:, 2].astype(np.float64)
        except ValueError as error:
            raise WorldError(
                f"{path}: column 2 must hold distances to the centroid ({error}). A sorted cluster file "
                "has the columns key, row, distance, cluster."
            ) from error
        if not np.isfinite(found).all():
            at = int(np.argmin(np.isfinite(found)))
            raise WorldError(
                f"{path}: the distance of row {start + at:,} is {found[at]}. Leave samples without a "
                "finite embedding out, and cluster again."
            )
        return found


def _num_rows(path: Path) -> int:
    """The rows of a cluster file by its header, the file's length checked against it."""
    size = path.stat().st_size
    with open(path, "rb") as handle:
        try:
            shape, _, dtype = HEADERS[np.lib.format.read_magic(handle)](handle)
        except (ValueError, KeyError) as error:
            raise WorldError(
                f"{path} is no .npy file of numpy ({error}). Restore it; a raw memory map is not read here."
            ) from error
        begins = handle.tell()
    if dtype.hasobject:
        raise WorldError(f"{path} holds pickled objects, which are never read. Save it as an array of text.")
    rows = int(shape[0]) if shape else -1
    if rows != 0 and (dtype.kind not in "US" or shape[1:] != (4,)):
        raise WorldError(
            f"{path} holds {dtype} of shape {shape}; a sorted cluster file holds text (<U.. or |S..) of "
            "shape (rows, 4): key, row, distance, cluster."
        )
    if size < begins + int(np.prod(shape)) * dtype.itemsize:
        raise WorldError(
            f"{path} is cut short: it has {size:,} bytes, and its header promises "
            f"{begins + int(np.prod(shape)) * dtype.itemsize:,}. Restore it."
        )
    return rows


def find_centroids(clusters: Path, given: Path | str | None, setting: str) -> Path:
    """The centroids' file: the one given, else SemDeDup's own in the clusters' folder or above it.

    Raises:
        ConfigError: The file given does not exist, or none was given and none lies there.
    """
    if given:
        if not Path(given).is_file():
            raise ConfigError(f"{setting}={str(given)!r} is no file. Give the centroids' .npy file.")
        return Path(given)
    for folder in (clusters, clusters.absolute().parent):
        if (folder / CENTROIDS).is_file():
            return folder / CENTROIDS
    raise ConfigError(
        f"{setting} is not set, and no {CENTROIDS} lies in {clusters} or above it. Give the centroids' "
        ".npy file that k-means wrote."
    )


def load_centroids(path: Path) -> Float32[np.ndarray, "k d"]:
    """Centroids as k-means wrote them, of whatever length.

    Raises:
        WorldError: No two-dimensional array of finite numbers, or a centroid without direction.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise WorldError(f"{path} cannot be read as centroids: {error}. Give a .npy file.") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f":
        said = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else "no array"
        raise WorldError(f"{path} holds {said}; centroids are floating point of shape (clusters, width)")
    norms = np.linalg.norm(found.astype(np.float64), axis=1)
    if (bad := ~np.isfinite(norms) | (norms == 0)).any():
        raise WorldError(
            f"{path}: centroid {int(np.argmax(bad))} is zero or not finite, so it has no direction. Cluster again."
        )
    return found.astype(np.float32)
