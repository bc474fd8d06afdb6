"""Spherical k-means: the fit is faiss', the assignment is exact."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances_argmin_min

from dbp.clustering import kmeans
from dbp.clustering.kmeans import KMeans, assign, fit_centroids, joined, semdedup_num_clusters
from dbp.data.embeddings import Embeddings, save_part
from dbp.errors import ConfigError

FIT = {
    "num_iterations": 5,
    "points_per_centroid": 50,
    "seed": 0,
    "modality": "image",
    "on": "dedup",
}


def unit(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    vectors = rng.normal(size=(n, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def reference(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The first of the nearest centroids, each cosine summed alone in float64."""
    precise = [
        [float(np.sum(v * c)) for c in centroids.astype(np.float64)]
        for v in vectors.astype(np.float64)
    ]
    return np.array([int(np.argmax(row)) for row in precise])


def test_each_row_goes_to_its_nearest_centroid() -> None:
    rng = np.random.default_rng(0)
    vectors, centroids = unit(rng, 3_000, 16), unit(rng, 40, 16)
    nearest, _ = pairwise_distances_argmin_min(
        vectors.astype(np.float64), centroids.astype(np.float64), metric="euclidean"
    )
    assignment, distance = assign(vectors, centroids)
    np.testing.assert_array_equal(assignment, nearest)
    cosine = (vectors.astype(np.float64) * centroids.astype(np.float64)[nearest]).sum(axis=1)
    np.testing.assert_allclose(distance, 1 - cosine, rtol=0, atol=1e-7)


def test_rivals_that_fp32_cannot_tell_apart_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    centre = unit(rng, 1, 64)
    centroids = (centre + rng.normal(scale=3e-8, size=(30, 64))).astype(np.float32)
    vectors = (centre + rng.normal(scale=1e-3, size=(200, 64))).astype(np.float32)
    assignment, _ = assign(vectors, centroids)
    np.testing.assert_array_equal(assignment, reference(vectors, centroids))
    in_fp32 = (vectors @ centroids.T).argmax(axis=1)
    assert (in_fp32 != assignment).any(), "this case does not need float64"


@pytest.mark.parametrize("width", [3, 33, 128, 515])
def test_of_equal_centroids_the_lowest_number_wins(width: int) -> None:
    rng = np.random.default_rng(2)
    # Of three equal rows, a matrix product in float64 can give one another last bit.
    centroids = np.repeat(unit(rng, 3, width), 3, axis=0)
    vectors = np.concatenate([unit(rng, 100, width), centroids[2:5]])
    assignment, _ = assign(vectors, centroids)
    assert set(assignment.tolist()) <= {0, 3, 6}


@pytest.mark.parametrize("block", [1, 7, 64])
def test_the_assignment_does_not_depend_on_the_block_size(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng, 500, 24)
    centroids = np.concatenate([vectors[:10], vectors[:10]])
    assignment, distance = assign(vectors, centroids)
    monkeypatch.setattr(kmeans, "BLOCK", block)
    again, distance_again = assign(vectors, centroids)
    np.testing.assert_array_equal(again, assignment)
    np.testing.assert_array_equal(distance_again, distance)


def test_distances_lie_between_nought_and_two() -> None:
    vectors = unit(np.random.default_rng(4), 300, 5)
    _, near = assign(vectors, vectors)
    assert near.min() >= 0
    assert near.max() < 1e-6
    for i in range(20):
        _, far = assign(vectors[i : i + 1], -vectors[i : i + 1])
        assert 2 - 1e-6 < far[0] <= 2


def test_a_fit_assigns_each_row_once_and_has_centroids_of_unit_length() -> None:
    rng = np.random.default_rng(5)
    rows = np.sort(rng.choice(10_000, 400, replace=False))
    clusters = KMeans(num_clusters=9, **FIT).fit(rows, unit(rng, 400, 12))
    np.testing.assert_array_equal(clusters.rows, rows)
    assert clusters.sizes.sum() == 400
    assert clusters.num_clusters == len(clusters.sizes) == 9
    np.testing.assert_allclose(np.linalg.norm(clusters.centroids, axis=1), 1, atol=1e-6)


