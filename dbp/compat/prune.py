"""The original prune script: counts for each cluster, the keys that stay, and the trie of them."""

import pickle
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from dbp.clustering.geometry import softmax
from dbp.compat.distances import exact_complexity, read_measure, save_npy
from dbp.compat.quotas import Quotas, exact_quotas, reference_quotas
from dbp.engine.progress import progress
from dbp.errors import ConfigError, WorldError
from dbp.formats.sorted_clusters import SortedClusters

MEASURES = {
    "mean_centroid_distances_save_path": "compute_centroid_distances",
    "avg_distance_to_cent_save_path": "compute_avg_dist_to_cluster_centroid",
}  # d_inter and d_intra: the options that name their files, the scripts that write them
PAPER = {"temperature": 0.1, "cls_bal_ratio": 0.0}  # what the paper used where the script has 0.5


def prune(given: set[str], **values: Any) -> None:
    """Read the clusters, choose, write, and print what was kept.

    Args:
        given: Names of the options that were given.
        values: Every option by its name, as `dbp compat --help` explains it; `prune_ratio` is the fraction KEPT.
    """
    o = SimpleNamespace(**values)
    for holds, option, value, must in (
        (0 < o.prune_ratio <= 1, "prune-ratio", o.prune_ratio, "above 0 and at most 1"),
        (o.temperature > 0, "temperature", o.temperature, "above 0"),
        (0 <= o.cls_bal_ratio <= 1, "cls-bal-ratio", o.cls_bal_ratio, "from 0 to 1"),
        (bool(o.save_dir), "save-dir", o.save_dir, "a folder"),
    ):
        if not holds:
            raise ConfigError(f"--{option}={value}: it must be {must}")
    if o.save_output:
        _pygtrie()  # before the work, not after it
    clusters = SortedClusters.open(o.sorted_clusters_path, o.num_centroids, "--sorted-clusters-path")
    total = _total(o, clusters)
    quotas = _quotas(o, clusters.sizes, total)
    counts = np.clip(quotas.counts, 0, clusters.sizes)
    print(
        f"{clusters.num_clusters:,} clusters, {clusters.num_rows:,} rows; target {quotas.target:,} of "
        f"{total:,}, at least {quotas.floor:,} of each cluster"
    )
    for name, value in PAPER.items():
        if name not in given:
            print(f"--{name.replace('_', '-')}={values[name]} is the script's default; the paper used {value}")
    if o.reference and (off := int(quotas.counts.sum()) - quotas.target):
        print(f"the rounded counts miss the target by {off:+,}, as the script leaves them")
    if negative := int((quotas.counts < 0).sum()):
        print(f"{negative:,} clusters without rows have a count of -1; nothing is kept of them")
    out = Path(o.save_dir) / name_of(o, clusters.num_clusters)
    beside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        _write(o, clusters, quotas, counts, total, out, beside)
        out.mkdir(exist_ok=True)
        for file in sorted(beside.iterdir()):
            file.rename(out / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    print(
        f"kept {counts.sum():,} of {clusters.num_rows:,} rows, --prune-ratio={o.prune_ratio} being the "
        f"fraction KEPT here: {out}"
    )


def name_of(o: SimpleNamespace, num_clusters: int) -> str:
    """The output's name as the script builds it from the settings; a `*` stands in most."""
    balance = f"_{o.cls_bal_ratio}cls_bal" if o.cls_bal_ratio > 0 else ""
    kept = {"hard": "hard_True", "easy": "hard_False", "random": "random_True"}
    return (
        f"qp_{o.density}{o.prune_ratio}_temperature_{o.temperature}_num_centroids_"
        f"{num_clusters}{balance}_keep_{kept[o.which_to_keep]}"
    )


def _total(o: SimpleNamespace, clusters: SortedClusters) -> int:
    total = o.total_dataset_size
    if total is None or total == clusters.num_rows:
        return clusters.num_rows
    said = f"--total-dataset-size={total:,}, and the cluster files hold {clusters.num_rows:,} rows"
    if not o.reference:
        raise ConfigError(
            f"{said}. Leave the option out to keep a fraction of what is there; with --reference the "
            "number is taken as it is, as the script does."
        )
    print(f"{said}: the target refers to the number given")
    return total


def _quotas(o: SimpleNamespace, sizes: Int64[np.ndarray, " k"], total: int) -> Quotas:
    k = len(sizes)
    if o.density == "uniform":
        measure = np.ones(k)
    elif o.density == "clustersize":
        measure = sizes / max(sizes.sum(), 1)
    else:
        read = (read_measure(vars(o)[option], k, option, script) for option, script in MEASURES.items())
        inter, intra = read
        measure = inter * intra if o.reference else exact_complexity(sizes, inter, intra)
    if o.reference:
        return reference_quotas(sizes, measure, o.temperature, o.prune_ratio, total, o.cls_bal_ratio)
    filled, shares = sizes > 0, np.zeros(k)
    shares[filled] = softmax(measure[filled], o.temperature)
    return exact_quotas(sizes, shares, o.prune_ratio, total, o.cls_bal_ratio)


def _write(
    o: SimpleNamespace,
    clusters: SortedClusters,
    quotas: Quotas,
    counts: Int64[np.ndarray, " k"],
    total: int,
    out: Path,
    beside: Path,
) -> None:
    settings = {**vars(o), "num_centroids": clusters.num_clusters, "total_dataset_size": total}
    settings |= {"save_dir": out, "name": out.name}
    lines = [f"{name}: {value}\n" for name, value in settings.items()]
    (beside / "params.txt").write_text("".join(lines), encoding="utf-8")
    save_npy(beside / f"number_of_points_to_keep_per_cluster_density_{o.density}.npy", quotas.counts)
    stats = np.full((2, clusters.num_clusters), np.nan)
    with ExitStack() as stack:
        keys = trie = None
        if o.save_output:
            # The script's name: it is no pickle.
            path = beside / f"{out.name}_paths.pickle"
            keys = stack.enter_context(open(path, "w", encoding="utf-8", newline="\n"))
            trie = _pygtrie().StringTrie()
        first = True
        for cluster, kept in _chosen(o, clusters, counts, stats):
            if keys is None or trie is None:
                continue
            for key in kept:
                if "\n" in key or "\r" in key:
                    raise WorldError(
                        f"{clusters.path(cluster)}: the key {key!r} holds a line break, so a list of one "
                        "key a line cannot hold it."
                    )
                keys.write(key if first else f"\n{key}")
                trie[key.removesuffix(o.trie_suffix)] = 1
                first = False
    if o.save_output:
        save_npy(beside / "distances_stats.npy", stats)
        with open(beside / f"{out.name}_trie.txt", "wb") as handle:
            pickle.dump(trie, handle, protocol=4)
        if merged := int(counts.sum()) - len(trie):  # type: ignore[arg-type]
            print(f"{merged:,} kept rows repeat another's key, so the trie holds {len(trie):,}")  # type: ignore[arg-type]


def _chosen(
    o: SimpleNamespace, clusters: SortedClusters, counts: Int64[np.ndarray, " k"], stats: Float64[np.ndarray, "2 k"]
) -> Iterator[tuple[int, list[str]]]:
    """For each cluster the keys that stay, in the script's order; mean distances into `stats`.

    Raises:
        WorldError: A file is not sorted farthest first.
    """
    # The script's own generator, drawn from cluster after cluster.
    generator = random.Random(o.seed)
    with progress("prune", clusters.num_clusters, "clusters") as bar:
        for cluster, count in enumerate(counts.tolist()):
            size = int(clusters.sizes[cluster])
            distance = clusters.distances(cluster)
            check_farthest_first(distance, clusters.path(cluster))
            if o.which_to_keep == "random":
                chosen = np.array(generator.sample(range(size), count), np.int64)
            elif o.which_to_keep == "hard":
                chosen = np.arange(count)
            else:
                chosen = np.arange(size - count, size)
            if size:
                stats[0, cluster] = distance.mean()
            if count:
                stats[1, cluster] = distance[chosen].mean()
                yield cluster, clusters.keys(cluster, chosen)
            bar.advance()


def check_farthest_first(distance: Float64[np.ndarray, " n"], path: Path) -> None:
    """Refuse a cluster file in another order: hard and easy would change places, or mean nothing.

    Raises:
        WorldError: It says whether the file is sorted nearest first, or not at all.
    """
    steps = np.diff(distance)
    if not (steps > 0).any():
        return
    at = int(np.argmax(steps > 0))
    if not (steps < 0).any():
        raise WorldError(
            f"{path} is sorted nearest first ({distance[0]:.6g} to {distance[-1]:.6g}), so hard and easy would "
            "change places. Sort the clusters with SemDeDup's keep_hard=True."
        )
    raise WorldError(
        f"{path} is not sorted by distance to the centroid: row {at:,} has {distance[at]:.6g} and row "
        f"{at + 1:,} has {distance[at + 1]:.6g}. Sort it farthest first, as SemDeDup does."
    )


def _pygtrie() -> Any:
    try:
        import pygtrie
    except ImportError as error:
        raise ConfigError(
            "dbp compat prune writes a trie of the package pygtrie, which is not installed. Install it with "
            "pip install pygtrie, or write the counts only with --save-output=false."
        ) from error
    return pygtrie
