"""The original prune script: counts for each cluster, the keys that stay, and the trie of them."""

import pickle
import random
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from dbp.compat.distances import equal_or_sized_shares, exact_shares, read_measure, save_npy
from dbp.compat.quotas import Quotas, exact_quotas, reference_quotas
from dbp.engine.progress import progress
from dbp.errors import ConfigError, WorldError
from dbp.formats.sorted_clusters import SortedClusters

PAPER = {"temperature": 0.1, "cls_bal_ratio": 0.0}  # what the paper used where the script has 0.5


@dataclass(frozen=True)
class Prune:
    """What `dbp compat prune` is given; names and meanings are the script's.

    Args:
        prune_ratio: Fraction KEPT.
        total_dataset_size: Rows that the fraction refers to; None for those in the files.
        reference: The script's bounds and rounding instead of exact counts.
        seed: Of `which_to_keep=random`.
        trie_suffix: Ending to take off the trie's keys where they have it.
        given: Names of the options that were given.
    """

    num_centroids: int | None
    temperature: float
    mean_centroid_distances_save_path: str | None
    avg_distance_to_cent_save_path: str | None
    sorted_clusters_path: str
    total_dataset_size: int | None
    which_to_keep: str
    prune_ratio: float
    save_dir: str
    density: str
    pruning_method: str
    cls_bal_ratio: float
    save_output: bool
    seed: int
    reference: bool
    trie_suffix: str
    given: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        for holds, option, value, must in (
            (0 < self.prune_ratio <= 1, "prune-ratio", self.prune_ratio, "above 0 and at most 1"),
            (self.temperature > 0, "temperature", self.temperature, "above 0"),
            (0 <= self.cls_bal_ratio <= 1, "cls-bal-ratio", self.cls_bal_ratio, "from 0 to 1"),
            (bool(self.save_dir), "save-dir", self.save_dir, "a folder"),
        ):
            if not holds:
                raise ConfigError(f"--{option}={value}: it must be {must}")

    def run(self) -> None:
        """Read the clusters, choose, write, and say what was kept."""
        if self.save_output:
            _pygtrie()  # before the work, not after it
        clusters = SortedClusters.open(self.sorted_clusters_path, self.num_centroids, "--sorted-clusters-path")
        total = self._total(clusters)
        quotas = self._quotas(clusters.sizes, total)
        counts = np.clip(quotas.counts, 0, clusters.sizes)
        self._say(clusters, quotas, total)
        out = Path(self.save_dir) / self.name(clusters.num_clusters)
        beside = out.with_name(f".{out.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            self._write(clusters, quotas, counts, total, out, beside)
            out.mkdir(exist_ok=True)
            for file in sorted(beside.iterdir()):
                file.rename(out / file.name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        print(
            f"kept {counts.sum():,} of {clusters.num_rows:,} rows, --prune-ratio={self.prune_ratio} being the "
            f"fraction KEPT here: {out}"
        )

    def name(self, num_clusters: int) -> str:
        """The output's name as the script builds it from the settings; a `*` stands in most."""
        balance = f"_{self.cls_bal_ratio}cls_bal" if self.cls_bal_ratio > 0 else ""
        kept = {"hard": "hard_True", "easy": "hard_False", "random": "random_True"}
        return (
            f"qp_{self.density}{self.prune_ratio}_temperature_{self.temperature}_num_centroids_"
            f"{num_clusters}{balance}_keep_{kept[self.which_to_keep]}"
        )

    def _total(self, clusters: SortedClusters) -> int:
        total = self.total_dataset_size
        if total is None or total == clusters.num_rows:
            return clusters.num_rows
        said = f"--total-dataset-size={total:,}, and the cluster files hold {clusters.num_rows:,} rows"
        if not self.reference:
            raise ConfigError(
                f"{said}. Leave the option out to keep a fraction of what is there; with --reference the "
                "number is taken as it is, as the script does."
            )
        print(f"{said}: the target refers to the number given")
        return total

    def _quotas(self, sizes: Int64[np.ndarray, " k"], total: int) -> Quotas:
        k = len(sizes)
        measured = self.density in ("dintra*dinter", "dinter*dintra")
        inter = intra = np.ones(k, np.float32)
        if measured:
            inter = read_measure(
                self.mean_centroid_distances_save_path,
                k,
                "--mean-centroid-distances-save-path",
                "compute_centroid_distances",
            )
            intra = read_measure(
                self.avg_distance_to_cent_save_path,
                k,
                "--avg-distance-to-cent-save-path",
                "compute_avg_dist_to_cluster_centroid",
            )
        if self.reference:
            complexity = sizes / max(sizes.sum(), 1) if self.density == "clustersize" else inter * intra
            return reference_quotas(
                sizes, complexity, self.temperature, self.prune_ratio, total, self.cls_bal_ratio
            )
        if measured:
            shares = exact_shares(sizes, inter, intra, self.temperature)
        else:
            shares = equal_or_sized_shares(sizes, self.density, self.temperature)
        return exact_quotas(sizes, shares, self.prune_ratio, total, self.cls_bal_ratio)

    def _say(self, clusters: SortedClusters, quotas: Quotas, total: int) -> None:
        print(
            f"{clusters.num_clusters:,} clusters, {clusters.num_rows:,} rows; target {quotas.target:,} of "
            f"{total:,}, at least {quotas.floor:,} of each cluster"
        )
        for name, value in PAPER.items():
            if name not in self.given:
                option = name.replace("_", "-")
                print(f"--{option}={getattr(self, name)} is the script's default; the paper used {value}")
        if self.reference and (off := int(quotas.counts.sum()) - quotas.target):
            print(f"the rounded counts miss the target by {off:+,}, as the script leaves them")
        if negative := int((quotas.counts < 0).sum()):
            print(f"{negative:,} clusters without rows have a count of -1; nothing is kept of them")

    def _write(
        self,
        clusters: SortedClusters,
        quotas: Quotas,
        counts: Int64[np.ndarray, " k"],
        total: int,
        out: Path,
        beside: Path,
    ) -> None:
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "given"}
        settings |= {"num_centroids": clusters.num_clusters, "total_dataset_size": total}
        settings |= {"save_dir": out, "name": out.name}
        lines = [f"{name}: {value}\n" for name, value in settings.items()]
        (beside / "params.txt").write_text("".join(lines), encoding="utf-8")
        save_npy(beside / f"number_of_points_to_keep_per_cluster_density_{self.density}.npy", quotas.counts)
        stats = np.full((2, clusters.num_clusters), np.nan)
        with ExitStack() as stack:
            keys = trie = None
            if self.save_output:
                # The script's name: it is no pickle.
                path = beside / f"{out.name}_paths.pickle"
                keys = stack.enter_context(open(path, "w", encoding="utf-8", newline="\n"))
                trie = _pygtrie().StringTrie()
            first = True
            for cluster, kept in self._chosen(clusters, counts, stats):
                if keys is None or trie is None:
                    continue
                for key in kept:
                    if "\n" in key or "\r" in key:
                        raise WorldError(
                            f"{clusters.path(cluster)}: the key {key!r} holds a line break, so a list of one "
                            "key a line cannot hold it."
                        )
                    keys.write(key if first else f"\n{key}")
                    trie[key.removesuffix(self.trie_suffix)] = 1
                    first = False
        if self.save_output:
            save_npy(beside / "distances_stats.npy", stats)
            with open(beside / f"{out.name}_trie.txt", "wb") as handle:
                pickle.dump(trie, handle, protocol=4)
            if merged := int(counts.sum()) - len(trie):  # type: ignore[arg-type]
                print(f"{merged:,} kept rows repeat another's key, so the trie holds {len(trie):,}")  # type: ignore[arg-type]

    def _chosen(
        self, clusters: SortedClusters, counts: Int64[np.ndarray, " k"], stats: Float64[np.ndarray, "2 k"]
    ) -> Iterator[tuple[int, list[str]]]:
        """For each cluster the keys that stay, in the script's order; mean distances into `stats`.

        Raises:
            WorldError: A file is not sorted farthest first.
        """
        # The script's own generator, drawn from cluster after cluster.
        generator = random.Random(self.seed)
        with progress("prune", clusters.num_clusters, "clusters") as bar:
            for cluster, count in enumerate(counts.tolist()):
                size = int(clusters.sizes[cluster])
                distance = clusters.distances(cluster)
                check_farthest_first(distance, clusters.path(cluster))
                if self.which_to_keep == "random":
                    chosen = np.array(generator.sample(range(size), count), np.int64)
                elif self.which_to_keep == "hard":
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
