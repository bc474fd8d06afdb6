"""The original repository's three scripts: their files, their counts, and where they were wrong."""

import io
import pickle
import random
import re
import sys
import tarfile
from pathlib import Path

import faiss
import numpy as np
import pygtrie
import pytest
import torch
import webdataset
from qpsolvers import solve_qp
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from dbp import compat
from dbp.compat.options import Option, read_options
from dbp.compat.quotas import exact_quotas, reference_quotas, reference_shares
from dbp.errors import BudgetError, ConfigError, WorldError
from dbp.formats.contains import Keep

K, N = 24, 1500


class World:
    """A small clustered pool, its sorted cluster files, and the scripts run on them."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "sorted_clusters"
        self.intra, self.inter = home / "distances/intra.npy", home / "distances/inter.npy"

    def write(self, members: list[list[tuple]]) -> None:
        """Write clusters as SemDeDup does: numpy's own reading of lists of tuples."""
        self.folder.mkdir(parents=True)
        for j, rows in enumerate(members):
            np.save(self.folder / f"cluster_{j}.npy", rows)

    def measures(self, inter: list[float], intra: list[float]) -> None:
        self.intra.parent.mkdir(parents=True)
        np.save(self.inter, np.array(inter, np.float32))
        np.save(self.intra, np.array(intra, np.float32))

    def prune(self, ratio: float, *more: str) -> "Pruned":
        before = set(self.home.glob("kept/*"))
        words = (
            f"prune --sorted-clusters-path {self.folder} --prune-ratio {ratio} --save-dir "
            f"{self.home}/kept --mean_centroid_distances_save_path {self.inter} "
            f"--avg_distance_to_cent_save_path {self.intra}"
        )
        compat.main("compat", [*words.split(), *more])
        return Pruned(*(set(self.home.glob("kept/*")) - before))


class Pruned:
    """What prune wrote, read as other programs read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = {re.sub(r"(qp_|density_).*_(?=paths|trie)", "", f.name): f for f in folder.iterdir()}
        self.files = sorted(f.name for f in folder.iterdir())
        counts = next(f for f in folder.iterdir() if f.name.startswith("number_of_points_to_keep"))
        self.counts = np.load(counts)
        self.params = (folder / "params.txt").read_text()
        if "trie.txt" in files:
            self.keys = files["paths.pickle"].read_text().split("\n")
            self.trie = Restricted(io.BytesIO(files["trie.txt"].read_bytes())).load()
            self.stats = np.load(folder / "distances_stats.npy")


class Restricted(pickle.Unpickler):
    """Reads a trie and nothing that could run."""

    def find_class(self, module: str, name: str) -> type:
        assert module == "pygtrie", f"{module}.{name}"
        return getattr(pygtrie, name)


def is_kept(trie: pygtrie.StringTrie, key: str) -> bool:
    """The look-up of a loader: a folder alone is no sample."""
    try:
        return bool(trie[key])
    except KeyError:
        return False


def made(home: Path, as_bytes: bool = False) -> tuple[World, np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors in clumps of unequal size, clustered; the world, centroids, assignment, distance."""
    rng = np.random.default_rng(0)
    which = rng.choice(K, N, p=rng.dirichlet(np.ones(K)))
    vectors = 2 * rng.normal(size=(K, 16))[which]
    vectors += rng.normal(size=(N, 16)) * rng.lognormal(0, 0.5, K)[which, None]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centroids = KMeans(K, n_init=1, random_state=0).fit(vectors).cluster_centers_
    centroids = (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).astype(np.float32)
    cosine = vectors.astype(np.float32) @ centroids.T
    assignment, distance = cosine.argmax(axis=1), 1 - cosine.max(axis=1)
    members = []
    for j in range(K):
        rows = sorted(np.flatnonzero(assignment == j).tolist(), key=lambda row: -distance[row])
        keys = [f"{row // 100:05d}/{row:09d}.jpg" for row in rows]
        members.append(
            [
                (key.encode() if as_bytes else key, row, float(distance[row]), j)
                for key, row in zip(keys, rows, strict=True)
            ]
        )
    world = World(home)
    world.write(members)
    np.save(home / "kmeans_centroids.npy", centroids)
    return world, centroids, assignment, distance


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Four clusters of 2, 1, 5 and 12 members with distances that fall, and measures for them."""
    found = World(tmp_path)
    found.write(
        [
            [(f"{j}/{i:04d}.jpg", 10 * j + i, 0.9 - i / 100, j) for i in range(size)]
            for j, size in enumerate((2, 1, 5, 12))
        ]
    )
    found.measures([0.5, 0.4, 0.6, 0.3], [0.3, 0.5, 0.2, 0.4])
    return found


def solved(targets: np.ndarray, target: int, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The script's programme by a general dense solver; clusters without a choice are set apart."""
    free = lower < upper
    exact = lower.astype(float)
    k, scale = int(free.sum()), max(1.0, target / len(targets))
    found = solve_qp(
        np.eye(k),
        -targets[free].astype(float) / scale,
        A=np.ones((1, k)),
        b=np.array([target - exact[~free].sum()]) / scale,
        lb=lower[free] / scale,
        ub=upper[free] / scale,
        solver="quadprog",
    )
    assert found is not None
    exact[free] = found * scale
    return exact


