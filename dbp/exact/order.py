"""Orders of rows: keys, random numbers that belong to a sample, and taking exactly the first rows.

A key is one unsigned number, smaller is taken first; equal keys go to the lower row. Sorting plain 64-bit
numbers is many times faster than sorting rows by them, and the border key of a sorted copy is all that is
needed to say which rows are in: seconds for 100 million.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt32, UInt64

from dbp.data.clusters import sizes_of, spans
from dbp.data.scores import Scores

Members = Literal["hard", "easy", "random"]
WIDTH = 32  # bits of a key within a cluster; the cluster's number stands above them


def keyed_hash(keys: UInt64[np.ndarray, " n"], seed: int) -> UInt64[np.ndarray, " n"]:
    """A random 64-bit number for each key and seed, whatever the order or the company of the keys.

    Source: the finaliser of splitmix64 (Steele, Lea, Flood 2014), applied twice.
    """
    with np.errstate(over="ignore"):
        state = keys ^ (np.uint64(seed & 0xFFFFFFFFFFFFFFFF) * np.uint64(0x9E3779B97F4A7C15))
        for _ in range(2):
            state = state + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def ascending(values: Float[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """Keys in the order of fp32 values; NaN comes last."""
    return _keys(values, 1)


def descending(values: Float[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """Keys in the falling order of fp32 values; NaN comes last."""
    return _keys(values, -1)


def _keys(values: np.ndarray, sign: int) -> np.ndarray:
    found = np.empty(len(values), np.uint32)
    for span in spans(len(values)):
        block = np.asarray(values[span], np.float32) * np.float32(sign) + np.float32(0)  # no -0
        bits = block.view(np.uint32)
        negative = block < 0
        found[span] = np.where(negative, ~bits, bits | np.uint32(0x80000000))
        found[span][np.isnan(block)] = 0xFFFFFFFF
    return found


def member_keys(
    members: Members,
    distance_to_centroid: Float32[np.ndarray, " n"],
    uid_hashes: UInt64[np.ndarray, " n"] | None,
    seed: int,
) -> UInt32[np.ndarray, " n"]:
    """Keys in the order in which members of a cluster are taken.

    `hard` is farthest from the centroid first, `easy` nearest first, `random` by the keyed hash of the uid.
    """
    if members != "random":
        return _keys(distance_to_centroid, -1 if members == "hard" else 1)
    assert uid_hashes is not None, "random order needs uids"
    found = np.empty(len(uid_hashes), np.uint32)
    for span in spans(len(uid_hashes)):
        found[span] = keyed_hash(uid_hashes[span], seed) >> np.uint64(WIDTH)
    return found


def at_places(
    uid_hashes: UInt64[np.ndarray, " n"], mask: Bool[np.ndarray, " n"], seed: int, start: int, stop: int
) -> Int[np.ndarray, " m"]:
    """The rows that stand at places start..stop-1 when the rows of a mask are ordered by their keyed hash.

    Rows of one uid tie; the lower row comes first. Two passes over the hashes and no sort of all rows: memory holds
    the rows asked for, and about n / 65,536 on each side of them.
    """
    counts = np.zeros(1 << 16, np.int64)
    for span in spans(len(mask)):
        keys = keyed_hash(uid_hashes[span][mask[span]], seed)
        counts += np.bincount((keys >> np.uint64(48)).astype(np.int64), minlength=len(counts))
    ends = np.cumsum(counts)
    low, high = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left")
    rows, found = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for span in spans(len(mask)):
        own = np.flatnonzero(mask[span])
        keys = keyed_hash(uid_hashes[span][own], seed)
        is_near = (keys >> np.uint64(48) >= np.uint64(low)) & (keys >> np.uint64(48) <= np.uint64(high))
        rows.append(own[is_near] + span.start)
        found.append(keys[is_near])
    order = np.argsort(np.concatenate(found), kind="stable")
    before = int(ends[low - 1]) if low else 0
    return np.concatenate(rows)[order][start - before : stop - before]


def score_keys(scores: Scores, uid_hashes: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Keys with the best scores first; ties go by uid hash, rows without a score come last."""
    return descending(scores.goodness).astype(np.uint64) << np.uint64(32) | uid_hashes >> np.uint64(32)


def first(
    keys: UInt32[np.ndarray, " n"] | UInt64[np.ndarray, " n"], mask: Bool[np.ndarray, " n"], count: int
) -> Bool[np.ndarray, " n"]:
    """The rows of a mask with the smallest keys; of equal keys the lower rows."""
    if count <= 0:
        return np.zeros(len(mask), bool)
    among = keys[mask]
    if count >= len(among):
        return mask.copy()
    border = np.partition(among, count - 1)[count - 1]
    taken = mask & (keys < border)
    at_border = np.flatnonzero(mask & (keys == border))
    taken[at_border[: count - int(np.count_nonzero(taken))]] = True
    return taken


def first_of_each(
    keys: UInt32[np.ndarray, " n"],
    cluster: Int32[np.ndarray, " n"],
    mask: Bool[np.ndarray, " n"],
    quotas: Int[np.ndarray, " k"],
) -> Bool[np.ndarray, " n"]:
    """The `quotas[j]` first rows of each cluster j among the rows of a mask that are clustered.

    Args:
        cluster: -1 for rows that are not clustered.
        quotas: At most the members of each cluster.
    """
    from dbp.exact.kernels import grouped, take_to_border

    k, cluster = len(quotas), np.asarray(cluster)
    sizes = sizes_of(cluster, mask, k)
    assert bool(np.all(quotas <= sizes)), "a quota is at most the cluster's size"
    ordered = np.empty(int(sizes.sum()), np.uint64)
    grouped(keys, cluster, mask, ordered)
    ordered.sort()
    starts = np.cumsum(sizes) - sizes
    # Of the first `quota` keys of a cluster, the last is the border; below it all are in.
    has_quota = quotas > 0
    border = np.zeros(k, np.uint64)
    border[has_quota] = ordered[(starts + quotas - 1)[has_quota]]
    at_border = np.where(has_quota, quotas - (np.searchsorted(ordered, border) - starts), 0)
    del ordered
    taken = np.zeros(len(mask), bool)
    take_to_border(keys, cluster, mask, border.astype(np.uint32), has_quota, at_border.astype(np.int64), taken)
    return taken


def ranks(
    keys: UInt32[np.ndarray, " n"] | UInt64[np.ndarray, " n"],
    mask: Bool[np.ndarray, " n"],
    cluster: Int32[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, " n"]:
    """The place of each row of a mask in the order of keys, within its cluster if given; -1 elsewhere."""
    rows = np.flatnonzero(mask if cluster is None else mask & np.asarray(cluster >= 0))
    if cluster is None:
        order, own = np.argsort(keys[rows], kind="stable"), np.zeros(len(rows), np.int64)
    else:
        own = np.asarray(cluster)[rows]
        order = np.argsort(_above(own) | keys[rows], kind="stable")
    found = np.full(len(mask), -1, np.int64)
    groups = own[order]
    found[rows[order]] = np.arange(len(rows)) - np.searchsorted(groups, groups)
    return found


def _above(cluster: np.ndarray) -> np.ndarray:
    return cluster.astype(np.uint64) << np.uint64(WIDTH)
