"""The first rows by a key, against numpy's sorting of several columns, with many ties."""

import numpy as np
import pytest

from dbp.clustering.geometry import d_intra
from dbp.data import clusters as clusters_module
from dbp.data.clusters import Clusters, spans
from dbp.data.scores import Scores
from dbp.exact import order
from dbp.exact.order import ascending, descending, first, first_of_each, keyed_hash, member_keys, ranks, score_keys

TINY = np.float32(1e-45)  # the smallest fp32 number
VALUES = np.array(
    [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, -np.nan, TINY, -TINY, 3.4e38, -3.4e38, 0.1, 0.1, 0.5], np.float32
)
SEEDS = range(8)


def uneven(rng: np.random.Generator, n: int) -> np.ndarray:
    """Values with many ties, both signs, both zeros and none at all."""
    return rng.choice(VALUES, n)


def by_value(values: np.ndarray, falling: bool = False) -> np.ndarray:
    """Rows in the order of values, NaN last, equal ones (0 and -0 are equal) by row: numpy's lexsort."""
    precise = values.astype(np.float64)
    signed = np.where(np.isnan(precise), 0, -precise if falling else precise)
    return np.lexsort((np.arange(len(values)), signed, np.isnan(precise)))


def cut(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Work through rows in short pieces, as a long pool is."""
    for module in (order, clusters_module):
        monkeypatch.setattr(module, "spans", lambda n: spans(n, size))


# keys


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_have_the_order_of_the_numbers_and_nan_comes_last(seed: int) -> None:
    values = uneven(np.random.default_rng(seed), 60)
    for keys, falling in ((ascending(values), False), (descending(values), True)):
        np.testing.assert_array_equal(np.argsort(keys, kind="stable"), by_value(values, falling))


def test_keys_are_equal_exactly_where_the_numbers_are() -> None:
    values = np.array([v for v in VALUES if not np.isnan(v)], np.float32)
    for keys in (ascending(values), descending(values)):
        np.testing.assert_array_equal(keys[:, None] == keys, values[:, None] == values)
    for number in (ascending, descending):
        nan = number(np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32))
        assert nan[0] == nan[1] > max(nan[2:])


def test_neighbouring_fp32_numbers_have_neighbouring_keys() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=200).astype(np.float32) * rng.choice([1e-20, 1, 1e20], 200)
    values = values.astype(np.float32)
    above = np.nextafter(values, np.float32(np.inf))
    assert (ascending(above) - ascending(values) == 1).all()
    assert (descending(values) - descending(above) == 1).all()


@pytest.mark.parametrize("members", ["hard", "easy", "random"])
def test_keys_of_members_fit_below_a_cluster_s_number(members: str) -> None:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 500, dtype=np.uint64)
    keys = member_keys(members, uneven(rng, 500), hashes, seed=3)
    assert keys.max() < 1 << order.WIDTH


def test_members_come_hardest_easiest_or_at_random_first_and_ties_go_to_the_lower_row() -> None:
    rng = np.random.default_rng(2)
    distance = (rng.integers(0, 9, 400) / 4).astype(np.float32)
    hashes = rng.integers(0, 2**64, 400, dtype=np.uint64)
    rows = np.arange(400)
    sorted_by = {"hard": -distance, "easy": distance, "random": keyed_hash(hashes, 5)}
    for members, values in sorted_by.items():
        keys = member_keys(members, distance, hashes, 5)
        np.testing.assert_array_equal(np.argsort(keys, kind="stable"), np.lexsort((rows, values)))


def test_a_random_order_belongs_to_the_uids_and_the_seed() -> None:
    rng = np.random.default_rng(6)
    distance = rng.random(100).astype(np.float32)
    hashes = rng.integers(0, 2**64, 100, dtype=np.uint64)
    moved = rng.permutation(100)
    keys = member_keys("random", distance, hashes, 1)
    np.testing.assert_array_equal(member_keys("random", distance, hashes[moved], 1), keys[moved])
    other = member_keys("random", distance, hashes, 2)
    assert (np.argsort(other) != np.argsort(keys)).mean() > 0.9


def test_random_orders_are_uniform() -> None:
    hashes = np.arange(1_000, dtype=np.uint64)  # as little random as can be
    place = np.argsort(np.argsort(keyed_hash(hashes, 0)))
    assert abs(np.corrcoef(place, np.arange(1_000))[0, 1]) < 0.1
    # Bits of the numbers are set half of the time: 1,000 draws, deviation 0.016, six either way.
    bits = (keyed_hash(hashes, 0)[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert abs(bits.mean(axis=0) - 0.5).max() < 0.1


def test_score_keys_put_the_best_first_break_ties_by_uid_and_put_none_last() -> None:
    rng = np.random.default_rng(3)
    values, hashes = uneven(rng, 80), rng.integers(0, 2**64, 80, dtype=np.uint64)
    precise = values.astype(np.float64)
    expected = np.lexsort((hashes, np.where(np.isnan(precise), 0, -precise), np.isnan(precise)))
    keys = score_keys(Scores(values), hashes)
    np.testing.assert_array_equal(np.argsort(keys, kind="stable"), expected)


@pytest.mark.parametrize("seed", [0, 1, 7, 2**40])
def test_the_keyed_hash_is_splitmix64_worked_out_with_whole_numbers(seed: int) -> None:
    def mixed(key: int) -> int:
        cut = (1 << 64) - 1
        state = key ^ (seed * 0x9E3779B97F4A7C15 & cut)
        for _ in range(2):
            state = (state + 0x9E3779B97F4A7C15) & cut
            state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & cut
            state = (state ^ (state >> 27)) * 0x94D049BB133111EB & cut
            state ^= state >> 31
        return state

    keys = np.array([0, 1, 2**63, 2**64 - 1, 12345], np.uint64)
    assert keyed_hash(keys, seed).tolist() == [mixed(int(key)) for key in keys]


# the first of all


@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_of_a_mask_are_those_that_sorting_puts_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 80))
    values, mask = uneven(rng, n), rng.random(n) < rng.choice([0.1, 0.6, 1])
    for falling, keys in ((False, ascending(values)), (True, descending(values))):
        in_order = [row for row in by_value(values, falling) if mask[row]]
        for count in range(n + 3):
            taken = first(keys, mask, count)
            assert np.flatnonzero(taken).tolist() == sorted(in_order[:count])


def test_of_equal_keys_the_lower_rows_are_taken() -> None:
    keys = np.array([5, 5, 1, 5, 5, 9], np.uint64)
    taken = [np.flatnonzero(first(keys, np.ones(6, bool), count)).tolist() for count in range(7)]
    assert taken == [
        [], [2], [0, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5],
    ]  # fmt: skip


def test_none_of_nothing_and_a_mask_that_is_not_changed() -> None:
    mask = np.array([True, False, True])
    keys = np.arange(3, dtype=np.uint64)
    assert not first(keys, mask, 0).any()
    assert not first(keys, np.zeros(3, bool), 2).any()
    every = first(keys, mask, 3)
    every[:] = False
    assert mask.tolist() == [True, False, True]


def test_the_largest_keys_are_keys_like_others() -> None:
    keys = np.array([2**64 - 1, 0, 2**64 - 1, 2**63], np.uint64)
    found = [np.flatnonzero(first(keys, np.ones(4, bool), count)).tolist() for count in (1, 2, 3)]
    assert found == [[1], [1, 3], [0, 1, 3]]


# the first of each cluster


def clustered(rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, ...]:
    """Members' keys with ties, clusters of unequal size (some rows in none), and a mask."""
    cluster = np.minimum(rng.integers(-1, k, n), rng.integers(-1, k, n)).astype(np.int32)
    return ascending(uneven(rng, n)), cluster, rng.random(n) < 0.7


def one_by_one(keys: np.ndarray, cluster: np.ndarray, mask: np.ndarray, quotas: np.ndarray) -> list[int]:
    taken: list[int] = []
    for j, quota in enumerate(quotas):
        rows = np.flatnonzero(mask & (cluster == j))
        taken += rows[np.lexsort((rows, keys[rows]))][:quota].tolist()
    return sorted(taken)


@pytest.mark.parametrize("size", [5, 1 << 22])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_cluster_gives_its_quota_in_the_order_of_keys(
    seed: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, size)
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 7))
    keys, cluster, mask = clustered(rng, 90, k)
    sizes = np.array([(mask & (cluster == j)).sum() for j in range(k)])
    some = [rng.integers(0, sizes + 1) for _ in range(4)]
    for quotas in [np.zeros(k, np.int64), sizes, np.minimum(1, sizes), *some]:
        taken = first_of_each(keys, cluster, mask, quotas)
        assert np.flatnonzero(taken).tolist() == one_by_one(keys, cluster, mask, quotas)


