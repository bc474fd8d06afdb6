"""The triangle of one cluster: each row against the rows that come earlier, in tiles, exactly.

Memory holds one strip of the triangle, whatever the cluster's size. A tile is one fp32 matrix product; the
few entries that could raise a row's best are looked at exactly (`kernels.py`), so the answer
depends on neither tile, thread nor device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64, Int

from dbp.exact.products import side_by_side

ROWS, COLUMNS = 1024, 2048  # of a tile: 8 MB of fp32
IN_MEMORY = 64 << 20  # bytes of a cluster that are kept in fp32, so that tiles need no conversion

Combine = Literal["min", "max"]


@dataclass
class Side:
    """A cluster's vectors in the order of comparison, read tile by tile.

    Args:
        stored: fp16, or any float; memory-mapped where it is large.
        order: `order[0]` comes first.
    """

    stored: Any
    order: np.ndarray

    def __post_init__(self) -> None:
        from dbp.exact.kernels import paired

        n, d = self.stored.shape
        self.whole = self.read(0, n) if 4 * n * d <= IN_MEMORY else None
        self.norms = np.empty(n)
        for at in range(0, n, COLUMNS):
            own = self.tile(at, min(at + COLUMNS, n))
            paired(own, own, self.norms[at : at + COLUMNS])
        np.sqrt(self.norms, out=self.norms)
        if not (np.isfinite(self.norms).all() and (self.norms > 0).all()):
            bad = self.order[np.flatnonzero(~(np.isfinite(self.norms) & (self.norms > 0)))[0]]
            raise ValueError(f"vector {bad} is zero or not finite, so it has no direction")
        self.inverse32 = (1 / self.norms).astype(np.float32)

    def tile(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of the order, in fp32."""
        return self.whole[start:stop] if self.whole is not None else self.read(start, stop)

    def read(self, start: int, stop: int) -> np.ndarray:
        """As `tile`, from the stored vectors."""
        from dbp.exact.products import widened

        block = np.ascontiguousarray(self.stored[self.order[start:stop]])  # a tile's worth, or a small cluster
        return widened(block).numpy() if block.dtype == np.float16 else block.astype(np.float32)


