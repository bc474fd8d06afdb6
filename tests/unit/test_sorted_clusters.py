"""SemDeDup's sorted clusters: the reader, the pool made of them, and a clustering joined by uid."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dbp.__main__ import main
from dbp.clustering import imported
from dbp.clustering.imported import ABSENT, Imported, Join, Run, earlier_equals, runs
from dbp.data.clusters import Clusters
from dbp.data.columns import Columns
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool, hash_64
from dbp.engine.store import Store
from dbp.engine.work import Work
from dbp.errors import ConfigError, PoolError, WorldError
from dbp.formats.sorted_clusters import SortedClusters, find_centroids, load_centroids
from dbp.pools import sorted_cluster_pool
from dbp.pools.sorted_cluster_pool import SortedClusterPool

Row = tuple[Any, int, float, int]


def members(sizes: tuple[int, ...], as_bytes: bool = False) -> list[list[Row]]:
    """Clusters of these sizes with falling distances; keys of unequal length."""
    rows = [
        [(f"{j}/{'x' * (i % 5)}{i:03d}.jpg", i, 1.0 - i / 1000 - j / 10, j) for i in range(size)]
        for j, size in enumerate(sizes)
    ]
    return [[(k.encode(), *rest) for k, *rest in own] for own in rows] if as_bytes else rows  # type: ignore[misc]


def write(folder: Path, clusters: list[list[Row]]) -> Path:
    """As SemDeDup writes them: numpy's own reading of a list of tuples."""
    folder.mkdir(parents=True, exist_ok=True)
    for j, rows in enumerate(clusters):
        np.save(folder / f"cluster_{j}.npy", rows)
    return folder


def centroids_beside(folder: Path, k: int, width: int = 8) -> np.ndarray:
    found = np.random.default_rng(k).normal(size=(k, width)).astype(np.float32)
    np.save(folder.parent / "kmeans_centroids.npy", found)
    return found


def pool_of(uids: list[str], hashes: list[int] | None = None) -> Pool:
    """A pool of which only the uids are known."""
    hashes = [hash_64(uid.encode()) for uid in uids] if hashes is None else hashes
    table = pa.table({"uid": uids, "uid_hash": pa.array(hashes, pa.uint64())})
    return Pool(Columns(table), [], "digest", "txt", 1)


def desk(home: Path) -> Work:
    home.mkdir(parents=True)
    return Work(home, home, "key")


# the reader


@pytest.mark.parametrize("as_bytes", [False, True])
def test_what_semdedup_wrote_is_read_back_whole(tmp_path: Path, as_bytes: bool) -> None:
    written = members((3, 0, 1, 2, 150), as_bytes)
    folder = write(tmp_path, written)
    (folder / ".hidden").touch()
    (folder / "notes.txt").touch()
    clusters = SortedClusters.open(folder)
    assert clusters.sizes.tolist() == [3, 0, 1, 2, 150]
    assert clusters.num_rows == 156
    text = members((3, 0, 1, 2, 150))
    for j, rows in enumerate(text):
        blocks = list(clusters.blocks(j, 64))
        assert [len(b.keys) for b in blocks] == ([64, 64, 22] if j == 4 else [len(rows)] * (j != 1))
        assert [key for b in blocks for key in b.keys] == [row[0] for row in rows]
        distance = [d for b in blocks for d in b.distance_to_centroid.tolist()]
        assert distance == [row[2] for row in rows] == clusters.distances(j).tolist()
    assert clusters.keys(4, np.array([149, 0, 7])) == [text[4][i][0] for i in (149, 0, 7)]
    assert clusters.keys(1, np.array([], int)) == []


def test_distances_of_float32_survive_the_text(tmp_path: Path) -> None:
    exact = np.sort(np.random.default_rng(0).random(500).astype(np.float32))[::-1]
    write(tmp_path, [[(f"{i:040d}", i, float(d), 0) for i, d in enumerate(exact)]])
    clusters = SortedClusters.open(tmp_path)
    np.testing.assert_array_equal(clusters.distances(0).astype(np.float32), exact)
    assert clusters.keys(0, np.array([3])) == [f"{3:040d}"], "a long key widens the cells"


