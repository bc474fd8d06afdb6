"""Spherical k-means whose every number is the same for any order of rows, block, worker or thread.

The fit uses a sample, chosen by the smallest keyed hash of the uid, so it depends neither on the order of
files nor on who reads them. Sums of stored vectors are exact in float64 (`kernels`), centroids are rounded
to the grid of 2^-24, and the objective is a sum of whole numbers.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, Int, UInt64

from dbp.exact.order import keyed_hash
from dbp.exact.products import BLOCK, Assigner, side_by_side

GRID = 2.0**24
_LOCK = threading.Lock()  # the threads of a pass take turns at its blocks
Start = Literal["random", "kmeans++"]
Reduce = Callable[[np.ndarray], np.ndarray]  # sums over the processes that share the rows


@dataclass
class Sums:
    """What one pass over the rows gives: for each cluster the sum of its vectors, and its size."""

    vectors: Float64[np.ndarray, "k d"]
    sizes: Int[np.ndarray, " k"]
    objective: int = 0  # sum of cosine distances in units of 2^-24

    def __iadd__(self, other: "Sums") -> "Sums":
        self.vectors += other.vectors
        self.sizes += other.sizes
        self.objective += other.objective
        return self


@dataclass
class Fit:
    """Centroids and how they came about."""

    centroids: Float32[np.ndarray, "k d"]
    objective: list[float] = field(default_factory=list)  # mean cosine distance before each step
    empty: list[int] = field(default_factory=list)  # clusters split off the largest after each step
    is_still: bool = False


def choose_sample(
    uid_hashes: UInt64[np.ndarray, " n"], mask: Bool[np.ndarray, " n"], count: int, seed: int
) -> Int[np.ndarray, " m"]:
    """The rows with the smallest keyed hashes, smallest first; all of them where they are fewer.

    Rows of one uid tie; the lower row comes first.
    """
    rows = np.flatnonzero(mask)
    keys = keyed_hash(uid_hashes[rows], seed)
    if len(rows) > count:
        near = np.argpartition(keys, count - 1)[:count]
        bound = keys[near].max()
        at = np.flatnonzero(keys <= bound)
        rows, keys = rows[at], keys[at]
    return rows[np.argsort(keys, kind="stable")][:count]


def on_grid(sums: Float64[np.ndarray, "k d"]) -> Float32[np.ndarray, "k d"]:
    """Directions at unit length, rounded to multiples of 2^-24; zero stays zero."""
    lengths = np.sqrt(np.square(sums).sum(axis=1, keepdims=True))
    unit = sums / np.where(lengths == 0, 1, lengths)
    return (np.rint(unit * GRID) / GRID).astype(np.float32)


def fit(
    sample: Float16[np.ndarray, "m d"],
    k: int,
    num_iterations: int,
    seed: int,
    start: Start = "random",
    threads: int = 1,
    device: str = "cpu",
    length: float = 1.0,
    say: Callable[[int, float], None] = lambda step, objective: None,
) -> Fit:
    """Lloyd iterations on a sample in memory; stops early when nothing moves.

    Args:
        sample: Stored vectors, in the order of `choose_sample`.
        k: At most the number of vectors.
        num_iterations: Steps, at most.
        seed: Of the start.
        start: The first k vectors, or k-means++ (Arthur and Vassilvitskii 2007).
        threads: Blocks worked on at once.
        length: Of the vectors: 1, or the root of 2 for two sides.
        say: Called after each step with its number and the mean cosine distance.
    """
    first = _plus_plus(sample, k, seed, device, length) if start == "kmeans++" else sample[:k]
    return iterate(
        on_grid(first.astype(np.float64)),
        lambda: (sample[at : at + BLOCK] for at in range(0, len(sample), BLOCK)),
        num_iterations,
        threads=threads,
        device=device,
        length=length,
        say=say,
    )


def iterate(
    centroids: Float32[np.ndarray, "k d"],
    blocks: Callable[[], Iterable[Float16[np.ndarray, "b d"]]],
    num_iterations: int,
    *,
    begun: Fit | None = None,
    reduce: Reduce = lambda values: values,
    threads: int = 1,
    device: str = "cpu",
    length: float = 1.0,
    say: Callable[[int, float], None] = lambda step, objective: None,
    keep: Callable[[Fit], None] = lambda state: None,
) -> Fit:
    """Lloyd iterations over blocks that are read anew for each step.

    Args:
        centroids: The start.
        blocks: Gives the blocks of this process; the rows of all processes together are clustered.
        begun: A state to go on from, as `keep` received it.
        reduce: Sums an array over processes.
        keep: Receives the state after each step.
    """
    state = begun or Fit(centroids)
    while len(state.objective) < num_iterations and not state.is_still:
        sums = _pass(state.centroids, blocks(), threads, device, length)
        vectors, sizes = reduce(sums.vectors), reduce(sums.sizes)
        objective = int(reduce(np.array([sums.objective]))[0]) / GRID / max(int(sizes.sum()), 1)
        moved, empty = split_empty(on_grid(vectors), sizes)
        still = np.array_equal(moved, state.centroids)
        state = Fit(moved, [*state.objective, objective], [*state.empty, empty], still)
        say(len(state.objective), objective)
        keep(state)
    return state


def split_empty(
    centroids: Float32[np.ndarray, "k d"], sizes: Int[np.ndarray, " k"]
) -> tuple[Float32[np.ndarray, "k d"], int]:
    """Give each empty cluster half of the largest: two centroids a small step apart.

    Of equally large clusters the lowest number is split; the halves count as halves for the next.

    Returns:
        The centroids, and how many clusters were empty.
    """
    empty = np.flatnonzero(sizes == 0)
    moved, left = centroids.astype(np.float64), sizes.copy()
    step = np.where(np.arange(centroids.shape[1]) % 2 == 0, 1, -1) / 1024
    for cluster in empty:
        largest = int(left.argmax())
        moved[cluster] = moved[largest] * (1 + step)
        moved[largest] = moved[largest] * (1 - step)
        left[cluster] = left[largest] // 2
        left[largest] -= left[cluster]
    return (on_grid(moved) if len(empty) else centroids), len(empty)


def _pass(centroids: np.ndarray, blocks: Iterable[np.ndarray], threads: int, device: str, length: float) -> Sums:
    """Assign every row and add it up; exact, so the threads' shares add up to one answer."""
    from dbp.exact.kernels import add_to

    waiting = iter(blocks)

    def share(_: int) -> Sums:
        found = Sums(np.zeros(centroids.shape), np.zeros(len(centroids), np.int64))
        with Assigner(centroids, device) as assign:
            while (block := _next(waiting)) is not None:
                label, cosine, rows = assign(np.ascontiguousarray(block))
                add_to(found.vectors, found.sizes, rows, label)
                found.objective += int(np.rint((1 - cosine / length) * GRID).sum())
        return found

    shares = side_by_side(share, list(range(max(threads, 1))), threads)
    total = shares[0]
    for other in shares[1:]:
        total += other
    return total