# the four steps of the original README


def test_the_readme_s_steps_end_in_a_trie_that_a_loader_filters_a_tar_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, centroids, assignment, distance = made(tmp_path)
    clusters = ["--num_clusters", str(K), "--sorted_clusters_path", str(world.folder)]
    step = "compute_avg_dist_to_cluster_centroid"
    compat.main("compat", [step, *clusters, "--avg_distance_to_cent_save_path", str(world.intra)])
    step = "compute_centroid_distances"
    compat.main("compat", [step, *clusters, "--mean_centroid_distances_save_path", str(world.inter)])
    kept = world.prune(0.3, "--num-centroids", str(K), "--total-dataset-size", str(N))

    intra, inter = np.load(world.intra), np.load(world.inter)
    assert intra.dtype == inter.dtype == np.float32
    expected = [distance[assignment == j].mean() for j in range(K)]
    np.testing.assert_allclose(intra, expected, rtol=1e-6)
    near = NearestNeighbors(n_neighbors=20, metric="cosine", algorithm="brute").fit(centroids)
    np.testing.assert_allclose(inter, near.kneighbors()[0].mean(axis=1), atol=1e-6)

    assert kept.counts.dtype == np.int64
    assert kept.counts.sum() == 450
    expected_keys = []
    for j in range(K):
        rows = sorted(np.flatnonzero(assignment == j).tolist(), key=lambda row: -distance[row])
        expected_keys += [f"{row // 100:05d}/{row:09d}.jpg" for row in rows[: kept.counts[j]]]
    assert kept.keys == expected_keys
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("kept 450 of 1,500 rows, --prune-ratio=0.3 being the fraction KEPT")

    tar = tmp_path / "00003.tar"
    with tarfile.open(tar, "w") as out:
        for row in range(300, 400):
            member = tarfile.TarInfo(f"00003/{row:09d}.txt")
            member.size = 1
            out.addfile(member, io.BytesIO(b"x"))
    loaded = webdataset.WebDataset(str(tar), shardshuffle=False).select(
        lambda sample: is_kept(kept.trie, sample["__key__"] + ".jpg")
    )
    read = [sample["__key__"] + ".jpg" for sample in loaded]
    assert read == sorted(key for key in kept.keys if key.startswith("00003/"))
    assert 0 < len(read) < 100
    assert not is_kept(kept.trie, "00003")
    assert not is_kept(kept.trie, "00003/000000300")


