"""d_intra and d_inter as the original scripts write them, and the share of the target that they give."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from dbp.clustering.geometry import complexity, d_inter, d_intra
from dbp.engine.disk import replacing
from dbp.engine.progress import progress
from dbp.errors import ConfigError, WorldError
from dbp.formats.sorted_clusters import SortedClusters, find_centroids, load_centroids

UNIT = 1e-3  # centroids this near to length 1 give the script's numbers, too
NOISE = 1e-5  # a distance this little below zero is rounding: 1 - cosine of a single member in float32


def compute_avg_dist_to_cluster_centroid(
    num_clusters: int | None, sorted_clusters_path: str, avg_distance_to_cent_save_path: str
) -> None:
    """Write d_intra: the mean of column 2 of each cluster file, float32 (k,); NaN for an empty one."""
    out = _output(avg_distance_to_cent_save_path, "--avg-distance-to-cent-save-path")
    clusters = SortedClusters.open(sorted_clusters_path, num_clusters, "--sorted-clusters-path")
    means = np.empty(clusters.num_clusters)
    with progress("d_intra", clusters.num_clusters, "clusters") as bar:
        for cluster in range(clusters.num_clusters):
            distance = clusters.distances(cluster)
            means[cluster] = d_intra(distance, np.zeros(len(distance), np.int64), 1)[0]
            bar.advance()
    if empty := int((clusters.sizes == 0).sum()):
        print(f"{empty:,} clusters are empty: NaN, where the script would crash")
    if (low := np.flatnonzero(means < -NOISE)).size:
        print(
            f"the mean distance of {low.size:,} clusters is below 0, the first being {low[0]}: 1 - cosine "
            "is not, so the embeddings were not of unit length"
        )
    save_npy(out, means.astype(np.float32))
    print(f"wrote d_intra of {clusters.num_clusters:,} clusters, {clusters.num_rows:,} rows, to {out}")


def compute_centroid_distances(
    num_clusters: int | None,
    sorted_clusters_path: str | None,
    mean_centroid_distances_save_path: str,
    centroids_file: str | None,
    num_NNs: int,
    dim: int | None,
) -> None:
    """Write d_inter: the mean cosine distance of each centroid to its nearest others, float32 (k,)."""
    out = _output(mean_centroid_distances_save_path, "--mean-centroid-distances-save-path")
    if not centroids_file and not sorted_clusters_path:
        raise ConfigError(
            "dbp compat compute_centroid_distances needs --centroids-file, or --sorted-clusters-path to "
            "find SemDeDup's kmeans_centroids.npy by."
        )
    path = find_centroids(Path(sorted_clusters_path or "."), centroids_file, "--centroids-file")
    centroids = load_centroids(path)
    k, width = centroids.shape
    for said, value, found in (("--num-clusters", num_clusters, k), ("--dim", dim, width)):
        if value is not None and value != found:
            raise ConfigError(
                f"{said}={value:,}, and {path} holds {k:,} centroids of width {width:,}. Leave the option "
                "out, or give the right file."
            )
    if num_NNs < 1:
        raise ConfigError(f"--num-NNs={num_NNs}: it must be at least 1")
    if k < 2:
        raise ConfigError(f"{path} holds one centroid, which has no others to be far from.")
    if k <= num_NNs:
        print(
            f"{k:,} centroids have {k - 1:,} others each: the mean is over these, where the script would "
            f"reckon with {num_NNs - k + 1:,} that do not exist and write values without meaning"
        )
    lengths = np.linalg.norm(centroids.astype(np.float64), axis=1)
    if np.abs(lengths - 1).max() > UNIT:
        print(
            f"the centroids' lengths run from {lengths.min():.4g} to {lengths.max():.4g}: cosine distances "
            "are written, where the script's products are no cosines and differ"
        )
    save_npy(out, d_inter(centroids, num_NNs).astype(np.float32))
    print(f"wrote d_inter of {k:,} centroids of {path} to {out}")


def read_measure(path: str | None, num_clusters: int, option: str, script: str) -> np.ndarray:
    """One number a cluster, as one of the scripts wrote it.

    Raises:
        ConfigError: No path is given, or no such file exists.
        WorldError: The file holds something else than `num_clusters` numbers, or an infinite one.
    """
    option, way = f"--{option.replace('_', '-')}", f"Write it with dbp compat {script}."
    file = _with_suffix(Path(path)) if path else None
    if file is None or not file.is_file():
        raise ConfigError(f"{option}={path or ''!r} is no file, and --density needs it. {way}")
    try:
        found = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise WorldError(f"{file} cannot be read: {error}. {way}") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        raise WorldError(f"{file} holds no floating point numbers. {way}")
    if found.shape != (num_clusters,):
        raise WorldError(f"{file} has shape {found.shape}, and there are {num_clusters:,} clusters. {way}")
    if np.isinf(found).any():
        raise WorldError(
            f"{file} says {found[np.isinf(found)][0]} for cluster {int(np.argmax(np.isinf(found)))}, as the "
            f"original script does where there are fewer centroids than neighbours. {way}"
        )
    return found


def exact_complexity(
    sizes: Int[np.ndarray, " k"], inter: Float[np.ndarray, " k"], intra: Float[np.ndarray, " k"]
) -> Float64[np.ndarray, " k"]:
    """d_inter * d_intra of the clusters with rows; an empty one has 0, whatever its measures.

    Raises:
        WorldError: A measure of a cluster with rows is NaN or below zero.
    """
    filled = sizes > 0
    for name, values in (("d_inter", inter), ("d_intra", intra)):
        if (bad := filled & ~(values >= -NOISE)).any():
            at = int(np.argmax(bad))
            raise WorldError(
                f"{name} of cluster {at} is {values[at]}, and the cluster has {sizes[at]:,} rows: a cosine "
                "distance lies between 0 and 2. Compute the file again from these clusters, with "
                "embeddings of unit length; --reference takes up to nine values below zero."
            )
    found = np.zeros(len(sizes))
    found[filled] = complexity(inter[filled], intra[filled])
    return found


def save_npy(path: Path, values: Any) -> None:
    """Write an array in place of what is there."""
    with replacing(path) as file:
        np.save(file, values)


def _output(path: str, option: str) -> Path:
    if not path or Path(path).is_dir():
        raise ConfigError(f"{option}={path!r} names no file. Give a .npy file to write.")
    out = _with_suffix(Path(path))
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _with_suffix(path: Path) -> Path:
    """As numpy's save names a file: the script that reads is given the same words."""
    return path if path.name.endswith(".npy") else path.with_name(path.name + ".npy")