def test_clusters_do_not_take_from_one_another_where_all_keys_are_equal() -> None:
    cluster = np.array([2, 0, 2, 0, 1, 2, -1], np.int32)
    keys = np.full(7, (1 << order.WIDTH) - 1, np.uint32)
    taken = first_of_each(keys, cluster, np.ones(7, bool), np.array([1, 1, 2]))
    assert np.flatnonzero(taken).tolist() == [0, 1, 2, 4]


def test_quotas_of_nothing_take_nothing_and_full_quotas_all_that_is_clustered() -> None:
    cluster = np.array([0, -1, 1, 1, -1], np.int32)
    keys = np.zeros(5, np.uint32)
    every = np.ones(5, bool)
    assert not first_of_each(keys, cluster, every, np.array([0, 0])).any()
    assert first_of_each(keys, cluster, every, np.array([1, 2])).tolist() == (cluster >= 0).tolist()


def test_a_quota_above_the_members_at_hand_is_a_mistake_of_ours() -> None:
    cluster = np.array([0, 0, 1], np.int32)
    mask = np.array([True, False, True])
    with pytest.raises(AssertionError, match="a quota is at most the cluster's size"):
        first_of_each(np.zeros(3, np.uint32), cluster, mask, np.array([2, 1]))


# ranks