def test_the_files_have_the_names_that_the_script_s_users_know(tmp_path: Path) -> None:
    world, *_ = made(tmp_path)
    world.measures([0.5] * K, [0.5] * K)
    kept = world.prune(0.30, "--temperature", "0.1", "--cls-bal-ratio", "0")
    name = "qp_dintra*dinter0.3_temperature_0.1_num_centroids_24_keep_hard_True"
    assert kept.folder.name == name
    assert kept.files == sorted(
        [
            "params.txt",
            "number_of_points_to_keep_per_cluster_density_dintra*dinter.npy",
            "distances_stats.npy",
            f"{name}_paths.pickle",
            f"{name}_trie.txt",
        ]
    )
    lines = dict(line.split(": ", 1) for line in kept.params.splitlines())
    assert lines["prune_ratio"] == "0.3"
    assert lines["which_to_keep"] == "hard"
    assert lines["name"] == name
    balanced = world.prune(0.3, "--which-to-keep=easy", "--density=uniform")
    assert balanced.folder.name == ("qp_uniform0.3_temperature_0.5_num_centroids_24_0.5cls_bal_keep_hard_False")
    chance = world.prune(0.3, "--which-to-keep=random", "--save-output", "False")
    assert chance.folder.name.endswith("_0.5cls_bal_keep_random_True")
    assert len(chance.files) == 2, "the counts and params.txt"


def test_keys_of_bytes_choose_as_keys_of_text_do(tmp_path: Path) -> None:
    found = []
    for as_bytes in (False, True):
        world, *_ = made(tmp_path / str(as_bytes), as_bytes)
        kind = np.load(world.folder / "cluster_0.npy").dtype.kind
        assert kind == ("S" if as_bytes else "U")
        world.measures(np.linspace(0.2, 0.6, K).tolist(), np.linspace(0.6, 0.2, K).tolist())
        found.append(world.prune(0.25).keys)
    assert found[0] == found[1]
    assert len(found[0]) == 375


# d_inter and d_intra


def test_where_the_published_d_inter_is_right_ours_is_the_same(tmp_path: Path) -> None:
    _, centroids, *_ = made(tmp_path)
    index = faiss.IndexFlatIP(16)
    index.add(centroids)
    products, _ = index.search(centroids, 21)
    out = tmp_path / "inter"  # numpy adds the suffix, as it did for the script
    file = tmp_path / "kmeans_centroids.npy"
    words = f"--centroids_file {file} --mean_centroid_distances_save_path {out} --num_NNs 20 --dim 16"
    compat.main("compat", ["compute_centroid_distances.py", *words.split()])
    found = np.load(tmp_path / "inter.npy")
    np.testing.assert_allclose(found, np.mean(1 - products[:, 1:], axis=1), atol=1e-6)


def test_few_centroids_and_long_ones_get_right_numbers_and_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    centroids = rng.normal(size=(7, 5)) * rng.lognormal(0, 1, (7, 1))
    np.save(tmp_path / "centroids.npy", centroids)
    words = f"--centroids-file={tmp_path}/centroids.npy --mean-centroid-distances-save-path={tmp_path}/a.npy"
    compat.main("compat", ["compute_centroid_distances", *words.split()])
    near = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(centroids)
    expected = near.kneighbors()[0].mean(axis=1)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected, atol=1e-6)
    said = capsys.readouterr().out
    assert "7 centroids have 6 others each" in said
    assert "the centroids' lengths run from" in said
    # That the script's numbers are wrong here is why the lines are printed.
    index = faiss.IndexFlatIP(5)
    index.add(centroids.astype(np.float32))
    with np.errstate(over="ignore"):
        products, _ = index.search(centroids.astype(np.float32), 21)
        assert np.isinf(np.mean(1 - products[:, 1:], axis=1)).all()


def test_an_empty_cluster_has_no_d_intra_and_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    world.write([[("a", 0, 0.5, 0), ("b", 1, 0.25, 0)], [], [("c", 2, 0.125, 2)]])
    assert np.load(world.folder / "cluster_1.npy").shape == (0,)
    words = f"--sorted-clusters-path {world.folder} --avg-distance-to-cent-save-path {tmp_path}/a.npy"
    compat.main("compat", ["compute_avg_dist_to_cluster_centroid", *words.split()])
    assert np.load(tmp_path / "a.npy").tolist()[::2] == [0.375, 0.125]
    assert np.isnan(np.load(tmp_path / "a.npy")[1])
    assert "1 clusters are empty" in capsys.readouterr().out


