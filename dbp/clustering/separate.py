"""Fewer centroids that stand apart: in their order, each stays unless it is too near to one that stays."""

import math

import numpy as np
from jaxtyping import Float32

NEAR = 1e-9  # cosines this near to the limit are summed exactly; float64 sums err by less than 1e-12


def apart(
    centroids: Float32[np.ndarray, "k d"], most_cosine: float, block: int = 512
) -> Float32[np.ndarray, "m d"]:
    """The centroids whose cosine to each one kept before them is below a limit. Order matters; 2 k m d operations.

    Args:
        centroids: Of unit length; the first one always stays.
        most_cosine: The limit, in (-1, 1].

    Source: Liang et al. 2026, refinement of centres with 0.70.
    """
    values = centroids.astype(np.float64)
    kept = np.empty_like(values)
    numbers: list[int] = []
    for start in range(0, len(values), block):
        own = values[start : start + block]
        near = own @ kept[: len(numbers)].T  # to those kept before this block
        beside = own @ own.T
        there, new = len(numbers), []
        for at in range(len(own)):
            found = np.r_[near[at], beside[at, new]]
            unclear = np.flatnonzero(np.abs(found - most_cosine) < NEAR)
            for place in unclear:  # products of fp32 numbers are exact in float64, and fsum rounds once
                other = kept[place] if place < there else own[new[place - there]]
                found[place] = math.fsum(own[at] * other)
            if not (found >= most_cosine).any():
                new.append(at)
        kept[there : there + len(new)] = own[new]
        numbers += [start + at for at in new]
    return centroids[numbers]