def nearest_earlier(
    vectors: Float[np.ndarray, "n d"] | Sequence[Float[np.ndarray, "n _"]],
    order: Int[np.ndarray, " n"],
    combine: Combine = "min",
    threads: int = 1,
    device: str = "cpu",
) -> tuple[Float64[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """For each row, the best cosine to a row that comes earlier in an order, and which row that is.

    Args:
        vectors: Any length but zero; with several (n, d) arrays two rows are as similar as their least
            (`min`) or most (`max`) similar side.
        order: A permutation of 0..n-1; `order[0]` comes first.
        threads: Strips of the triangle worked on at once.

    Returns:
        Similarity in [-1, 1], and the row that has it (of equal ones the earliest in the order), both by
        row. The first row in the order has none before it: -inf and -1.

    Raises:
        ValueError: `order` is no permutation, or a vector is zero or not finite.
    """
    sides = _sides(vectors, order)
    n = len(order)
    best, partner = np.full(n, -np.inf), np.full(n, -1, np.int64)

    def strip(start: int) -> None:
        stop = min(start + ROWS, n)
        room = np.empty(ROWS * COLUMNS, np.float32)  # fresh memory for each tile would cost more
        for before in range(0, stop, COLUMNS):
            until = min(before + COLUMNS, stop)
            _improve(
                sides, slice(start, stop), slice(before, until), combine, device, room,
                best[start:stop], partner[start:stop],
            )  # fmt: skip

    # The longest strips first, so that threads end together.
    side_by_side(strip, list(range(0, n, ROWS))[::-1], threads)
    similarity, twin = np.full(n, -np.inf), np.full(n, -1, np.int64)
    similarity[order] = best
    twin[order] = np.where(partner >= 0, order[np.maximum(partner, 0)], -1)
    return similarity, twin


def similar_pairs(
    vectors: Float[np.ndarray, "n d"] | Sequence[Float[np.ndarray, "n _"]],
    order: Int[np.ndarray, " n"],
    floor: float,
    combine: Combine = "min",
    threads: int = 1,
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """All pairs more similar than a floor: the later row, the earlier row, their similarity.

    Sorted by the later row's place in the order, then the earlier row's.
    """
    sides = _sides(vectors, order)
    n = len(order)

    def strip(start: int) -> list[tuple[np.ndarray, ...]]:
        stop = min(start + ROWS, n)
        return [
            _pairs(sides, slice(start, stop), slice(at, min(at + COLUMNS, stop)), combine, floor)
            for at in range(0, stop, COLUMNS)
        ]

    found = [tile for tiles in side_by_side(strip, list(range(0, n, ROWS)), threads) for tile in tiles]
    empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    later, earlier, similarity = (np.concatenate(c) for c in zip(empty, *found, strict=True))
    by = np.lexsort((earlier, later))
    return order[later[by]], order[earlier[by]], similarity[by]


def _sides(vectors: Any, order: np.ndarray) -> list[Side]:
    several = vectors if isinstance(vectors, list | tuple) else [vectors]
    n = len(several[0])
    if len(order) != n or not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(f"order must hold each of 0..{n - 1} once")
    return [Side(side, order) for side in several]


def _improve(
    sides: list[Side],
    rows: slice,
    columns: slice,
    combine: Combine,
    device: str,
    room: np.ndarray,
    best: np.ndarray,
    partner: np.ndarray,
) -> None:
    """Raise the running best of a strip's rows by a tile."""
    from dbp.exact.kernels import improve

    triangle = rows.start - columns.start
    if len(sides) == 1 and device == "cpu":
        (side,) = sides
        a, b = side.tile(rows.start, rows.stop), side.tile(columns.start, columns.stop)
        improve(
            _product(a, b, room), a, b, side.norms[rows], side.norms[columns], side.inverse32[columns],
            columns.start, best, partner, triangle,
        )  # fmt: skip
        return
    at, which, exact = _candidates(sides, rows, columns, combine, device, best, triangle)
    # First among equals: candidates come by row, then by place in the order.
    for i, j, value in zip(at.tolist(), which.tolist(), exact.tolist(), strict=True):
        if value > best[i]:
            best[i], partner[i] = value, columns.start + j


def _pairs(
    sides: list[Side], rows: slice, columns: slice, combine: Combine, floor: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    limit = np.full(rows.stop - rows.start, floor)
    triangle = rows.start - columns.start
    at, which, exact = _candidates(sides, rows, columns, combine, "cpu", limit, triangle, all_=True)
    over = exact > floor
    return rows.start + at[over], columns.start + which[over], exact[over]


def _candidates(
    sides: list[Side],
    rows: slice,
    columns: slice,
    combine: Combine,
    device: str,
    limit: np.ndarray,
    triangle: int,
    all_: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of a tile that fp32 leaves open above a limit for each row, with their exact similarity.

    Without `all_` only those near the row's largest.
    """
    import torch

    from dbp.exact.kernels import UNDECIDED, paired

    tiles = [(side.tile(rows.start, rows.stop), side.tile(columns.start, columns.stop)) for side in sides]
    cosine: Any = None
    for side, (a, b) in zip(sides, tiles, strict=True):
        product = _scaled(a, b, side.inverse32[rows], side.inverse32[columns], device)
        if cosine is None:
            cosine = product
        else:
            cosine = (torch.minimum if combine == "min" else torch.maximum)(cosine, product)
    earlier = torch.arange(cosine.shape[1], device=cosine.device)
    own = torch.arange(cosine.shape[0], device=cosine.device)[:, None] + triangle
    cosine = torch.where(earlier < own, cosine, -torch.inf)
    bound = torch.from_numpy(limit.astype(np.float32)).to(cosine.device)
    if not all_:
        bound = torch.maximum(bound, cosine.amax(1))
    at, which = torch.nonzero((cosine >= (bound - UNDECIDED)[:, None]) & (cosine > -torch.inf), as_tuple=True)
    at, which = at.cpu().numpy(), which.cpu().numpy()
    similar = []
    for side, (a, b) in zip(sides, tiles, strict=True):
        exact = np.empty(len(at))
        for start in range(0, len(at), 8192):
            span = slice(start, start + 8192)
            paired(a[at[span]], b[which[span]], exact[span])
        norms = side.norms[rows][at] * side.norms[columns][which]
        similar.append(np.minimum(exact / norms, 1.0))
    together: Callable[..., Any] = np.minimum if combine == "min" else np.maximum
    return at, which, together.reduce(similar)


def _product(a: np.ndarray, b: np.ndarray, room: np.ndarray) -> np.ndarray:
    import torch

    out = room[: len(a) * len(b)].reshape(len(a), len(b))
    torch.mm(torch.from_numpy(a), torch.from_numpy(b).T, out=torch.from_numpy(out))
    return out


def _scaled(a: np.ndarray, b: np.ndarray, by_a: np.ndarray, by_b: np.ndarray, device: str) -> Any:
    """Cosines of two tiles. On a GPU the stored fp16 numbers are multiplied, with fp32 output."""
    import torch

    left, right, scale_a, scale_b = (torch.from_numpy(x).to(device) for x in (a, b, by_a, by_b))
    if device == "cpu":
        return (left @ right.T) * scale_a[:, None] * scale_b
    product = torch.mm(left.half(), right.half().T, out_dtype=torch.float32)
    return product * scale_a[:, None] * scale_b