# counts


def case(seed: int) -> tuple[np.ndarray, np.ndarray, float, float, float]:
    """Sizes with empty clusters and single members, complexities, temperature, ratio, balance.

    An empty cluster has the complexity NaN or, so that its count falls below zero, none.
    """
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 40))
    sizes = np.floor(rng.lognormal(rng.uniform(1, 5), 1.5, k)).astype(np.int64)
    sizes[rng.random(k) < 0.2] = 0
    sizes[rng.random(k) < 0.1] = 1
    sizes[0] = max(sizes[0], 3)
    complexity = (rng.random(k) ** 2).astype(np.float32)
    complexity[sizes == 0] = rng.choice([0, np.nan])
    balance = float(rng.choice([0, 0.01, 0.5, 1]))
    ratio = round(float(rng.uniform(0.2, 0.95)), 2)
    return sizes, complexity, float(rng.choice([0.02, 0.1, 0.5])), ratio, balance


def bounds_of_the_script(sizes: np.ndarray, ratio: float, balance: float) -> tuple[int, np.ndarray, np.ndarray]:
    """Target and bounds, written down again from the description alone."""
    target = int(ratio * int(sizes.sum()))
    least = int((target / len(sizes)) * balance) if balance > 0 else 1
    return target, np.array([min(least, n - 1) for n in sizes.tolist()]), sizes


def test_the_reference_counts_are_the_script_s_programme_solved_exactly() -> None:
    checked, compared, off_sum, below = 0, 0, 0, 0
    for seed in range(400):
        sizes, complexity, temperature, ratio, balance = case(seed)
        target, lower, upper = bounds_of_the_script(sizes, ratio, balance)
        if not lower.sum() < target < upper.sum():
            continue
        filled = np.where(np.isnan(complexity), np.nanmean(complexity), complexity)
        shares = torch.nn.functional.softmax(torch.Tensor(filled) / temperature, dim=0).numpy()
        exact = solved(shares * target, target, lower, upper)
        found = reference_quotas(sizes, complexity, temperature, ratio, int(sizes.sum()), balance)
        assert found.target == target
        assert (found.counts >= lower).all()
        assert (found.counts <= upper).all()
        # Rounded half to even, unless float32 and the solver fall on two sides of a half.
        blur = 1e-5 * target
        assert (np.abs(found.counts - exact) <= 0.5 + blur).all()
        clear = np.abs(exact % 1 - 0.5) > blur
        np.testing.assert_array_equal(found.counts[clear], np.rint(exact)[clear])
        compared += int(clear.sum())
        checked += 1
        off_sum += int(found.counts.sum() != target)
        below += int((found.counts < 0).any())
    assert checked > 200
    assert off_sum > 20, "the script does not repair the sum"
    assert compared > 3000
    assert below > 5, "an empty cluster's floor is -1 there"


def test_where_the_script_is_right_the_exact_counts_are_within_a_rounding_of_it() -> None:
    compared = 0
    for seed in range(400):
        sizes, complexity, temperature, ratio, _ = case(seed)
        kept = (sizes > 1) & np.isfinite(complexity)  # no empty cluster, no single member
        sizes, complexity = sizes[kept], complexity[kept]
        target, lower, upper = bounds_of_the_script(sizes, ratio, 0.0) if len(sizes) else (0, 0, 0)
        if len(sizes) < 2 or not np.sum(lower) < target < np.sum(upper):
            continue
        total = int(sizes.sum())
        theirs = reference_quotas(sizes, complexity, temperature, ratio, total, 0.0)
        wide = complexity.astype(np.float64) / temperature
        shares = np.exp(wide - wide.max())
        ours = exact_quotas(sizes, shares / shares.sum(), ratio, total, 0.0)
        assert ours.counts.sum() == ours.target
        if ours.target != theirs.target:
            continue  # 0.29 * 100
        assert np.abs(ours.counts - theirs.counts).max() <= 1 + 0.01 * target / len(sizes)
        compared += 1
    assert compared > 200


