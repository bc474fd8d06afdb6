"""Laws of the order: without replacement, coupled between arms, a pure function of the step."""

import numpy as np
import pytest

from dbp.errors import ConfigError
from training.account.horizon import Horizon
from training.feed.order import Batches, Order, draws, mix, sample_keys, step_seed

KEYS = np.random.default_rng(0).integers(0, 2**64, 1000, dtype=np.uint64)


def whole(batches: Batches) -> np.ndarray:
    return np.concatenate([taken.indices for taken in batches])


def test_each_kept_row_comes_exactly_once_in_each_epoch() -> None:
    seen = whole(Batches(Order(KEYS, 0), Horizon(1000, 64, 125)))  # 8 epochs, cut within batches
    for epoch in range(8):
        assert np.array_equal(np.sort(seen[epoch * 1000 : (epoch + 1) * 1000]), np.arange(1000))


def test_an_epoch_that_ends_within_a_batch_runs_over_into_the_next() -> None:
    taken = Batches(Order(KEYS, 0), Horizon(1000, 64, 125)).slice(15)  # positions 960 to 1023
    assert taken.epochs.tolist() == [0] * 40 + [1] * 24


def test_two_keep_lists_meet_shared_samples_in_the_same_relative_order() -> None:
    rng = np.random.default_rng(1)
    one, other = (np.sort(rng.choice(1000, 600, replace=False)) for _ in range(2))
    shared = np.intersect1d(one, other)
    for epoch in (0, 3):
        orders = [rows[Order(KEYS[rows], 7).epoch(epoch)] for rows in (one, other)]
        first, second = (order[np.isin(order, shared)] for order in orders)
        assert np.array_equal(first, second)


def test_shared_samples_are_changed_in_the_same_way_in_both_arms() -> None:
    rows = np.array([5, 9, 700])
    epochs = np.array([0, 0, 2])
    alone = draws(0, epochs[1:], KEYS[rows[1:]], 4)
    assert np.array_equal(draws(0, epochs, KEYS[rows], 4)[1:], alone)


@pytest.mark.parametrize("world", [2, 4])
def test_the_slices_of_all_ranks_are_the_batches_of_one(world: int) -> None:
    horizon = Horizon(1000, 64, 40)
    alone = Batches(Order(KEYS, 0), horizon)
    ranks = [Batches(Order(KEYS, 0), horizon, 0, rank, world) for rank in range(world)]
    for step in range(horizon.steps):
        joined = np.concatenate([rank.slice(step).indices for rank in ranks])
        assert np.array_equal(joined, alone.slice(step).indices)


def test_a_run_that_starts_at_a_step_sees_what_was_left() -> None:
    horizon = Horizon(1000, 64, 40)
    later = Batches(Order(KEYS, 0), horizon, start_step=17)
    assert len(later) == 40
    assert np.array_equal(whole(later), whole(Batches(Order(KEYS, 0), horizon))[17 * 64 :])


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size=64 cannot be split evenly over 3"):
        Batches(Order(KEYS, 0), Horizon(1000, 64, 4), world=3)


def test_epochs_seeds_and_neighbours_are_unrelated() -> None:
    def rank_of(seed: int, epoch: int) -> np.ndarray:
        return np.argsort(Order(KEYS, seed).epoch(epoch))

    for other in (rank_of(0, 1), rank_of(1, 0), rank_of(1, 1)):
        assert abs(np.corrcoef(rank_of(0, 0), other)[0, 1]) < 0.12  # 4 standard errors


def test_draws_are_uniform_and_different_in_each_epoch() -> None:
    first, second = (draws(0, np.full(1000, e), KEYS, 3) for e in (0, 1))
    assert first.min() >= 0
    assert first.max() < 1
    assert np.abs(first.mean(axis=0) - 0.5).max() < 0.05
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.12
    assert abs(np.corrcoef(first[:, 0], first[:, 1])[0, 1]) < 0.12


def test_mixing_is_the_published_splitmix64() -> None:
    # The first outputs of SplitMix64 from state 0, as in its reference implementation.
    states = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert mix(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_rows_that_share_a_uid_have_keys_of_their_own_whatever_is_kept() -> None:
    hashes = np.array([7, 8, 7, 9, 7], np.uint64)
    keys = sample_keys(hashes, np.arange(5))
    assert len(set(keys.tolist())) == 5
    assert keys[[0, 1, 3]].tolist() == [7, 8, 9]
    assert np.array_equal(sample_keys(hashes, np.array([2, 4])), keys[[2, 4]])


def test_the_seed_of_a_step_fits_torch() -> None:
    assert 0 <= step_seed(0, 10**9) < 2**63
    assert step_seed(0, 1) != step_seed(0, 2) != step_seed(1, 2)