@pytest.mark.parametrize("seed", SEEDS)
def test_a_rank_is_the_place_in_the_sorted_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys, cluster, mask = clustered(rng, 70, 5)
    expected, within = np.full(70, -1), np.full(70, -1)
    rows = np.flatnonzero(mask)
    expected[rows[np.lexsort((rows, keys[rows]))]] = np.arange(len(rows))
    for j in range(5):
        own = np.flatnonzero(mask & (cluster == j))
        within[own[np.lexsort((own, keys[own]))]] = np.arange(len(own))
    np.testing.assert_array_equal(ranks(keys, mask), expected)
    np.testing.assert_array_equal(ranks(keys, mask, cluster), within)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_rows_taken_are_those_whose_rank_is_below_the_quota(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys, cluster, mask = clustered(rng, 90, 4)
    sizes = np.array([(mask & (cluster == j)).sum() for j in range(4)])
    quotas = rng.integers(0, sizes + 1)
    place = ranks(keys, mask, cluster)
    np.testing.assert_array_equal(
        first_of_each(keys, cluster, mask, quotas), (place >= 0) & (place < np.append(quotas, 0)[cluster])
    )
    overall = ranks(keys, mask)
    np.testing.assert_array_equal(first(keys, mask, 30), (overall >= 0) & (overall < 30))


# sums over members


@pytest.mark.parametrize("size", [3, 64, 1 << 22])
def test_sizes_and_sums_of_distances_do_not_depend_on_how_rows_are_cut(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(9)
    cluster = rng.integers(-1, 4, 100).astype(np.int32)
    distance = np.where(cluster >= 0, rng.random(100) * 2, np.nan).astype(np.float32)
    made = Clusters(np.eye(5, dtype=np.float32), cluster, distance)
    mask = rng.random(100) < 0.6
    cut(monkeypatch, size)
    for j in range(5):
        own = mask & (cluster == j)
        assert made.sizes_of(mask)[j] == own.sum()
        assert made.sizes[j] == (cluster == j).sum()
        exact = sum(round(float(value) * 2**30) for value in distance[own])
        found = d_intra(distance, cluster, 5, mask)[j]
        assert found == exact / 2**30 / own.sum() if own.any() else np.isnan(found)