def test_the_bounds_of_the_script_by_hand() -> None:
    # T = 16 of 22, m = int(16 / 4 * 1) = 4, so the floors are -1, 0, 3 and 4. All shares go to the last:
    # targets 0, 0, 0, 16; the third is lifted by 3, so the first falls to -1 and the last by 2.
    sizes, complexity = np.array([0, 1, 4, 17]), np.array([0.0, 0.0, 0.0, 9.0])
    found = reference_quotas(sizes, complexity, 0.1, 0.75, 22, 1.0)
    assert (found.target, found.floor) == (16, 4)
    assert found.counts.tolist() == [-1, 0, 3, 14]
    # Balance 0 means a floor of 1, a small one means none.
    sizes = np.array([5, 5, 10])
    assert reference_quotas(sizes, complexity[1:], 0.1, 0.5, 20, 0.0).counts.tolist() == [1, 1, 8]
    assert reference_quotas(sizes, complexity[1:], 0.1, 0.5, 20, 0.1).counts.tolist() == [0, 0, 10]


def test_halves_go_to_the_even_number_and_the_sum_is_not_repaired() -> None:
    found = reference_quotas(np.array([9, 9]), np.ones(2), 0.1, 0.5, 18, 0.0)
    assert found.target == 9
    assert found.counts.tolist() == [4, 4]
    assert exact_quotas(np.array([9, 9]), np.ones(2) / 2, 0.5, 18, 0.0).counts.tolist() == [5, 4]


def test_the_script_truncates_the_binary_product_and_we_the_decimal_one() -> None:
    sizes, complexity = np.full(4, 25), np.ones(4)
    assert reference_quotas(sizes, complexity, 0.1, 0.29, 100, 0.0).target == 28
    assert exact_quotas(sizes, complexity / 4, 0.29, 100, 0.0).target == 29


def test_the_reference_shares_are_torch_s_in_float32() -> None:
    values = np.random.default_rng(3).random(300).astype(np.float32)
    values[[5, 90]] = np.nan
    found = reference_shares(values, 0.05)
    assert found.dtype == np.float32
    filled = np.where(np.isnan(values), np.nanmean(values), values)
    expected = torch.nn.functional.softmax(torch.Tensor(filled) / 0.05, dim=0).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_nine_negative_complexities_pass_in_the_reference_and_ten_do_not() -> None:
    values = np.ones(30)
    values[:9] = -0.01
    assert reference_shares(values, 0.1).sum() == pytest.approx(1, rel=1e-6)
    values[9] = -0.01
    with pytest.raises(WorldError, match="10 clusters have a complexity below zero"):
        reference_shares(values, 0.1)


@pytest.mark.parametrize("mode", [[], ["--reference"]])
def test_a_target_out_of_reach_says_both_numbers(world: World, mode: list[str]) -> None:
    with pytest.raises(BudgetError, match="keeps no row"):
        world.prune(0.01, *mode)
    with pytest.raises(BudgetError, match=r"cannot keep only 2 rows.*floors.*sum to"):
        world.prune(0.1, *mode, "--cls-bal-ratio=0")
    with pytest.raises(BudgetError, match=r"cannot keep 90 rows.*the clusters hold 20"):
        world.prune(0.9, "--reference", "--total-dataset-size=100")
    assert not list(world.home.glob("kept/*"))


# which rows stay


def test_small_clusters_keep_what_their_counts_say(world: World) -> None:
    kept = world.prune(0.5, "--cls-bal-ratio=0", "--density=uniform")
    assert kept.counts.tolist() == [2, 1, 4, 3]  # 3.5 each: the lower number gets the odd row
    assert kept.keys[:3] == ["0/0000.jpg", "0/0001.jpg", "1/0000.jpg"]
    assert kept.keys[3:7] == [f"2/{i:04d}.jpg" for i in range(4)]
    assert kept.keys[7:] == [f"3/{i:04d}.jpg" for i in range(3)]
    np.testing.assert_allclose(kept.stats[0], [0.895, 0.9, 0.88, 0.845])
    np.testing.assert_allclose(kept.stats[1], [0.895, 0.9, 0.885, 0.89])


