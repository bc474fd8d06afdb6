"""The three scripts of the original DBP repository, with its README's options and its files.

    dbp compat compute_avg_dist_to_cluster_centroid --sorted-clusters-path FOLDER
        --avg-distance-to-cent-save-path FILE.npy [--num-clusters K]
    dbp compat compute_centroid_distances --mean-centroid-distances-save-path FILE.npy
        [--centroids-file FILE.npy] [--sorted-clusters-path FOLDER] [--num-clusters K] [--num-NNs 20] [--dim D]
    dbp compat prune --sorted-clusters-path FOLDER --prune-ratio FRACTION --save-dir FOLDER
        --mean-centroid-distances-save-path FILE.npy --avg-distance-to-cent-save-path FILE.npy
        [--num-centroids K] [--total-dataset-size N] [--temperature 0.5] [--cls-bal-ratio 0.5]
        [--density dintra*dinter] [--which-to-keep hard] [--pruning-method qp] [--save-output true]
        [--seed 42] [--reference] [--trie-suffix .jpg]

Here alone --prune-ratio is the fraction KEPT; elsewhere in dbp a prune ratio is the fraction removed.
Options are written with dashes or underscores, `--name value` or `--name=value`. FOLDER holds SemDeDup's
sorted clusters, `cluster_0.npy` and on, farthest from the centroid first.

compute_avg_dist_to_cluster_centroid writes d_intra, float32 (k,). compute_centroid_distances writes
d_inter, float32 (k,); without --centroids-file it takes SemDeDup's kmeans_centroids.npy in the folder of
the sorted clusters or above it. prune makes, in --save-dir, a folder named after the settings as the script
names it (with a `*` in it: quote it in a shell), and in it params.txt, number_of_points_to_keep_per_
cluster_density_*.npy (int64), distances_stats.npy (mean distance of all and of the kept, by cluster),
*_paths.pickle (plain text, a key a line) and *_trie.txt (a pickle of pygtrie.StringTrie with whole keys).

--temperature and --cls-bal-ratio have the script's defaults, which are not the paper's (0.1 and 0).
--density is dintra*dinter, dinter*dintra, uniform or clustersize (which crashed in the script; here the
share of the rows). --which-to-keep is hard, easy or random, by --seed. --save-output false writes the counts
only. --trie-suffix takes an ending off the trie's keys, where they have it: the script cut any last four
characters, so loaders written for it may look for 00012/000120001 and not for 00012/000120001.jpg.

The counts are exact: they sum to the fraction of the rows, every cluster keeps its floor and no more than
its rows. --reference gives the script's bounds, target and rounding instead, without its solver's noise;
counts may then miss the sum, and a cluster without rows may have -1. docs/curation.md lists what differs.
"""

from dbp.compat.options import Option, read_options
from dbp.errors import ConfigError, nearest

DENSITIES = ("dintra*dinter", "dinter*dintra", "uniform", "clustersize")
SCRIPTS: dict[str, dict[str, Option]] = {
    "compute_avg_dist_to_cluster_centroid": {
        "num_clusters": Option(int),
        "sorted_clusters_path": Option(str, needed=True),
        "avg_distance_to_cent_save_path": Option(str, needed=True),
    },
    "compute_centroid_distances": {
        "num_clusters": Option(int),
        "sorted_clusters_path": Option(str),
        "mean_centroid_distances_save_path": Option(str, needed=True),
        "centroids_file": Option(str),
        "num_NNs": Option(int, 20),
        "dim": Option(int),
    },
    "prune": {
        "num_centroids": Option(int),
        "temperature": Option(float, 0.5),
        "mean_centroid_distances_save_path": Option(str),
        "avg_distance_to_cent_save_path": Option(str),
        "sorted_clusters_path": Option(str, needed=True),
        "total_dataset_size": Option(int),
        "which_to_keep": Option(str, "hard", ("hard", "easy", "random")),
        "prune_ratio": Option(float, needed=True),
        "save_dir": Option(str, needed=True),
        "density": Option(str, "dintra*dinter", DENSITIES),
        "pruning_method": Option(str, "qp", ("qp",)),
        "cls_bal_ratio": Option(float, 0.5),
        "save_output": Option(bool, True),
        "seed": Option(int, 42),
        "reference": Option(bool, False),
        "trie_suffix": Option(str, ""),
    },
}


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp compat`: one of the three scripts."""
    script = arguments[0].removesuffix(".py") if arguments else ""
    if script not in SCRIPTS:
        said = f"dbp compat has no script {script!r}." if script else "dbp compat needs a script."
        raise ConfigError(f"{said} {nearest(script, SCRIPTS)}")
    values, given = read_options(script, arguments[1:], SCRIPTS[script])
    if script == "prune":
        from dbp.compat.prune import prune

        prune(given, **values)
    else:
        from dbp.compat import distances

        getattr(distances, script)(**values)
