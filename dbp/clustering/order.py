"""The order in which members of a cluster are taken, and random numbers that belong to a sample."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int, UInt64

Members = Literal["hard", "easy", "random"]


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


def member_order(
    members: Members,
    distance_to_centroid: Float[np.ndarray, " n"],
    rows: Int[np.ndarray, " n"],
    uid_hashes: UInt64[np.ndarray, " n"],
    seed: int,
) -> Int[np.ndarray, " n"]:
    """Positions in the order in which members are taken.

    `hard` is farthest from the centroid first, `easy` nearest first, `random` by the keyed hash of the
    sample's uid. Ties go to the lower row.
    """
    if members == "random":
        return np.lexsort((rows, keyed_hash(uid_hashes, seed)))
    sign = -1 if members == "hard" else 1
    return np.lexsort((rows, sign * distance_to_centroid))