def test_easy_keeps_the_last_rows_and_none_where_the_count_is_none(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write([[(f"{j}{i}", i, 0.5 - i / 10, j) for i in range(n)] for j, n in enumerate((4, 1, 0))])
    world.measures([0.9, 0.1, 0.1], [0.9, 0.1, np.nan])
    words = ("--which-to-keep=easy", "--reference", "--temperature=0.01", "--cls-bal-ratio=0")
    kept = world.prune(0.6, *words)
    # T = 3, all for the first cluster; for the second a slice from -0 would keep "10".
    assert kept.counts.tolist() == [3, 0, 0]
    assert kept.keys == ["01", "02", "03"]
    assert len(kept.trie) == 3
    assert np.isnan(kept.stats[:, 2]).all()
    assert kept.stats[0, 1] == 0.5
    assert np.isnan(kept.stats[1, 1])
    # Our floor is 1 for every cluster that has a row.
    exact = world.prune(0.4, words[0], *words[2:])
    assert exact.counts.tolist() == [1, 1, 0]
    assert exact.keys == ["03", "10"]


@pytest.mark.parametrize("which", ["hard", "easy", "random"])
def test_a_count_of_minus_one_keeps_nothing(tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    world.write([[(f"{j}/{i}", i, 0.5 - i / 100, j) for i in range(n)] for j, n in enumerate((0, 1, 4, 17))])
    world.measures([1, 1, 1, 1], [np.nan, 0, 0, 9])
    words = f"--reference --temperature=0.1 --cls-bal-ratio=1 --which-to-keep={which}"
    kept = world.prune(0.75, *words.split())
    assert kept.counts.tolist() == [-1, 0, 3, 14]
    assert len(kept.keys) == len(set(kept.keys)) == len(kept.trie) == 17
    assert sorted(key[0] for key in kept.keys) == ["2"] * 3 + ["3"] * 14
    assert "1 clusters without rows have a count of -1; nothing is kept" in capsys.readouterr().out


def test_random_draws_as_python_s_generator_did_cluster_after_cluster(world: World) -> None:
    kept = world.prune(0.5, "--which-to-keep", "random", "--cls-bal-ratio=0")
    random.seed(42)
    expected = [
        f"{j}/{i:04d}.jpg"
        for j, size in enumerate((2, 1, 5, 12))
        for i in random.sample(range(size), int(kept.counts[j]))
    ]
    assert kept.keys == expected
    other = world.prune(0.5, "--which-to-keep", "random", "--cls-bal-ratio=0.0001", "--seed=1")
    assert other.counts.tolist() == kept.counts.tolist()
    assert other.keys != kept.keys


def test_a_file_that_is_sorted_nearest_first_is_an_error_that_says_so(world: World) -> None:
    file = world.folder / "cluster_3.npy"
    np.save(file, np.load(file)[::-1])
    with pytest.raises(WorldError, match=r"cluster_3\.npy is sorted nearest first \(0.79 to 0.9\)"):
        world.prune(0.5)
    np.save(file, np.load(file)[[0, 5, 3, 1, 2, 4, 6, 7, 8, 9, 10, 11]])
    with pytest.raises(WorldError, match=r"cluster_3\.npy is not sorted by distance.*row 1 has 0.84"):
        world.prune(0.5)
    assert not list(world.home.glob("kept/*")), "nothing half-written"


def test_equal_distances_are_sorted_enough(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write([[("a", 0, 0.5, 0), ("b", 1, 0.5, 0), ("c", 2, 0.5, 0)]])
    assert world.prune(0.67, "--density=uniform").keys == ["a", "b"]


# keys and the trie


def test_keys_are_never_cut(tmp_path: Path) -> None:
    uid = "139e4a9b22a614771f06c700a8ebe150"
    long = "a folder with a long name/and another one/picture number 000000001.jpeg"
    world = World(tmp_path)
    world.write([[(uid, 0, 0.5, 0), (long, 1, 0.25, 0), ("x", 2, 0.125, 0), ("é/☃.jpg", 3, 0.1, 0)]])
    kept = world.prune(1.0, "--density=uniform")
    assert kept.keys == [uid, long, "x", "é/☃.jpg"]
    assert all(is_kept(kept.trie, key) for key in kept.keys)
    assert not is_kept(kept.trie, uid[:28])
    assert sorted(kept.trie.keys()) == sorted(kept.keys)


def test_the_trie_can_do_without_an_ending_where_keys_have_it(world: World) -> None:
    kept = world.prune(0.5, "--cls-bal-ratio=0", "--trie-suffix", ".jpg")
    assert kept.keys[0] == "0/0000.jpg"
    assert is_kept(kept.trie, "0/0000")
    assert not is_kept(kept.trie, "0/0000.jpg")


def test_the_trie_is_a_pickle_of_protocol_4_with_the_value_1_and_a_slash(world: World) -> None:
    kept = world.prune(0.5)
    raw = next(f for f in kept.folder.iterdir() if f.name.endswith("_trie.txt")).read_bytes()
    assert raw[:2] == b"\x80\x04"
    assert type(kept.trie) is pygtrie.StringTrie
    assert set(kept.trie.values()) == {1}
    assert kept.trie.has_subtrie("3")


def test_the_trie_and_the_list_answer_in_our_own_reader(world: World) -> None:
    kept = world.prune(0.5, "--cls-bal-ratio=0")
    trie, keys = (next(kept.folder.glob(f"*_{end}")) for end in ("trie.txt", "paths.pickle"))
    with pytest.raises(ValueError, match="is a pickle, and reading one can run any code"):
        Keep.open(trie)
    for opened in (Keep.open(trie, allow_pickle_of_trie=True), Keep.open(keys)):
        assert [opened.contains(f"3/{i:04d}.jpg") for i in range(5)] == [1, 1, 1, 0, 0]
        assert not opened.contains("3")


def test_repeated_keys_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    world.write([[("a", 0, 0.5, 0)], [("a", 1, 0.5, 1), ("b", 2, 0.5, 1)]])
    assert len(world.prune(1.0, "--density=uniform").trie) == 2
    assert "1 kept rows repeat another's key, so the trie holds 2" in capsys.readouterr().out


def test_a_key_with_a_line_break_leaves_nothing_behind(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write([[("a", 0, 0.5, 0), ("b\nc", 1, 0.25, 0)]])
    with pytest.raises(WorldError, match=r"'b\\nc' holds a line break"):
        world.prune(1.0, "--density=uniform")
    assert not list(tmp_path.glob("kept/*"))
    assert not list(tmp_path.glob("kept/.*"))


def test_without_pygtrie_the_counts_can_be_had(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygtrie", None)
    with pytest.raises(ConfigError, match=r"pip install pygtrie, or .* --save-output=false"):
        world.prune(0.5)
    assert not list(world.home.glob("kept/*"))
    assert world.prune(0.5, "--save-output=false").counts.sum() == 10


# what a person can get wrong


def test_the_total_is_compared_with_the_rows(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"=50,749,149, and the cluster files hold 20 rows"):
        world.prune(0.8, "--total-dataset-size", "50749149")
    kept = world.prune(0.5, "--total-dataset-size", "24", "--reference", "--cls-bal-ratio=0")
    assert abs(int(kept.counts.sum()) - 12) <= 2
    assert "the target refers to the number given" in capsys.readouterr().out


def test_defaults_that_are_not_the_paper_s_are_said(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.prune(0.5)
    said = capsys.readouterr().out
    assert "--temperature=0.5 is the script's default; the paper used 0.1" in said
    assert "--cls-bal-ratio=0.5 is the script's default; the paper used 0.0" in said
    world.prune(0.4, "--temperature=0.1", "--cls-bal-ratio=0")
    assert "script's default" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tempratur", "0.1"], "has no option --tempratur. Did you mean 'temperature'?"),
        (["--temperature"], "--temperature needs a value"),
        (["--temperature=0.1", "--temperature=0.2"], "--temperature is given twice"),
        (["--temperature=warm"], "--temperature=warm: it must be a number"),
        (["--temperature=0"], "--temperature=0.0: it must be above 0"),
        (["--temperature=nan"], "--temperature=nan: it must be finite"),
        (["--num-centroids=4.5"], "--num-centroids=4.5: it must be a whole number"),
        (["--num-centroids=5"], "holds 4 cluster files, and 5 clusters were said"),
        (["--cls_bal_ratio=2"], "--cls-bal-ratio=2.0: it must be from 0 to 1"),
        (["--which-to-keep=hrad"], "--which-to-keep=hrad: Did you mean 'hard'?"),
        (["--pruning-method=random"], "--pruning-method=random: It can be: qp."),
        (["--density=None"], "--density=None: "),
        (["--save-output=maybe"], "--save-output=maybe: it must be true or false"),
        (["stray"], "'stray' belongs to none"),
        (["--distances-dir=x"], "has no option --distances-dir"),
    ],
)
def test_a_wrong_option_is_told_its_right_form(world: World, more: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        world.prune(0.5, *more)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs --sorted-clusters-path, --prune-ratio, --save-dir"):
        compat.main("compat", ["prune"])
    with pytest.raises(ConfigError, match=r"no script 'prun'\. Did you mean 'prune'\?"):
        compat.main("compat", ["prun"])
    with pytest.raises(ConfigError, match="dbp compat needs a script"):
        compat.main("compat", [])
    words = ["--mean-centroid-distances-save-path", str(tmp_path / "a.npy")]
    with pytest.raises(ConfigError, match="needs --centroids-file, or --sorted-clusters-path"):
        compat.main("compat", ["compute_centroid_distances", *words])


def test_measures_of_other_clusters_or_of_the_broken_script_are_refused(world: World) -> None:
    np.save(world.inter, np.array([0.5, np.inf, 0.6, 0.3], np.float32))
    with pytest.raises(WorldError, match=r"inter.npy says inf for cluster 1"):
        world.prune(0.5)
    np.save(world.inter, np.ones(5, np.float32))
    with pytest.raises(WorldError, match=r"has shape \(5,\), and there are 4 clusters"):
        world.prune(0.5)
    np.save(world.inter, np.array([0.5, np.nan, 0.6, 0.3], np.float32))
    with pytest.raises(WorldError, match="d_inter of cluster 1 is nan, and the cluster has 1 rows"):
        world.prune(0.5)
    world.prune(0.5, "--reference")
    world.inter.write_bytes(pickle.dumps([1.0]))
    with pytest.raises(WorldError, match=r"cannot be read.*Write it with dbp compat compute_centroid"):
        world.prune(0.5)
    world.inter.unlink()
    with pytest.raises(ConfigError, match=r"--mean-centroid-distances-save-path=.* is no file"):
        world.prune(0.5)


def test_dashes_and_underscores_and_equals_signs_are_the_same() -> None:
    known = {"num_NNs": Option(int, 20), "save_dir": Option(str, needed=True)}
    for words in (["--num_NNs", "3", "--save-dir=a=b"], ["--num-NNs=3", "--save_dir", "a=b"]):
        values, given = read_options("x", words, known)
        assert values == {"num_NNs": 3, "save_dir": "a=b"}
        assert given == {"num_NNs", "save_dir"}


def test_the_help_names_every_script_and_option_and_what_the_ratio_means() -> None:
    about = compat.__doc__ or ""
    for script, options in compat.SCRIPTS.items():
        assert f"dbp compat {script} " in about
        for name in options:
            assert f"--{name.replace('_', '-')}" in about
    assert "--prune-ratio is the fraction KEPT" in about
