"""The geometry of clusters: how tight each is, how far it lies from its neighbours, how complex it is.

Pure functions on arrays. Abbas et al. 2024 (DBP), section 3: C_j = d_inter_j * d_intra_j.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

BLOCK = 1024  # centroids compared at once: 1024 x 50,000 float64 is 400 MB


def d_inter(centroids: Float[np.ndarray, "k d"], num_neighbours: int) -> Float[np.ndarray, " k"]:
    """Mean cosine distance of each centroid to its nearest other centroids.

    Args:
        centroids: Cluster centres; their length does not matter.
        num_neighbours: How many others to average over; all k - 1 where there are fewer.

    Returns:
        In [0, 2].

    Raises:
        ValueError: Fewer than two centroids, no neighbours asked for, or a zero or non-finite centroid.

    Source:
        Abbas et al. 2024, d_inter over 20 neighbours. Departures: the centroid itself is left out by
        position, not by dropping the first hit; fewer than 21 centroids are no infinity.
    """
    k = len(centroids)
    if k < 2:
        raise ValueError(f"d_inter needs at least two centroids; there is {k}")
    if num_neighbours < 1:
        raise ValueError(f"num_neighbours={num_neighbours}: it must be at least 1")
    precise = np.asarray(centroids, np.float64)
    norms = np.linalg.norm(precise, axis=1)
    if not np.isfinite(norms).all() or (norms == 0).any():
        bad = int(np.flatnonzero(~np.isfinite(norms) | (norms == 0))[0])
        raise ValueError(f"centroid {bad} is zero or not finite, so it has no direction")
    unit = precise / norms[:, None]
    count = min(num_neighbours, k - 1)
    nearest = np.empty(k)
    for start in range(0, k, BLOCK):
        stop = min(start + BLOCK, k)
        cosine = unit[start:stop] @ unit.T
        cosine[np.arange(stop - start), np.arange(start, stop)] = -np.inf
        best = np.partition(cosine, k - count, axis=1)[:, k - count :]
        nearest[start:stop] = 1 - best.mean(axis=1)
    return np.clip(nearest, 0, 2)


def d_intra(
    distance_to_centroid: Float[np.ndarray, " n"],
    assignment: Int[np.ndarray, " n"],
    num_clusters: int,
    mask: Bool[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, " k"]:
    """Mean cosine distance of members to their centroid.

    Args:
        distance_to_centroid: Of each row; read where the row is in a cluster.
        assignment: Cluster of each row, -1 for none.
        num_clusters: k.
        mask: Rows that count; all without it.

    Returns:
        In [0, 2]; NaN for a cluster without members. Each distance is rounded to 2^-30 and the sums are
        exact, so that the mean is the same bits in any order.

    Source:
        Abbas et al. 2024, d_intra. Departure: from stored distances, summed exactly.
    """
    from dbp.exact.kernels import UNITS, cluster_totals

    sizes, sums = (np.zeros(num_clusters, np.int64) for _ in range(2))
    counts = np.ones(len(assignment), bool) if mask is None else mask
    cluster_totals(np.asarray(assignment), np.asarray(distance_to_centroid), counts, sizes, sums)
    with np.errstate(invalid="ignore"):
        return sums / UNITS / sizes


def complexity(d_inter: Float[np.ndarray, " k"], d_intra: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """How varied the concept behind each cluster is.

    Args:
        d_inter: Mean cosine distance to the nearest other centroids, in [0, 2].
        d_intra: Mean cosine distance of members to their centroid, in [0, 2].

    Returns:
        Their product, in [0, 4]. Larger means: prune this cluster less.

    Raises:
        ValueError: A value is not finite, as for an empty cluster.

    Source:
        Abbas et al. 2024, C_j. Departure: empty clusters are an error here, not filled with the mean.
    """
    for name, values in (("d_inter", d_inter), ("d_intra", d_intra)):
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(
                f"{name} of cluster {bad} is {values[bad]}: an empty cluster has no complexity; leave it out"
            )
    return np.asarray(d_inter, np.float64) * np.asarray(d_intra, np.float64)


def softmax(values: Float[np.ndarray, " k"], temperature: float) -> Float[np.ndarray, " k"]:
    """Probabilities that grow with the values; a lower temperature sharpens them.

    Raises:
        ValueError: The temperature is not above zero.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: it must be above 0")
    shifted = np.exp((values - values.max()) / temperature)
    return shifted / shifted.sum()


def entropy(probabilities: Float[np.ndarray, " k"]) -> float:
    """Entropy in nats; its exponential is the number of equal shares that have this entropy."""
    return float(-(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum())
