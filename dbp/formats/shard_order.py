"""Which sample stands where in shards of equal size."""

import numpy as np
from jaxtyping import Int, UInt64

from dbp.errors import ConfigError

NEAR = 1000  # how far a sample may be moved to part it from a neighbour of the same key


def arrange(
    by: UInt64[np.ndarray, " e"] | Int[np.ndarray, " e"], key_hashes: UInt64[np.ndarray, " e"], shard_size: int
) -> tuple[Int[np.ndarray, " e"], Int[np.ndarray, " s1"]]:
    """The entry at each place of the output, and the places where shards begin and the last one ends.

    Args:
        by: What entries are sorted by; equal ones keep their order.
        key_hashes: A hash of each entry's key; equal ones are kept apart.
        shard_size: The most entries in a shard; sizes differ by one at most.

    Raises:
        ConfigError: More than half of a shard's entries have one key.
    """
    order = np.argsort(by, kind="stable")
    num_shards = -(-len(order) // shard_size)
    edges = np.arange(num_shards + 1) * len(order) // num_shards
    return set_apart(order, key_hashes, edges), edges


def set_apart(
    order: Int[np.ndarray, " e"], key_hashes: UInt64[np.ndarray, " m"], edges: Int[np.ndarray, " s1"]
) -> Int[np.ndarray, " e"]:
    """Move a few samples within their shard, so that no neighbours there have one key.

    Raises:
        ConfigError: More than half of a shard's samples have one key.
    """
    order = order.copy()
    meet = np.flatnonzero(key_hashes[order[1:]] == key_hashes[order[:-1]]) + 1
    meet = meet[~np.isin(meet, edges)]
    for shard in np.unique(np.searchsorted(edges, meet, side="right") - 1):
        part = order[edges[shard] : edges[shard + 1]]  # a view
        _, group, counts = np.unique(key_hashes[part], return_inverse=True, return_counts=True)
        if counts.max() > (len(part) + 1) // 2:
            raise ConfigError(
                f"{shard:08d}.tar would hold {counts.max():,} samples of one key among {len(part):,}, and "
                "webdataset takes neighbours with one key for one sample. Raise shard_size."
            )
        places = _swapped(group.tolist())
        part[:] = part[_alternating(group, counts) if places is None else places]
    return order


def _swapped(groups: list[int]) -> list[int] | None:
    """Part equal neighbours by swapping one with a sample near it; None where no swap would do."""
    num = len(groups)
    places = list(range(num))
    for at in range(1, num):
        if groups[at] != groups[at - 1]:
            continue
        for other in (*range(at + 1, min(at + NEAR, num)), *range(max(at - NEAR, 0), at - 1)):
            groups[at], groups[other] = groups[other], groups[at]
            around = {at, at + 1, other, other + 1} - {0, num}
            if all(groups[place] != groups[place - 1] for place in around):
                places[at], places[other] = places[other], places[at]
                break
            groups[at], groups[other] = groups[other], groups[at]
        else:
            return None
    return places


def _alternating(group: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Part all equal neighbours: groups by falling size, on the even places and then on the odd."""
    order = np.empty(len(group), np.int64)
    places = np.r_[0 : len(group) : 2, 1 : len(group) : 2]
    order[places] = np.lexsort((group, -counts[group]))
    return order