def _next(blocks: Iterator[np.ndarray]) -> np.ndarray | None:
    with _LOCK:
        return next(blocks, None)


def _plus_plus(sample: np.ndarray, k: int, seed: int, device: str, length: float) -> Float16[np.ndarray, "k d"]:
    """Start vectors drawn one by one, each with probability in proportion to its cosine distance.

    The squared chord of two unit vectors is twice their cosine distance. Distances are whole numbers of
    2^-24, so their running sum has no rounding.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    far = np.full(len(sample), np.iinfo(np.int64).max)
    chosen = [int(rng.integers(len(sample)))]
    while len(chosen) < k:
        assign = Assigner(on_grid(sample[chosen[-1:]].astype(np.float64)), device)
        for at in range(0, len(sample), BLOCK):
            _, cosine, rows = assign(np.ascontiguousarray(sample[at : at + BLOCK]))
            norms = np.sqrt(np.square(rows.astype(np.float64)).sum(axis=1))
            distance = np.rint((1 - cosine / norms) * GRID).clip(0).astype(np.int64)
            far[at : at + BLOCK] = np.minimum(far[at : at + BLOCK], distance)
        reached = np.cumsum(far)
        if reached[-1] == 0:  # only copies are left
            rest = np.setdiff1d(np.arange(len(sample)), chosen)
            chosen += rest[: k - len(chosen)].tolist()
            break
        chosen.append(int(np.searchsorted(reached, rng.integers(reached[-1]), side="right")))
    return sample[chosen]


def num_sampled(k: int, points_per_centroid: int, num_rows: int) -> int:
    """Rows that a fit uses: the setting's, or all where they are fewer."""
    return min(num_rows, math.ceil(k * points_per_centroid))
