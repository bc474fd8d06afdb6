"""Clustering: the assignment is exact, and neither blocks, threads nor the order of the pool change it."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import pairwise_distances_argmin_min

from dbp.clustering.kmeans import Centroids, KMeans, assign, assign_rows, semdedup_num_clusters
from dbp.clustering.lloyd import on_grid
from dbp.data.clusters import Clusters
from dbp.data.columns import Columns
from dbp.data.embeddings import Embeddings, save_part
from dbp.data.keep_list import KeepList, everything
from dbp.data.pool import Pool, hash_64
from dbp.data.vectors import Vectors
from dbp.engine.stage import Stage
from dbp.engine.work import Work
from dbp.errors import ConfigError

FIT = {"num_iterations": 5, "points_per_centroid": 50, "seed": 0, "modality": "image", "on": "dedup"}
GRID = 2**24


def unit(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Stored vectors: unit length, rounded to fp16."""
    vectors = rng.normal(size=(n, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def centres(rng: np.random.Generator, k: int, width: int) -> np.ndarray:
    return on_grid(rng.normal(size=(k, width)))


def reference(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of the nearest centroids and the cosine, from products of whole numbers of 2^-24."""
    whole = [np.rint(a.astype(np.float64) * GRID).astype(np.int64).astype(object) for a in (vectors, centroids)]
    products = (whole[0] @ whole[1].T).astype(np.longdouble)
    lengths = [np.sqrt((a**2).sum(axis=1).astype(np.longdouble)) for a in whole]
    cosine = products / lengths[1]
    nearest = cosine.argmax(axis=1)
    return nearest, (cosine[np.arange(len(vectors)), nearest] / lengths[0]).astype(np.float64)


def write(folder: Path, vectors: np.ndarray, rows: np.ndarray | None = None, num_parts: int = 3) -> Embeddings:
    """Embeddings of some rows (all by default) in parts; the second part is empty."""
    rows = np.arange(len(vectors)) if rows is None else rows
    parts = np.array_split(np.arange(len(rows)), num_parts)
    for number, own in enumerate([parts[0], parts[0][:0], *parts[1:]]):
        (folder / f"part-{number:07d}").mkdir(parents=True)
        save_part(folder / f"part-{number:07d}", rows[own], vectors[own].astype(np.float32), {})
    return Embeddings.load(folder)


def pool_of(uids: list[str]) -> Pool:
    hashes = pa.array([hash_64(uid.encode()) for uid in uids], pa.uint64())
    return Pool(Columns(pa.table({"uid": uids, "uid_hash": hashes})), [], "pool", "txt", 10**6)


def named(n: int) -> Pool:
    return pool_of([f"sample-{i}" for i in range(n)])


def done(stage: Stage, folder: Path, **inputs: Any) -> Any:
    """Run a stage as the store does, and load what it wrote."""
    (folder / stage.name / "made").mkdir(parents=True)
    work = Work(folder / stage.name / "made", folder / stage.name / "shared", "key")
    stage.run(work, **inputs)
    work.collect()
    return stage.makes.load(work.folder)


def cluster(
    folder: Path,
    rows: KeepList,
    image: Embeddings,
    text: Embeddings | None = None,
    pool: Pool | None = None,
    **settings: Any,
) -> Clusters:
    """Both stages of a clustering."""
    stage = KMeans(**(FIT | settings))
    have = {"rows": rows, "image": image, "text": text}
    centroids = done(stage.fitting(), folder, pool=pool or named(rows.num_pool_rows), **have)
    return done(stage, folder, centroids=centroids, **have)


def all_rows(n: int) -> KeepList:
    return everything("pool", np.ones(n, bool))


# the nearest centroid


@pytest.mark.parametrize("width", [3, 16, 515])
def test_each_row_goes_to_its_nearest_centroid(width: int) -> None:
    rng = np.random.default_rng(width)
    vectors, centroids = unit(rng, 1_000, width), centres(rng, 40, width)
    unit_centroids = centroids.astype(np.float64)
    unit_centroids /= np.linalg.norm(unit_centroids, axis=1, keepdims=True)
    precise = vectors.astype(np.float64)
    nearest, _ = pairwise_distances_argmin_min(precise, unit_centroids, metric="euclidean")
    assignment, distance = assign(vectors, centroids)
    np.testing.assert_array_equal(assignment, nearest)
    precise /= np.linalg.norm(precise, axis=1, keepdims=True)
    cosine = (precise * unit_centroids[nearest]).sum(axis=1)
    np.testing.assert_allclose(distance, 1 - cosine, rtol=0, atol=1e-7)


@pytest.mark.parametrize("width", [64, 768])
def test_rivals_that_fp32_cannot_tell_apart_are_told_apart(width: int) -> None:
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(1, width))
    centre /= np.linalg.norm(centre)
    centroids = on_grid(centre + rng.normal(scale=1.5 / GRID, size=(30, width)))
    vectors = (centre + rng.normal(scale=1e-3, size=(60, width))).astype(np.float16)
    assignment, distance = assign(vectors, centroids)
    nearest, cosine = reference(vectors, centroids)
    np.testing.assert_array_equal(assignment, nearest)
    np.testing.assert_allclose(distance, 1 - cosine, rtol=0, atol=1e-9)
    in_fp32 = (vectors.astype(np.float32) @ centroids.T).argmax(axis=1)
    assert (in_fp32 != assignment).any(), "this case does not need float64"


@pytest.mark.parametrize("width", [3, 33, 128, 515])
def test_of_equal_centroids_the_lowest_number_wins(width: int) -> None:
    rng = np.random.default_rng(2)
    # Of three equal columns, a matrix product can give one another last bit.
    centroids = np.repeat(centres(rng, 3, width), 3, axis=0)
    vectors = np.concatenate([unit(rng, 100, width), centroids[2:5].astype(np.float16)])
    assignment, _ = assign(vectors, centroids)
    assert set(assignment.tolist()) == {0, 3, 6}


def test_a_row_between_two_centroids_goes_to_the_lower_number() -> None:
    # Exactly as near to both, by products that are whole numbers of 2^-48.
    centroids = on_grid(np.array([[0, 0, 1.0], [1, -1, 0], [1, 1, 0]]))
    vectors = np.array([[1, 0, 0], [0.5, 0, 0], [0.25, 0, 0.125]], np.float16)
    assert assign(vectors, centroids)[0].tolist() == [1, 1, 1]
    assert assign(vectors, centroids[[2, 0, 1]])[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [1, 7, 1_000, 8_192])
def test_the_assignment_does_not_depend_on_blocks_or_threads(block: int, threads: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = np.sort(rng.choice(500, 300, replace=False))
    vectors = Vectors.of(write(tmp_path, unit(rng, 300, 24), rows))
    stored = vectors.gather(rows)
    centroids = on_grid(stored[:20].astype(np.float64))
    centroids[10:] = centroids[:10]  # each twice
    nearest, cosine = reference(stored, centroids)
    label, distance = assign_rows(vectors, rows, centroids, threads, block)
    np.testing.assert_array_equal(label, nearest)
    np.testing.assert_allclose(distance, 1 - cosine, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(distance, assign(stored, centroids)[1])
    some = rows[rng.random(300) < 0.3]
    at = np.searchsorted(rows, some)
    label, distance_of_some = assign_rows(vectors, some, centroids, threads, block)
    np.testing.assert_array_equal(label, nearest[at])
    np.testing.assert_array_equal(distance_of_some, distance[at])


def test_no_rows_are_assigned_to_nothing(tmp_path: Path) -> None:
    vectors = Vectors.of(write(tmp_path, unit(np.random.default_rng(0), 9, 4)))
    label, distance = assign_rows(vectors, np.zeros(0, np.int64), on_grid(np.eye(4)), 2)
    assert len(label) == len(distance) == 0


def test_distances_lie_between_nought_and_two() -> None:
    vectors = unit(np.random.default_rng(4), 300, 5)
    directions = on_grid(vectors.astype(np.float64))
    _, near = assign(vectors, directions)
    assert near.min() >= 0
    assert near.max() < 1e-6
    for i in range(20):
        _, far = assign(vectors[i : i + 1], -directions[i : i + 1])
        assert 2 - 1e-6 < far[0] <= 2


def test_the_length_of_a_stored_vector_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    vectors, centroids = unit(rng, 100, 8), centres(rng, 9, 8)
    # Halves and doubles of fp16 numbers are exact, but for the smallest.
    vectors[np.abs(vectors) < 1e-3] = 0
    label, distance = assign(vectors, centroids)
    for factor in (0.5, 0.25):
        again = assign(vectors * np.float16(factor), centroids)
        np.testing.assert_array_equal(again[0], label)
        np.testing.assert_array_equal(again[1], distance)


# two sides


def sides(folder: Path) -> tuple[Embeddings, Embeddings]:
    """Images of rows 0..59 but 5 and 9; captions of all but 9 and 33, in other parts."""
    rng = np.random.default_rng(6)
    has_image, has_text = np.setdiff1d(np.arange(60), [5, 9]), np.setdiff1d(np.arange(60), [9, 33])
    image = write(folder / "image", unit(rng, 58, 6), has_image)
    return image, write(folder / "text", unit(rng, 58, 9), has_text, num_parts=2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [1, 7, 8_192])
def test_joint_vectors_go_to_the_centroid_nearest_to_both_sides(block: int, threads: int, tmp_path: Path) -> None:
    vectors = Vectors.of(*sides(tmp_path))
    rows = np.setdiff1d(np.arange(60), [5, 9, 33])
    centroids = centres(np.random.default_rng(7), 8, 15)
    nearest, cosine = reference(vectors.gather(rows), centroids)
    label, distance = assign_rows(vectors, rows, centroids, threads, block)
    np.testing.assert_array_equal(label, nearest)
    np.testing.assert_allclose(distance, 1 - cosine, rtol=0, atol=1e-7)


def test_rows_that_lack_a_side_are_in_no_cluster(tmp_path: Path) -> None:
    image, text = sides(tmp_path)
    found = cluster(tmp_path, all_rows(60), image, text, modality="joint", num_clusters=4)
    assert np.flatnonzero(~found.is_clustered).tolist() == [5, 9, 33]
    assert np.isnan(found.distance_to_centroid[[5, 9, 33]]).all()
    assert found.centroids.shape == (4, 15)
    alone = cluster(tmp_path / "alone", all_rows(60), image, num_clusters=4)
    assert np.flatnonzero(~alone.is_clustered).tolist() == [5, 9]


# whole clusterings


def test_a_clustering_holds_each_row_once_with_its_nearest_centroid(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    has_vector = np.sort(rng.choice(600, 400, replace=False))
    rows = everything("pool", rng.random(600) < 0.7)
    image = write(tmp_path, unit(rng, 400, 12), has_vector)
    found = cluster(tmp_path, rows, image, num_clusters=9)
    members = np.intersect1d(rows.rows, has_vector)
    np.testing.assert_array_equal(np.flatnonzero(found.is_clustered), members)
    np.testing.assert_array_equal(np.isnan(found.distance_to_centroid), ~found.is_clustered)
    assert found.sizes.sum() == len(members)
    assert found.num_clusters == len(found.sizes) == 9
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=2e-6)
    nearest, cosine = reference(image.gather(members), found.centroids)
    np.testing.assert_array_equal(found.assignment[members], nearest)
    np.testing.assert_allclose(found.distance_to_centroid[members], 1 - cosine, rtol=0, atol=1e-7)


def test_a_clustering_finds_directions_that_lie_far_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    truth = rng.integers(0, 4, 200)
    vectors = np.eye(8)[truth] + rng.normal(scale=0.05, size=(200, 8))
    image = write(tmp_path, vectors)
    found = cluster(tmp_path, all_rows(200), image, num_clusters=4, start="kmeans++")
    assert len(set(zip(truth.tolist(), found.assignment.tolist(), strict=True))) == 4


def test_the_order_of_the_pool_changes_no_centroid_and_no_member(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    vectors, moved = rng.normal(size=(300, 10)), rng.permutation(300)
    kept = rng.random(300) < 0.8
    uids = [f"sample-{i}" for i in range(300)]
    for number, settings in enumerate(({}, {"start": "kmeans++"}, {"full": True})):
        one, other = (tmp_path / f"{name}-{number}" for name in ("here", "there"))
        how: Any = {"num_clusters": 7, "points_per_centroid": 10, **settings}
        here = cluster(one, everything("pool", kept), write(one, vectors), pool=pool_of(uids), **how)
        there = cluster(
            other,
            everything("pool", kept[moved]),
            write(other, vectors[moved], num_parts=5),
            pool=pool_of([uids[i] for i in moved]),
            **how,
        )
        np.testing.assert_array_equal(there.centroids, here.centroids)
        np.testing.assert_array_equal(there.assignment, here.assignment[moved])
        np.testing.assert_array_equal(there.distance_to_centroid, here.distance_to_centroid[moved])


def test_all_rows_streamed_give_the_centroids_of_all_rows_sampled(tmp_path: Path) -> None:
    image = write(tmp_path, np.random.default_rng(11).normal(size=(200, 9)))
    how = {"num_clusters": 6, "points_per_centroid": 1_000, "num_iterations": 8}
    sampled = cluster(tmp_path / "a", all_rows(200), image, **how)
    streamed = cluster(tmp_path / "b", all_rows(200), image, full=True, **how)
    np.testing.assert_array_equal(streamed.centroids, sampled.centroids)
    few = cluster(tmp_path / "c", all_rows(200), image, **how | {"points_per_centroid": 5})
    assert not np.array_equal(few.centroids, sampled.centroids)


def test_a_fit_on_a_sample_is_repeatable_and_belongs_to_its_seed(tmp_path: Path) -> None:
    image = write(tmp_path, np.random.default_rng(12).normal(size=(600, 8)))
    how = {"num_clusters": 5, "points_per_centroid": 20}
    first, again, other = (
        cluster(tmp_path / f"{number}", all_rows(600), image, seed=seed, **how).centroids
        for number, seed in enumerate((3, 3, 4))
    )
    np.testing.assert_array_equal(again, first)
    assert not np.array_equal(other, first)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_blocks_threads_and_runs_change_no_byte_of_what_is_written(tmp_path: Path) -> None:
    image = write(tmp_path, np.random.default_rng(13).normal(size=(300, 8)))
    ways: list[dict[str, Any]] = [
        {}, {"threads": 2}, {"block": 1}, {"block": 7, "threads": 2}, {"runs": "yes"},
        {"runs": "yes", "block": 1_000},
    ]  # fmt: skip
    found = []
    for number, way in enumerate(ways):
        cluster(tmp_path / f"{number}", all_rows(300), image, num_clusters=6, **way)
        found.append(digests(tmp_path / f"{number}" / "cluster" / "made"))
    plain, with_runs = found[:4], found[4:]
    assert all(one == plain[0] for one in plain)
    assert with_runs[0] == with_runs[1]
    assert plain[0].items() < with_runs[0].items()


def test_members_come_by_cluster_and_row_with_their_vectors_also_from_sorted_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(14)
    rows = np.sort(rng.choice(500, 350, replace=False))
    image = write(tmp_path, rng.normal(size=(350, 8)), rows, num_parts=4)
    kept = everything("pool", rng.random(500) < 0.8)
    plain = cluster(tmp_path / "plain", kept, image, num_clusters=7)
    runs = cluster(tmp_path / "runs", kept, image, num_clusters=7, runs="yes")
    assert not plain.runs
    assert len(runs.runs) == 5
    for low, high in ((0, 7), (0, 1), (2, 5), (6, 7), (3, 3)):
        expected = [np.flatnonzero(plain.assignment == j) for j in range(low, high)]
        for found in (plain, runs):
            members, starts = found.members(low, high)
            assert [members[a:b].tolist() for a, b in itertools.pairwise(starts)] == [
                own.tolist() for own in expected
            ]
        members, _ = runs.members(low, high)
        np.testing.assert_array_equal(runs.run(low, high), image.gather(members))


def test_a_part_without_a_row_to_cluster_writes_an_empty_run(tmp_path: Path) -> None:
    image = write(tmp_path, np.random.default_rng(15).normal(size=(90, 8)))
    first_third = everything("pool", np.arange(90) < 25)
    found = cluster(tmp_path, first_third, image, num_clusters=3, runs="yes")
    assert found.sizes.sum() == 25
    assert len(found.run(0, 3)) == 25


def test_a_clustering_that_is_cut_short_goes_on_and_writes_the_same(tmp_path: Path) -> None:
    image = write(tmp_path, np.random.default_rng(16).normal(size=(300, 8)), num_parts=6)
    cluster(tmp_path / "whole", all_rows(300), image, num_clusters=6)
    centroids = Centroids.load(tmp_path / "whole" / "centroids" / "made")
    stage = KMeans(**(FIT | {"num_clusters": 6}))
    made: list[int] = []

    class Cut(BaseException):
        pass

    class Mortal(KMeans):
        def make(self, part: Any, folder: Path, **inputs: Any) -> dict[str, Any]:
            if len(made) == 3:
                raise Cut
            made.append(part.number)
            return super().make(part, folder, **inputs)

    (tmp_path / "made").mkdir()
    work = Work(tmp_path / "made", tmp_path / "shared", "key")
    inputs = {"rows": all_rows(300), "image": image, "centroids": centroids}
    with pytest.raises(Cut):
        Mortal(**(FIT | {"num_clusters": 6})).run(work, **inputs)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "shared").rglob("label.npy")}
    assert len(before) == 3
    stage.run(work, **inputs)
    assert {p: p.stat().st_mtime_ns for p in before} == before, "finished parts are kept"
    assert digests(tmp_path / "made") == digests(tmp_path / "whole" / "cluster" / "made")


# numbers of clusters


def test_more_clusters_than_rows_are_refused(tmp_path: Path) -> None:
    image = write(tmp_path, unit(np.random.default_rng(17), 9, 4))
    rows = everything("pool", np.arange(9) < 3)
    with pytest.raises(ConfigError, match="num_clusters=4 clusters of 3 rows"):
        cluster(tmp_path, rows, image, num_clusters=4)


def test_rows_without_an_embedding_are_counted_by_reason_where_too_few_are_left(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(18), 9, 4)
    vectors[:6] = np.nan
    image = write(tmp_path, vectors)
    with pytest.raises(ConfigError, match=r"3 rows \(6 of 9 rows have no embedding: embedding not finite 6\)"):
        cluster(tmp_path, everything("pool", np.ones(9, bool)), image, num_clusters=4)


def test_no_row_cannot_be_clustered_even_with_an_automatic_number(tmp_path: Path) -> None:
    image = write(tmp_path, unit(np.random.default_rng(18), 9, 4))
    with pytest.raises(ConfigError, match="of 0 rows"):
        cluster(tmp_path, everything("pool", np.zeros(9, bool)), image, num_clusters="auto")


def test_as_many_clusters_as_rows_give_each_its_own(tmp_path: Path) -> None:
    image = write(tmp_path, unit(np.random.default_rng(19), 6, 4))
    found = cluster(tmp_path, all_rows(6), image, num_clusters=6)
    assert found.sizes.tolist() == [1] * 6
    assert found.distance_to_centroid.max() < 1e-6


def test_one_cluster_holds_every_row(tmp_path: Path) -> None:
    image = write(tmp_path, unit(np.random.default_rng(20), 30, 4))
    found = cluster(tmp_path, all_rows(30), image, num_clusters=1)
    assert found.sizes.tolist() == [30]


def test_the_automatic_number_is_the_root_of_three_quarters_of_the_rows(tmp_path: Path) -> None:
    assert [semdedup_num_clusters(n) for n in (0, 1, 12, 300, 10_000)] == [1, 1, 3, 15, 87]
    image = write(tmp_path, unit(np.random.default_rng(21), 60, 4))
    rows = everything("pool", np.arange(60) < 48)
    assert cluster(tmp_path, rows, image, num_clusters="auto").num_clusters == 6


@pytest.mark.parametrize("field", ["num_clusters", "num_iterations", "points_per_centroid", "threads", "block"])
def test_settings_out_of_range_are_named(field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}=0: it must be at least 1"):
        KMeans(**({"num_clusters": 5} | FIT | {field: 0}))
