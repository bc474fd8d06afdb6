"""Dot products in which equal vectors tie exactly.

A matrix product may round two equal columns differently where it cuts them into blocks. Twin class
names and equal captions must tie, not win by luck, so each distinct vector is multiplied once.
"""

import numpy as np
from jaxtyping import Float, Int


def distinct_rows(vectors: Float[np.ndarray, "m d"]) -> tuple[Float[np.ndarray, "u d"], Int[np.ndarray, " m"]]:
    """Find the distinct vectors, in order of first appearance, and which one each row is."""
    place: dict[bytes, int] = {}
    number = [place.setdefault(vector.tobytes(), len(place)) for vector in vectors]
    column = np.array(number, dtype=np.int64)
    _, first = np.unique(column, return_index=True)
    return vectors[first], column


def score(
    queries: Float[np.ndarray, "q d"], distinct: Float[np.ndarray, "u d"], column: Int[np.ndarray, " m"]
) -> Float[np.ndarray, "q m"]:
    """Multiply queries with items, given as `distinct_rows` gives them."""
    products = queries @ distinct.T
    return products if len(distinct) == len(column) else products[:, column]