def test_a_fit_finds_directions_that_lie_far_apart() -> None:
    rng = np.random.default_rng(6)
    truth = np.repeat(np.arange(4), 50)
    vectors = np.eye(8, dtype=np.float32)[truth] + rng.normal(scale=0.05, size=(200, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = KMeans(num_clusters=4, **FIT).fit(np.arange(200), vectors).assignment
    pairs = set(zip(truth.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 4


def test_a_fit_on_a_sample_is_repeatable() -> None:
    vectors = unit(np.random.default_rng(7), 600, 8)
    first = fit_centroids(vectors, 5, 4, 20, seed=3)
    np.testing.assert_array_equal(fit_centroids(vectors, 5, 4, 20, seed=3), first)
    assert not np.array_equal(fit_centroids(vectors, 5, 4, 20, seed=4), first)


def test_more_clusters_than_rows_are_refused() -> None:
    vectors = unit(np.random.default_rng(8), 3, 4)
    with pytest.raises(ConfigError, match="num_clusters=4 clusters of 3 rows"):
        KMeans(num_clusters=4, **FIT).fit(np.arange(3), vectors)


def test_no_row_cannot_be_clustered_even_with_an_automatic_number() -> None:
    with pytest.raises(ConfigError, match="of 0 rows"):
        KMeans(num_clusters="auto", **FIT).fit(np.arange(0), np.zeros((0, 4), np.float32))


def test_as_many_clusters_as_rows_give_each_its_own() -> None:
    vectors = unit(np.random.default_rng(9), 6, 4)
    clusters = KMeans(num_clusters=6, **FIT).fit(np.arange(6), vectors)
    assert clusters.sizes.tolist() == [1] * 6
    assert clusters.distance_to_centroid.max() < 1e-6


def test_the_automatic_number_is_the_root_of_three_quarters_of_the_rows() -> None:
    assert [semdedup_num_clusters(n) for n in (0, 1, 12, 300, 10_000)] == [1, 1, 3, 15, 87]


@pytest.mark.parametrize(
    ("field", "value"), [("num_clusters", 0), ("num_iterations", 0), ("points_per_centroid", 0)]
)
def test_settings_out_of_range_are_named(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"^{field}=0: it must be at least 1"):
        KMeans(**({"num_clusters": 5} | FIT | {field: value}))


def embeddings(folder: Path, rows: np.ndarray, vectors: np.ndarray) -> Embeddings:
    for number, part in enumerate(np.array_split(np.arange(len(rows)), 2)):
        (folder / f"part-{number}").mkdir(parents=True)
        save_part(folder / f"part-{number}", rows[part], vectors[part], {})
    return Embeddings.load(folder)


def test_the_cosine_of_joint_vectors_is_the_mean_of_image_and_text_cosine(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    image = embeddings(tmp_path / "image", np.arange(20), 5 * unit(rng, 20, 6))
    text = embeddings(tmp_path / "text", np.arange(20), unit(rng, 20, 9))
    found, vectors = joined(np.arange(20), image, text)
    assert found.tolist() == list(range(20))
    assert vectors.shape == (20, 15)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    sides = [side.unit(found).astype(np.float64) for side in (image, text)]
    mean = sum(side @ side.T for side in sides) / 2
    np.testing.assert_allclose(vectors.astype(np.float64) @ vectors.T, mean, rtol=0, atol=1e-6)


def test_rows_that_lack_a_side_are_left_out_and_the_others_keep_their_vector(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(11)
    image_rows, text_rows = np.array([0, 2, 3, 7, 9]), np.array([0, 3, 4, 9])
    image = embeddings(tmp_path / "image", image_rows, unit(rng, 5, 4))
    text = embeddings(tmp_path / "text", text_rows, unit(rng, 4, 3))
    found, vectors = joined(np.array([0, 1, 3, 7, 9]), image, text)
    assert found.tolist() == [0, 3, 9]
    np.testing.assert_allclose(vectors[:, :4], image.unit(found) / np.sqrt(2), atol=1e-7)
    np.testing.assert_allclose(vectors[:, 4:], text.unit(found) / np.sqrt(2), atol=1e-7)
    alone, _ = joined(np.array([0, 1, 3, 7, 9]), image, None)
    assert alone.tolist() == [0, 3, 7, 9]
