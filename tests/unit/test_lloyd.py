"""Lloyd iterations: exact, so the same bits whatever the order, blocks, threads, processes or crashes."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dbp.clustering import lloyd
from dbp.clustering.distributed import STATE, fit_all
from dbp.clustering.lloyd import Fit, choose_sample, fit, iterate, num_sampled, on_grid, split_empty
from dbp.data.embeddings import Embeddings, save_part
from dbp.data.vectors import Vectors
from dbp.exact.order import keyed_hash

GRID = 2.0**24


def unit(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Stored vectors: unit length, rounded to fp16."""
    vectors = rng.normal(size=(n, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def lumps(rng: np.random.Generator, n: int, width: int, k: int) -> np.ndarray:
    """Stored vectors around k directions."""
    vectors = rng.normal(size=(k, width))[rng.integers(0, k, n)] * 2 + rng.normal(size=(n, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def in_blocks(vectors: np.ndarray, size: int) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: (vectors[at : at + size] for at in range(0, len(vectors), size))


def one_step(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, float]:
    """Assign in float64, add up, bring to unit length, round to the grid; the mean distance before."""
    precise, centres = vectors.astype(np.float64), centroids.astype(np.float64)
    cosine = precise @ centres.T / np.linalg.norm(centres, axis=1)
    label = cosine.argmax(axis=1)
    moved = np.stack([precise[label == j].sum(axis=0) for j in range(len(centres))])
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    mean = (1 - cosine.max(axis=1)).mean()
    return (np.round(moved * GRID) / GRID).astype(np.float32), mean


# the sample


def test_the_sample_belongs_to_the_uids_and_not_to_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    mask = rng.random(300) < 0.7
    moved = rng.permutation(300)
    for count in (1, 10, 209, 10_000):
        here = hashes[choose_sample(hashes, mask, count, 5)]
        there = hashes[moved][choose_sample(hashes[moved], mask[moved], count, 5)]
        np.testing.assert_array_equal(here, there)


def test_the_sample_has_the_smallest_keyed_hashes_of_the_mask_smallest_first() -> None:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 200, dtype=np.uint64)
    mask = rng.random(200) < 0.5
    keys = keyed_hash(hashes, 9).tolist()
    in_order = sorted(np.flatnonzero(mask).tolist(), key=lambda row: (keys[row], row))
    for count in (1, 2, 50, len(in_order), 500):
        assert choose_sample(hashes, mask, count, 9).tolist() == in_order[:count]


def test_rows_of_one_uid_are_taken_lower_row_first() -> None:
    hashes = np.array([4, 4, 4, 4, 9, 4], np.uint64)
    mask = np.array([True, False, True, True, False, True])
    for count in (1, 2, 3, 4):
        assert choose_sample(hashes, mask, count, 0).tolist() == [0, 2, 3, 5][:count]


def test_a_sample_is_no_larger_than_the_rows_and_has_so_many_for_each_centroid() -> None:
    assert num_sampled(10, 256, 1_000_000) == 2_560
    assert num_sampled(10, 256, 99) == 99


# the grid


def test_centroids_lie_on_the_grid_at_unit_length_and_nought_stays_nought() -> None:
    rng = np.random.default_rng(2)
    sums = rng.normal(size=(50, 33)) * rng.choice([1e-6, 1, 1e7], (50, 1))
    sums[7] = 0
    found = on_grid(sums)
    precise = found.astype(np.float64)
    assert np.array_equal(precise * GRID, np.rint(precise * GRID))
    assert not found[7].any()
    lengths = np.linalg.norm(np.delete(precise, 7, axis=0), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=0, atol=2e-6)


# steps


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_each_step_is_that_of_numpy_in_float64_rounded_to_the_grid(seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = lumps(rng, 500, 24, 9)
    expected = on_grid(vectors[:9].astype(np.float64))
    found = iterate(expected, in_blocks(vectors, 64), 1, threads=threads)
    for steps in range(1, 5):
        expected, mean = one_step(vectors, expected)
        found = iterate(found.centroids, in_blocks(vectors, 64), steps, begun=Fit(
            found.centroids, found.objective[: steps - 1], found.empty[: steps - 1]
        )) if steps > 1 else found  # fmt: skip
        # Sums are exact there and not here, so a number next to the middle may round the other way.
        np.testing.assert_allclose(found.centroids, expected, rtol=0, atol=1.01 / GRID)
        assert (found.centroids != expected).mean() < 1e-3
        assert found.objective[-1] == pytest.approx(mean, abs=1e-7)


def test_any_order_of_rows_any_blocks_and_threads_give_the_same_bits() -> None:
    rng = np.random.default_rng(3)
    vectors = lumps(rng, 700, 16, 8)
    start = on_grid(vectors[:8].astype(np.float64))
    expected = iterate(start, in_blocks(vectors, 8192), 6)
    assert len(expected.objective) == 6
    for size, threads in ((1, 1), (7, 2), (100, 3), (699, 2), (8192, 3)):
        moved = vectors[rng.permutation(700)]
        found = iterate(start, in_blocks(moved, size), 6, threads=threads)
        np.testing.assert_array_equal(found.centroids, expected.centroids)
        assert found.objective == expected.objective
        assert found.empty == expected.empty


def test_the_sums_of_a_plain_loop_would_depend_on_the_order() -> None:
    # What the grid is for: added up as fp32, or from vectors off the grid, the bits differ.
    rng = np.random.default_rng(4)
    vectors = unit(rng, 3_000, 8)
    moved = vectors[rng.permutation(3_000)]
    assert (np.add.reduce(vectors.astype(np.float32)) != np.add.reduce(moved.astype(np.float32))).any()
    a, b = (lloyd._pass(on_grid(np.eye(1, 8)), [v], 1, "cpu", 1.0) for v in (vectors, moved))
    np.testing.assert_array_equal(a.vectors, b.vectors)
    whole = np.rint(vectors.astype(np.float64) * GRID).astype(np.int64)
    np.testing.assert_array_equal(a.vectors[0] * GRID, whole.sum(axis=0))


def test_the_mean_distance_falls_with_each_step() -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        found = fit(lumps(rng, 600, 12, 10), 10, 25, 0)
        assert sum(found.empty) == 0
        assert len(found.objective) > 3
        # Rounding to the grid moves the mean by less than this.
        assert (np.diff(found.objective) < 1e-7).all()
        assert found.objective[-1] < found.objective[0]


def test_a_fit_stops_when_nothing_moves() -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float16), 5, axis=0)
    said: list[tuple[int, float]] = []
    found = fit(vectors[[0, 5, 10, 15, *range(20)]], 4, 50, 0, say=lambda *step: said.append(step))
    assert found.objective == [0.0]
    assert said == [(1, 0.0)]
    np.testing.assert_array_equal(found.centroids, np.eye(4))


def test_one_cluster_is_the_mean_direction_and_n_clusters_are_the_rows() -> None:
    vectors = unit(np.random.default_rng(5), 40, 6)
    mean = vectors.astype(np.float64).sum(axis=0)
    one = fit(vectors, 1, 5, 0)
    np.testing.assert_allclose(one.centroids[0], mean / np.linalg.norm(mean), atol=1e-7)
    every = fit(vectors, 40, 5, 0)
    np.testing.assert_array_equal(every.centroids, on_grid(vectors.astype(np.float64)))


def test_of_two_sides_the_objective_is_the_mean_cosine_distance() -> None:
    rng = np.random.default_rng(6)
    vectors = np.concatenate([unit(rng, 200, 5), unit(rng, 200, 7)], axis=1)
    start = on_grid(vectors[:3].astype(np.float64))
    found = iterate(start, in_blocks(vectors, 50), 1, length=2**0.5)
    cosine = vectors.astype(np.float64) @ start.T.astype(np.float64) / np.sqrt(2)
    assert found.objective[0] == pytest.approx((1 - cosine.max(axis=1)).mean(), abs=1e-6)


# empty clusters


def nearest_of(moved: np.ndarray, centroids: np.ndarray) -> list[int]:
    return (moved.astype(np.float64) @ centroids.T.astype(np.float64)).argmax(axis=1).tolist()


def test_an_empty_cluster_takes_half_of_the_largest_the_lowest_number_first() -> None:
    centroids = on_grid(np.random.default_rng(12).normal(size=(5, 8)))
    centroids[[0, 3]] = 0
    sizes = np.array([0, 6, 6, 0, 4])
    moved, empty = split_empty(centroids, sizes)
    assert empty == 2
    # 0 takes half of 1 (of equal ones the lower number), which leaves 3; then 3 takes half of 2.
    assert nearest_of(moved, centroids) == [1, 1, 2, 2, 4]
    np.testing.assert_array_equal(moved[4], centroids[4])
    assert len(np.unique(moved, axis=0)) == 5
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=2e-6)
    np.testing.assert_array_equal(on_grid(moved.astype(np.float64)), moved)
    np.testing.assert_array_equal(split_empty(centroids, sizes)[0], moved)
    assert sizes.tolist() == [0, 6, 6, 0, 4]


def test_halves_count_as_halves_for_the_next_empty_cluster() -> None:
    centroids = on_grid(np.random.default_rng(13).normal(size=(5, 8)))
    moved, empty = split_empty(centroids, np.array([9, 5, 0, 0, 0]))
    assert empty == 3
    # 2 takes 4 of 9, which leaves 5, 5, 4; 3 takes 2 of cluster 0, which leaves 3, 5, 4, 2; then 4 of 1.
    assert nearest_of(moved, centroids[:2]) == [0, 1, 0, 0, 1]
    assert len(np.unique(moved, axis=0)) == 5


def test_no_empty_cluster_changes_nothing() -> None:
    centroids = on_grid(np.eye(3))
    moved, empty = split_empty(centroids, np.array([1, 2, 3]))
    np.testing.assert_array_equal(moved, centroids)
    assert empty == 0


def test_a_start_of_copies_ends_with_clusters_that_are_all_filled() -> None:
    rng = np.random.default_rng(7)
    vectors = lumps(rng, 400, 10, 8)
    vectors[:8] = vectors[0]  # the start: eight times one vector
    found = fit(vectors, 8, 60, 0)
    assert found.empty[0] == 7
    assert found.empty[-1] == 0
    label = (vectors.astype(np.float64) @ found.centroids.T.astype(np.float64)).argmax(axis=1)
    assert len(np.unique(label)) == 8
    np.testing.assert_array_equal(fit(vectors, 8, 60, 0, threads=2).centroids, found.centroids)


# k-means++


def start_of(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The vectors that k-means++ starts from: a fit without a step."""
    return fit(vectors, k, 0, seed, "kmeans++").centroids


@pytest.mark.parametrize("copied", ["short", "long"])
def test_k_means_plus_plus_draws_copies_last(copied: str) -> None:
    rng = np.random.default_rng(8)
    # Stored vectors are longer or shorter than 1 by some ten-thousandths, and a copy is no distance away.
    directions = unit(rng, 300, 8)
    by_length = np.argsort(np.linalg.norm(directions.astype(np.float64), axis=1))
    many = directions[by_length[0 if copied == "short" else -1]]
    directions = np.concatenate([many[None], directions[by_length[100:111]]])
    vectors = np.concatenate([np.repeat(many[None], 3_000, axis=0), directions[1:]])
    vectors = vectors[rng.permutation(len(vectors))]
    for seed in range(5):
        drawn = start_of(vectors, 12, seed)
        np.testing.assert_array_equal(
            np.unique(drawn, axis=0), np.unique(on_grid(directions.astype(np.float64)), axis=0)
        )
        more = start_of(vectors, 15, seed)
        assert len(np.unique(more, axis=0)) == 12, "only copies are left for the last three"
        np.testing.assert_array_equal(more[:12], drawn)


def test_k_means_plus_plus_is_repeatable_and_belongs_to_its_seed() -> None:
    vectors = unit(np.random.default_rng(9), 300, 8)
    np.testing.assert_array_equal(start_of(vectors, 20, 3), start_of(vectors, 20, 3))
    assert not np.array_equal(start_of(vectors, 20, 3), start_of(vectors, 20, 4))


def test_k_means_plus_plus_draws_far_vectors_in_proportion_to_their_distance() -> None:
    # From a first draw of a, b is 0.2 away and c is 0.6, so c follows three times of four; and so on.
    a, b, c = [1, 0, 0], [0.8, 0.6, 0], [0.4, 0, np.sqrt(1 - 0.16)]
    vectors = np.array([a, b, c]).astype(np.float16)
    precise = vectors.astype(np.float64)
    precise /= np.linalg.norm(precise, axis=1, keepdims=True)
    distance = 1 - precise @ precise.T
    np.fill_diagonal(distance, 0)
    expected = distance / distance.sum(axis=1, keepdims=True) / 3
    found = np.zeros((3, 3))
    for seed in range(600):
        drawn = start_of(vectors, 2, seed).astype(np.float64)
        first, second = (drawn @ precise.T).argmax(axis=1)
        found[first, second] += 1 / 600
    # Each share is binomial of 600 draws: deviation below 0.017; four either way.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.07)


def test_k_means_plus_plus_starts_nearer_to_the_end_than_chance() -> None:
    ends = {start: [] for start in ("random", "kmeans++")}
    for seed in range(5):
        vectors = lumps(np.random.default_rng(seed), 400, 10, 15)
        for start, found in ends.items():
            found.append(fit(vectors, 15, 1, seed, start).objective[0])
    assert np.mean(ends["kmeans++"]) < np.mean(ends["random"])


# crashes


def test_a_fit_that_goes_on_from_any_of_its_states_ends_the_same() -> None:
    vectors = lumps(np.random.default_rng(10), 300, 12, 6)
    start = on_grid(vectors[:6].astype(np.float64))
    states: list[Fit] = []
    whole = iterate(start, in_blocks(vectors, 50), 40, keep=states.append)
    assert 3 < len(states) < 40, "it stopped by itself"
    for state in states:
        again = iterate(start, in_blocks(vectors, 50), 40, begun=state)
        np.testing.assert_array_equal(again.centroids, whole.centroids)
    for number, state in enumerate(states):
        again = iterate(start, in_blocks(vectors, 50), 40, begun=state)
        assert again.objective == whole.objective, f"after step {number + 1} of {len(states)}"
        assert again.empty == whole.empty


class Stopped(Exception):
    pass


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Vectors, np.ndarray, np.ndarray]:
    """Vectors in five uneven parts with gaps, a mask, and all vectors of the mask in memory."""
    rng = np.random.default_rng(11)
    rows = np.sort(rng.choice(900, 700, replace=False))
    vectors = lumps(rng, 700, 12, 6).astype(np.float32)
    for number, part in enumerate(np.split(np.arange(700), [20, 20, 300, 650])):
        (tmp_path / f"part-{number}").mkdir()
        save_part(tmp_path / f"part-{number}", rows[part], vectors[part], {})
    mask = rng.random(900) < 0.8
    made = Embeddings.load(tmp_path)
    return Vectors.of(made), mask, made.gather(rows[mask[rows]])


def test_rows_streamed_from_disk_give_the_bits_of_rows_in_memory(stored: tuple, tmp_path: Path) -> None:
    vectors, mask, together = stored
    first = on_grid(together[:15].astype(np.float64))
    expected = iterate(first, in_blocks(together, 8192), 5)
    for threads in (1, 2, 3):
        found = fit_all(first, vectors, mask, 5, tmp_path / f"shared-{threads}", threads=threads)
        np.testing.assert_array_equal(found.centroids, expected.centroids)
        assert found.objective == expected.objective


def test_a_fit_of_all_rows_that_is_killed_goes_on_after_its_last_step(stored: tuple, tmp_path: Path) -> None:
    vectors, mask, together = stored
    first = on_grid(together[:15].astype(np.float64))
    expected = iterate(first, in_blocks(together, 8192), 6)
    assert not np.array_equal(one_step(together, expected.centroids)[0], expected.centroids)
    shared = tmp_path / "shared"
    seen: list[int] = []

    def killed_at(last: int) -> Callable[[int, float], None]:
        def say(step: int, objective: float) -> None:
            seen.append(step)
            if step == last:
                raise Stopped

        return say

    for last in (2, 3, 5):  # the step is lost: it is kept after it is said
        with pytest.raises(Stopped):
            fit_all(first, vectors, mask, 6, shared, say=killed_at(last))
    found = fit_all(first, vectors, mask, 6, shared, say=killed_at(0))
    assert seen == [1, 2, 2, 3, 3, 4, 5, 5, 6]
    np.testing.assert_array_equal(found.centroids, expected.centroids)
    assert found.objective == expected.objective


def test_a_fit_of_all_rows_that_had_come_to_rest_is_told_the_same_again(stored: tuple, tmp_path: Path) -> None:
    vectors, mask, together = stored
    first = on_grid(together[:3].astype(np.float64))
    whole = fit_all(first, vectors, mask, 100, tmp_path / "shared")
    assert len(whole.objective) < 100
    again = fit_all(first, vectors, mask, 100, tmp_path / "shared")
    np.testing.assert_array_equal(again.centroids, whole.centroids)
    assert again.objective == whole.objective
    assert again.empty == whole.empty


@pytest.mark.parametrize("torn", [b"", b"PK\x03\x04 half of a state", None])
def test_a_state_that_cannot_be_read_is_passed_over(torn: bytes | None, stored: tuple, tmp_path: Path) -> None:
    vectors, mask, together = stored
    first = on_grid(together[:15].astype(np.float64))
    expected = iterate(first, in_blocks(together, 8192), 3)
    shared = tmp_path / "shared"
    fit_all(first, vectors, mask, 2, shared)
    content = (shared / STATE).read_bytes()
    (shared / STATE).write_bytes(content[: len(content) // 2] if torn is None else torn)
    found = fit_all(first, vectors, mask, 3, shared)
    np.testing.assert_array_equal(found.centroids, expected.centroids)
    assert found.objective == expected.objective


# several processes

SCRIPT = """
import sys
from pathlib import Path

import numpy as np

from dbp.clustering.distributed import fit_all
from dbp.data.embeddings import Embeddings
from dbp.data.vectors import Vectors

folder, shared, steps, out = sys.argv[1:]
read, gather = [], Vectors.gather
Vectors.gather = lambda self, rows: (read.append(rows), gather(self, rows))[1]
vectors = Vectors.of(Embeddings.load(Path(folder)))
first, mask = np.load(f"{folder}/first.npy"), np.load(f"{folder}/mask.npy")
found = fit_all(first, vectors, mask, int(steps), Path(shared))
np.savez(out, centroids=found.centroids, objective=found.objective, read=np.concatenate(read))
"""


def in_processes(count: int, *arguments: object) -> None:
    """Run the script in so many processes that form a group, as torchrun and srun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *map(str, arguments), f"{arguments[0]}/rank{rank}.npz"],
            env={**os.environ, **own, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(count)
    ]
    assert [process.wait(timeout=300) for process in started] == [0] * count


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one_also_where_one_goes_on_after_two(stored: tuple, tmp_path: Path) -> None:
    vectors, mask, together = stored
    first = on_grid(together[:15].astype(np.float64))
    expected = iterate(first, in_blocks(together, 8192), 6)
    assert not np.array_equal(one_step(together, expected.centroids)[0], expected.centroids)
    np.save(tmp_path / "first.npy", first)
    np.save(tmp_path / "mask.npy", mask)
    in_processes(2, tmp_path, tmp_path / "shared", 4)
    found = [np.load(tmp_path / f"rank{rank}.npz") for rank in range(2)]
    four = iterate(first, in_blocks(together, 8192), 4)
    for one in found:
        np.testing.assert_array_equal(one["centroids"], four.centroids)
        assert one["objective"].tolist() == four.objective
    shares = [one["read"].tolist() for one in found]
    assert all(shares)
    together_read = sorted(shares[0] + shares[1])
    assert together_read == sorted(np.tile(np.flatnonzero(vectors.present(900) & mask), 4))
    alone = fit_all(first, vectors, mask, 6, tmp_path / "shared")
    np.testing.assert_array_equal(alone.centroids, expected.centroids)
    assert alone.objective == expected.objective