def test_sizes_come_from_headers_and_not_from_cells(tmp_path: Path) -> None:
    # Ten million rows, 5 GB, of which only the header is on disk.
    header = {"descr": "<U32", "fortran_order": False, "shape": (10_000_000, 4)}
    with open(tmp_path / "cluster_0.npy", "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        handle.truncate(handle.tell() + 10_000_000 * 512)
    assert SortedClusters.open(tmp_path).sizes.tolist() == [10_000_000]
    with open(tmp_path / "cluster_0.npy", "r+b") as handle:
        handle.truncate(1_000_000)
    with pytest.raises(WorldError, match=r"cut short: it has 1,000,000 bytes.*5,120,000,128"):
        SortedClusters.open(tmp_path)


def test_the_number_of_files_is_checked(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", members((2, 2, 2)))
    with pytest.raises(ConfigError, match="holds 3 cluster files, and 4 clusters were said"):
        SortedClusters.open(folder, 4)
    (folder / "cluster_1.npy").unlink()
    with pytest.raises(WorldError, match=r"holds cluster_2\.npy and no cluster_1\.npy: 1 cluster"):
        SortedClusters.open(folder)
    with pytest.raises(ConfigError, match=r"path='.*' holds no file cluster_0\.npy"):
        SortedClusters.open(tmp_path)
    for nothing in ("", str(tmp_path / "nowhere")):
        with pytest.raises(ConfigError, match=f"pool.path='{nothing}' is no folder"):
            SortedClusters.open(nothing, setting="pool.path")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([["a", "0", "0.5"]]), "holds <U3 of shape (1, 3)"),
        (np.zeros((2, 4)), "holds float64 of shape (2, 4)"),
        (np.array(["a", "b"]), "holds <U1 of shape (2,)"),
        (np.array([["a", "0", "far", "0"]]), "column 2 must hold distances"),
        (np.array([["a", "0", "nan", "0"]]), "the distance of row 0 is nan"),
        (np.array([["a", "0", "0.5", "1"]]), "row 0 says that it is of cluster 1"),
        (np.array([["", "0", "0.5", "0"]]), "a row has no key"),
        (np.array([["a", "0", "0.5", "0"]], object), "holds pickled objects, which are never read"),
        (np.array([[b"\xff", b"0", b"0.5", b"0"]]), "a key cannot be told in UTF-8"),
        (np.array([["\ud800", "0", "0.5", "0"]]), "a key cannot be told in UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: np.ndarray, message: str) -> None:
    np.save(tmp_path / "cluster_0.npy", content, allow_pickle=True)
    with pytest.raises(WorldError, match=re.escape(message)):
        list(SortedClusters.open(tmp_path).blocks(0))


def test_a_raw_map_and_a_pickle_are_no_cluster_files(tmp_path: Path) -> None:
    for content in (b"", b"\0" * 512, pickle.dumps([("a", 0, 0.5, 0)])):
        (tmp_path / "cluster_0.npy").write_bytes(content)
        with pytest.raises(WorldError, match=r"cluster_0\.npy is no \.npy file of numpy"):
            SortedClusters.open(tmp_path)


def test_centroids_are_found_beside_or_above_or_where_they_are_said_to_be(tmp_path: Path) -> None:
    folder = tmp_path / "sorted_clusters"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"x is not set, and no kmeans_centroids\.npy lies in"):
        find_centroids(folder, None, "x")
    with pytest.raises(ConfigError, match=r"x='nowhere.npy' is no file"):
        find_centroids(folder, "nowhere.npy", "x")
    above, beside, given = (tmp_path / "kmeans_centroids.npy", folder / "kmeans_centroids.npy", tmp_path / "c.npy")
    for file, said in ((above, None), (beside, None), (given, given)):
        np.save(file, np.eye(3))
        assert find_centroids(folder, said, "x") == file
    np.save(given, np.eye(3, dtype=np.int64))
    with pytest.raises(WorldError, match=r"holds int64 of shape \(3, 3\); centroids are floating"):
        load_centroids(given)
    np.save(given, np.array([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(WorldError, match="centroid 1 is zero or not finite"):
        load_centroids(given)
    given.write_bytes(np.eye(3, dtype=np.float32).tobytes())
    with pytest.raises(WorldError, match="cannot be read as centroids"):
        load_centroids(given)


# the pool


def test_the_pool_s_rows_are_the_files_rows_in_cluster_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorted_cluster_pool, "PART", 100)
    monkeypatch.setattr(sorted_cluster_pool, "BLOCK", 50)
    written = members((90, 0, 30, 250, 1))
    folder = write(tmp_path / "c", written)
    store = Store(tmp_path / "store")
    node = SortedClusterPool(str(folder)).node()
    pool = store.get(node)
    keys = [row[0] for rows in written for row in rows]
    assert pool.uids() == keys
    assert pool.num_rows == 371
    assert pool.is_valid.all()
    assert pool.shards == []
    assert pool.uid_hashes.tolist() == [hash_64(key.encode()) for key in keys]
    assert pool.column("shard").tolist() == [row[3] for rows in written for row in rows]
    assert pool.row_of(keys[123]) == 123
    assert len(set(pool.column("content_hash").tolist())) == 371, "no two are taken for copies"
    counts = store.entry(node).manifest["counts"]  # type: ignore[union-attr]
    assert counts["clusters"] == 5
    assert counts["empty clusters"] == 1
    assert counts["repeated uids"] == 0
    parts = sorted(store.folder(node).glob("part-*/index.parquet"))  # type: ignore[union-attr]
    assert len(parts) == 3, "clusters 0 to 2, 3, and 4"


def test_equal_rows_are_an_equal_pool_wherever_they_lie(tmp_path: Path) -> None:
    digests = []
    for name, sizes, as_bytes in (("a", (4, 5), False), ("b", (4, 5), True), ("c", (5, 4), False)):
        folder = write(tmp_path / name, members(sizes, as_bytes))
        digests.append(Store(tmp_path / f"store-{name}").get(SortedClusterPool(str(folder)).node()).digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", members((4, 5)))
    store = Store(tmp_path / "store")
    first = store.key(SortedClusterPool(str(folder)).node())
    assert store.key(SortedClusterPool(str(folder)).node()) == first
    write(folder, members((4, 6)))
    assert store.key(SortedClusterPool(str(folder)).node()) != first


def test_repeated_keys_are_counted_and_clusters_without_members_are_no_pool(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    twice = write(tmp_path / "c", [[("a", 0, 0.5, 0), ("b", 1, 0.4, 0)], [("a", 2, 0.5, 1)]])
    node = SortedClusterPool(str(twice)).node()
    assert store.get(node).num_rows == 3
    assert store.entry(node).manifest["counts"]["repeated uids"] == 1  # type: ignore[union-attr]
    empty = write(tmp_path / "e", [[], []])
    with pytest.raises(PoolError, match=r"all 2 clusters in .* are empty"):
        store.get(SortedClusterPool(str(empty)).node())


# the clustering


def joined_by_dict(uids: list[str], wanted: np.ndarray, written: list[list[Row]]) -> tuple[np.ndarray, np.ndarray]:
    """The join in plain Python: the i-th row of a uid takes its i-th member."""
    waiting: dict[str, list[Row]] = {}
    for rows in written:
        for row in rows:
            waiting.setdefault(row[0], []).append(row)
    assignment, distance = np.full(len(uids), -1), np.full(len(uids), np.nan)
    for at, uid in enumerate(uids):
        if waiting.get(uid):
            _, _, own, cluster = waiting[uid].pop(0)
            if wanted[at]:
                assignment[at], distance[at] = cluster, own
    return assignment, distance


@pytest.mark.parametrize("num_rows", [7, 1000])
@pytest.mark.parametrize("num_hashes", [2**64, 40, 1])
def test_members_are_joined_to_rows_as_a_dictionary_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_rows: int, num_hashes: int
) -> None:
    monkeypatch.setattr(imported, "hash_64", lambda key: hash_64(key) % num_hashes)
    rng = np.random.default_rng(num_rows)
    names = [f"sample {i}" for i in range(120)]
    found = 0
    for trial in range(8):
        # Uids in both, uids in one of the two; and, where hashes are whole, uids many times in either.
        repeats = num_hashes == 2**64
        uids = rng.choice(names[:100], 90, replace=repeats).tolist()
        own = rng.choice(names[20:], 90, replace=repeats).tolist()
        cluster = np.sort(rng.integers(0, 6, 90))
        distance = rng.random(90).astype(np.float32)
        written = [
            [(own[i], int(i), float(distance[i]), j) for i in np.flatnonzero(cluster == j)] for j in range(6)
        ]
        folder = write(tmp_path / f"{trial}", written)
        wanted = rng.random(90) < 0.8
        join = Join(pool_of(uids, [hash_64(u.encode()) % num_hashes for u in uids]), wanted)
        for run in runs(SortedClusters.open(folder), num_rows):
            join.add(run)
        assignment, expected = joined_by_dict(uids, wanted, written)
        np.testing.assert_array_equal(join.assignment, assignment)
        np.testing.assert_array_equal(join.distance, expected.astype(np.float32))
        found += int((assignment >= 0).sum())
    assert found > 200


def test_a_hash_that_two_uids_share_joins_neither_to_the_other() -> None:
    pool = pool_of(["mine", "other"], [hash_64(b"yours"), hash_64(b"other")])
    join = Join(pool, np.ones(2, bool))
    join.add(Run(["yours"], np.array([3], np.int32), np.array([0.5], np.float32)))
    assert join.assignment.tolist() == [-1, -1]
    assert not join.is_found.any()


def test_earlier_equals_are_counted() -> None:
    assert earlier_equals(np.array([5, 3, 5, 5, 3, 9])).tolist() == [0, 0, 1, 2, 1, 0]
    assert earlier_equals(np.array([], int)).tolist() == []


def test_rows_and_members_without_a_partner_are_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", members((3, 2, 0)))
    given = centroids_beside(folder, 3)
    uids = [row[0] for rows in members((3, 2)) for row in rows]
    pool = pool_of(["stranger", *uids[1:], "another"])
    mask = np.array([True, True, True, False, True, True])
    rows = KeepList("digest", mask)
    stage = Imported("pool", str(folder))
    counts = stage.run(desk(tmp_path / "out"), rows, pool)
    assert counts == {
        "rows": 3,
        ABSENT: 2,
        "members not in the pool": 1,
        "members that had gone before": 1,
        "clusters": 3,
        "empty clusters": 1,
        "largest": 2,
        "centroids not of unit length": 3,
    }
    found = Clusters.load(tmp_path / "out")
    assert found.assignment.tolist() == [-1, 0, 0, -1, 1, -1]
    np.testing.assert_allclose(found.distance_to_centroid[[1, 2, 4]], [0.999, 0.998, 0.899])
    assert np.isnan(found.distance_to_centroid[[0, 3, 5]]).all()
    assert found.missing.rows.tolist() == [0, 5]
    assert found.missing.texts == (ABSENT,)
    expected = given / np.linalg.norm(given, axis=1, keepdims=True)
    np.testing.assert_allclose(found.centroids, expected, rtol=1e-6)


def test_distances_that_are_no_cosine_distances_are_refused(tmp_path: Path) -> None:
    for far in (3.5, -0.01):
        folder = write(tmp_path / f"{far}", [[("a", 0, far, 0)]])
        with pytest.raises(WorldError, match=rf"distance to the centroid of {far}.*sorted by l2"):
            list(runs(SortedClusters.open(folder)))
    folder = write(tmp_path / "single", [[("a", 0, -1.1920928955078125e-07, 0)]])
    assert next(runs(SortedClusters.open(folder))).distance.tolist() == [0.0], "rounding of 1 - 1"


def test_centroids_of_another_clustering_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", members((3, 2)))
    centroids_beside(folder, 5)
    stage = Imported("pool", str(folder))
    with pytest.raises(WorldError, match=r"holds 5 centroids, and .* holds 2 clusters"):
        stage.run(desk(tmp_path / "out"), KeepList("digest", np.ones(1, bool)), pool_of(["x"]))


def test_a_published_clustering_is_pruned_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = (40, 2, 1, 200, 120, 300)
    folder = write(tmp_path / "published/sorted_clusters", members(sizes))
    centroids_beside(folder, 6)
    words = f"pool=sorted_clusters pool.path={folder} dedup=none cluster=imported select=dbp"
    assert main(["curate", *words.split(), "budget.keep_fraction=0.3"]) == 0
    assert "kept 198 of 663 rows (29.9%)" in capsys.readouterr().out
    (home,) = (tmp_path / "store/select").iterdir()
    keep = KeepList.load(home)
    # The same by the original scripts: the hardest of each cluster, at quotas that the geometry gives.
    for script, option in (
        ("compute_avg_dist_to_cluster_centroid", "avg-distance-to-cent"),
        ("compute_centroid_distances", "mean-centroid-distances"),
    ):
        out = [f"--{option}-save-path", f"{option}.npy"]
        assert main(["compat", script, "--sorted-clusters-path", str(folder), *out]) == 0
    words = (
        f"prune --sorted-clusters-path {folder} --prune-ratio 0.3 --save-dir kept --temperature 0.1 "
        "--cls-bal-ratio 0 --avg-distance-to-cent-save-path avg-distance-to-cent.npy "
        "--mean-centroid-distances-save-path mean-centroid-distances.npy"
    )
    assert main(["compat", *words.split()]) == 0
    (list_,) = tmp_path.glob("kept/*/*_paths.pickle")
    uids = [row[0] for rows in members(sizes) for row in rows]
    assert list_.read_text().split("\n") == [uids[row] for row in keep.rows]
