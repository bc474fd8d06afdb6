"""Clusters for the page: where they lie, what each method keeps of them, and a sample of their members."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dbp.clustering.geometry import complexity, entropy
from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.selection import density
from dbp.selection.density import Density
from dbp.selection.trials import TEMPERATURES
from evaluation.report.page.pictures import Pictures, sample

NUM_NEIGHBOURS = 20  # of d_inter where no arm of the report says how many (Abbas et al. 2024)
FEWEST, MOST = 8, 16  # pictures of a cluster
MOST_BUDGETS = 6


@dataclasses.dataclass(frozen=True)
class Chooser:
    """A DBP arm: its stage and what it chose from."""

    arm: str
    stage: Density
    rows: KeepList
    num_kept: int


def shape(clusters: Clusters, choosers: Sequence[Chooser]) -> dict[str, Any]:
    """Size, d_intra, d_inter and complexity of each cluster, as the first DBP arm saw and measured them."""
    if choosers:
        first = choosers[0]
        table = first.stage.cluster_table(clusters, first.rows.mask & clusters.is_clustered, first.num_kept)
        sizes, intra, inter = table["size"], table["d_intra"], table["d_inter"]
        measure = table["complexity"]
    else:
        sizes, intra, inter = density.shape(clusters, clusters.is_clustered, NUM_NEIGHBOURS)
        measure, filled = np.full(len(sizes), np.nan), sizes > 0
        measure[filled] = complexity(inter[filled], intra[filled])
    return {
        "size": sizes.tolist(),
        "d_intra": _numbers(intra),
        "d_inter": _numbers(inter),
        "complexity": _numbers(measure),
    }


def by_temperature(clusters: Clusters, choosers: Sequence[Chooser]) -> dict[str, Any] | None:
    """The quota of every cluster at every temperature of the arms, for each of their budgets.

    Where the arms have one temperature, the others are those that `dbp tune` tries. None without DBP.
    """
    if not choosers:
        return None
    first = choosers[0]
    own = sorted({chooser.stage.temperature for chooser in choosers})
    values = own if len(own) > 1 else sorted({*own, *TEMPERATURES})
    budgets = sorted({chooser.num_kept for chooser in choosers})[:MOST_BUDGETS]
    mask = first.rows.mask & clusters.is_clustered
    quotas: list[list[list[int]]] = []
    entropies: list[float] = []
    for budget in budgets:
        quotas.append([])
        for value in values:
            stage = dataclasses.replace(first.stage, temperature=value)
            table = stage.cluster_table(clusters, mask, budget)
            quotas[-1].append(table["quota"].tolist())
            shares = table["probability"][table["size"] > 0]
            if budget == budgets[0]:
                entropies.append(entropy(shares))
    return {
        "values": values,
        "own": own,
        "budgets": budgets,
        "quotas": quotas,
        "effective": [round(float(np.exp(one)), 1) for one in entropies],
        "arm": first.arm,
    }


def members(
    clusters: Clusters, keeps: Sequence[KeepList], complexity: Sequence[float | None], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """A bounded sample of rows: as many of each shown cluster, evenly from the nearest to the farthest.

    Where there are more clusters than pictures for them, those shown are spread over the complexities.
    Half of a cluster's sample stayed in the first keep list and half went, where it has so many of both.

    Args:
        clusters: Of one pool.
        keeps: The keep list by which halves are told; the first is used.
        complexity: Of each cluster.
        most: Rows in all.

    Returns:
        The rows, by cluster and rising distance; and the numbers of the clusters shown.
    """
    filled = np.flatnonzero(clusters.sizes > 0)
    each = int(np.clip(most // max(len(filled), 1), FEWEST, MOST))
    measure = np.array([np.nan if c is None else c for c in complexity])[filled]
    order = filled[np.argsort(np.where(np.isnan(measure), np.inf, measure), kind="stable")]
    room = min(max(most // each, 1), len(order))
    shown = np.sort(order[np.unique(np.linspace(0, len(order) - 1, room).astype(int))])
    found: list[np.ndarray] = []
    for cluster in shown:
        rows, _ = clusters.members(int(cluster), int(cluster) + 1)
        rows = rows[np.argsort(clusters.distance_to_centroid[rows], kind="stable")]
        stays = keeps[0].mask[rows] if keeps else np.ones(len(rows), bool)
        sides = [rows[stays], rows[~stays]]
        shares = _halves(each, *map(len, sides))
        taken = np.concatenate([_spread(side, share) for side, share in zip(sides, shares, strict=True)])
        found.append(taken[np.argsort(clusters.distance_to_centroid[taken], kind="stable")])
    return (np.concatenate(found) if found else np.zeros(0, np.int64)), shown


def _halves(count: int, first: int, second: int) -> tuple[int, int]:
    """Half from each of two sides; more from one where the other has too few."""
    one = min(first, max(count // 2, count - second))
    return one, min(second, count - one)


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    if count <= 0 or not len(rows):
        return rows[:0]
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]


def member_samples(clusters: Clusters, pool: Pool, pictures: Pictures, rows: np.ndarray) -> list[dict[str, Any]]:
    """What the page shows of each row of the sample."""
    return [
        {
            **sample(pool, pictures, int(row)),
            "cluster": int(clusters.assignment[row]),
            "distance": round(float(clusters.distance_to_centroid[row]), 4),
        }
        for row in rows
    ]


def kept_sizes(clusters: Clusters, keep: KeepList) -> list[int]:
    """Rows of each cluster that an arm kept."""
    return clusters.sizes_of(keep.mask & clusters.is_clustered).tolist()


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if not np.isfinite(v) else round(float(v), 5) for v in values]
