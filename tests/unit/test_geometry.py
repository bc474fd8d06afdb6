"""The geometry of clusters against other people's implementations and their limits."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from dbp.clustering import geometry
from dbp.clustering.geometry import complexity, d_inter, d_intra, softmax


def neighbours_of_sklearn(centroids: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Mean cosine distance to the nearest others; no point is its own."""
    fitted = NearestNeighbors(metric="cosine", algorithm="brute").fit(centroids)
    distance, _ = fitted.kneighbors(None, n_neighbors=num_neighbours)
    return distance.mean(axis=1)


@pytest.mark.parametrize(("k", "width", "num"), [(2, 3, 1), (25, 8, 20), (21, 16, 20), (60, 4, 59)])
def test_d_inter_agrees_with_nearest_neighbours_of_sklearn(k: int, width: int, num: int) -> None:
    centroids = np.random.default_rng(k).normal(size=(k, width))
    expected = neighbours_of_sklearn(centroids, num)
    np.testing.assert_allclose(d_inter(centroids, num), expected, rtol=0, atol=1e-12)


def test_d_inter_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    centroids = np.random.default_rng(0).normal(size=(50, 6))
    whole = d_inter(centroids, 7)
    monkeypatch.setattr(geometry, "BLOCK", 9)
    np.testing.assert_allclose(d_inter(centroids, 7), whole, rtol=0, atol=1e-14)


def test_fewer_centroids_than_neighbours_use_all_others() -> None:
    centroids = np.random.default_rng(1).normal(size=(6, 5))
    np.testing.assert_array_equal(d_inter(centroids, 20), d_inter(centroids, 5))


def test_d_inter_worked_by_hand() -> None:
    east, north, west = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
    corners = np.array([east, north, west])
    assert d_inter(corners, 1).tolist() == [1, 1, 1]
    assert d_inter(corners, 2).tolist() == [1.5, 1, 1.5]


def test_a_centroid_with_a_duplicate_has_it_as_a_neighbour_at_no_distance() -> None:
    centroids = np.array([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [-4.0, 3.0]])
    np.testing.assert_allclose(d_inter(centroids, 1), [0, 0, 0, 1], atol=1e-15)
    np.testing.assert_allclose(d_inter(centroids, 3), [1 / 3, 1 / 3, 1 / 3, 1], atol=1e-15)
    assert (d_inter(centroids, 2) >= 0).all()


def test_the_length_of_centroids_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    centroids = rng.normal(size=(30, 8))
    longer = centroids * rng.lognormal(0, 3, (30, 1))
    np.testing.assert_allclose(d_inter(longer, 5), d_inter(centroids, 5), rtol=0, atol=1e-12)


def test_centroids_in_fp32_are_compared_in_float64() -> None:
    centroids = np.random.default_rng(3).normal(size=(40, 64)).astype(np.float32)
    expected = neighbours_of_sklearn(centroids.astype(np.float64), 20)
    np.testing.assert_allclose(d_inter(centroids, 20), expected, rtol=0, atol=1e-12)


def test_one_centroid_has_no_neighbours() -> None:
    with pytest.raises(ValueError, match="at least two centroids; there is 1"):
        d_inter(np.ones((1, 4)), 20)


def test_no_neighbours_asked_for_is_refused() -> None:
    with pytest.raises(ValueError, match="num_neighbours=0"):
        d_inter(np.eye(3), 0)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_centroid_without_direction_is_named(bad: float) -> None:
    centroids = np.eye(4)
    centroids[2] = bad
    with pytest.raises(ValueError, match="centroid 2 is zero or not finite"):
        d_inter(centroids, 2)


def test_d_intra_is_the_mean_of_each_group_and_nothing_for_an_empty_one() -> None:
    rng = np.random.default_rng(4)
    distance = rng.random(1_000).astype(np.float32)
    assignment = rng.choice([0, 1, 3, 4, 6], 1_000).astype(np.int32)
    found = d_intra(distance, assignment, 8)
    for cluster in (0, 1, 3, 4, 6):
        members = distance[assignment == cluster].astype(np.float64)
        assert found[cluster] == pytest.approx(members.mean(), rel=0, abs=2**-31)
    assert np.isnan(found[[2, 5, 7]]).all()


def test_d_intra_is_the_same_bits_in_any_order_and_of_the_rows_of_a_mask() -> None:
    rng = np.random.default_rng(5)
    distance = (2 * rng.random(10_000)).astype(np.float32)
    assignment = rng.integers(-1, 5, 10_000).astype(np.int32)
    mask, order = rng.random(10_000) < 0.7, rng.permutation(10_000)
    found = d_intra(distance, assignment, 5, mask)
    assert (d_intra(distance[order], assignment[order], 5, mask[order]) == found).all()
    assert (d_intra(distance[mask], assignment[mask], 5) == found).all()


def test_d_intra_is_summed_in_float64() -> None:
    # A running sum in fp32 stops growing at 2^24 times its step.
    distance = np.full(2**22, 0.1, np.float32)
    found = d_intra(distance, np.zeros(2**22, np.int32), 1)
    assert found[0] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_complexity_is_the_product() -> None:
    found = complexity(np.array([0.5, 2.0]), np.array([0.1, 2.0]))
    assert found.tolist() == [0.05, 4.0]


def test_an_empty_cluster_has_no_complexity_and_is_named() -> None:
    with pytest.raises(ValueError, match="d_intra of cluster 1 is nan: an empty cluster"):
        complexity(np.ones(3), np.array([0.1, np.nan, 0.2]))
    with pytest.raises(ValueError, match="d_inter of cluster 0 is inf"):
        complexity(np.array([np.inf, 1.0]), np.ones(2))


def test_softmax_is_a_distribution_that_keeps_the_order() -> None:
    values = np.sort(np.random.default_rng(5).random(100))
    shares = softmax(values, 0.1)
    assert shares.sum() == pytest.approx(1, rel=1e-12)
    assert (np.diff(shares) > 0).all()
    np.testing.assert_allclose(softmax(values + 7, 0.1), shares, rtol=1e-10)
    np.testing.assert_allclose(np.log(shares[9] / shares[3]), (values[9] - values[3]) / 0.1)


def test_a_temperature_near_nothing_gives_all_to_the_most_complex_and_ties_share() -> None:
    shares = softmax(np.array([0.1, 0.3, 0.2, 0.3]), 1e-300)
    assert shares.tolist() == [0, 0.5, 0, 0.5]


@pytest.mark.parametrize("temperature", [1e12, np.inf])
def test_a_temperature_without_bound_gives_equal_shares(temperature: float) -> None:
    shares = softmax(np.array([0.0, 0.5, 4.0]), temperature)
    np.testing.assert_allclose(shares, 1 / 3, rtol=1e-11)


def test_a_lower_temperature_sharpens() -> None:
    values = np.random.default_rng(6).random(50)
    largest = [softmax(values, t).max() for t in (10.0, 1.0, 0.1, 0.01)]
    assert largest == sorted(largest)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
def test_a_temperature_that_is_not_above_nothing_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature=.*must be above 0"):
        softmax(np.ones(2), temperature)
