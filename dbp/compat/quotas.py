"""How many rows of each cluster: exactly, or with the published script's bounds and rounding."""

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from jaxtyping import Float, Float32, Int, Int64

from dbp.errors import BudgetError, WorldError
from dbp.selection.quotas import allocate, project

MOST_NEGATIVE = 10  # the script stops at so many complexities below zero


@dataclass(frozen=True)
class Quotas:
    """Rows to keep of each cluster, and what they came from.

    Args:
        target: Rows to keep in all, T.
        counts: Of each cluster. In reference mode their sum may miss T, and a cluster without rows may have -1.
        floor: Rows that each cluster keeps at least, if it has them, m.
    """

    target: int
    counts: Int64[np.ndarray, " k"]
    floor: int


def exact_quotas(
    sizes: Int[np.ndarray, " k"], shares: Float[np.ndarray, " k"], keep_ratio: float, total: int, balance: float
) -> Quotas:
    """Quotas that sum to T, within their bounds, nearest to T times the shares.

    T is the floor of the exact decimal product of `keep_ratio` and `total`. Each cluster keeps at least
    min(m, n_j) and at most n_j rows, m being the floor of balance * T / k, and at least 1.

    Args:
        sizes: Rows of each cluster, n_j.
        shares: Of each cluster, summing to 1.
        keep_ratio: Fraction kept, in (0, 1].
        total: Rows that the fraction refers to.
        balance: Share of an equal division of T that every cluster keeps, in [0, 1].

    Raises:
        BudgetError: T is nil, below the floors' sum or above the rows' number.
    """
    target = int(Decimal(str(keep_ratio)) * total)
    floor = max(1, int(Decimal(str(balance)) * target / max(len(sizes), 1)))
    lower = np.minimum(floor, sizes)
    _check(target, lower, sizes, keep_ratio, total)
    return Quotas(target, allocate(target * np.asarray(shares), target, lower, sizes), floor)


def reference_quotas(
    sizes: Int[np.ndarray, " k"],
    complexity: Float[np.ndarray, " k"],
    temperature: float,
    keep_ratio: float,
    total: int,
    balance: float,
) -> Quotas:
    """The published script's counts, its quadratic programme being solved exactly.

    As there: T = int(keep_ratio * total), so that 0.29 of 100 is 28; m = int(T / k * balance), or 1 where
    balance is 0; bounds min(m, n_j - 1) and n_j, so that an empty cluster's are -1 and 0; NaN is replaced
    by the mean of the others; shares by a softmax in float32; each count rounded half to even, and the sum
    not repaired. Not as there: its solver stops within a tolerance, which moves counts by thousands
    and lets them exceed a cluster's rows.

    Args:
        sizes: Rows of each cluster, n_j.
        complexity: Of each cluster, C_j; NaN where it has none.
        temperature: Divides C in the softmax; above 0.
        keep_ratio: Fraction kept, in (0, 1].
        total: Rows that the fraction refers to.
        balance: Share of an equal division of T that every cluster keeps, in [0, 1].

    Raises:
        BudgetError: T is nil, below the floors' sum or above the rows' number, where the script crashes.
        WorldError: Ten or more complexities are negative, or none is a number.

    Source:
        amro-kamal/effective_pruning 42c8e54, prune.py.
    """
    k = len(sizes)
    target = int(keep_ratio * total)
    floor = int((target / k) * balance) if balance > 0 else 1
    lower = np.minimum(floor, np.asarray(sizes) - 1)
    _check(target, lower, sizes, keep_ratio, total)
    shares = reference_shares(complexity, temperature)
    exact = project(shares * np.float32(target), target, lower, sizes)
    return Quotas(target, np.rint(exact).astype(np.int64), floor)


def reference_shares(complexity: Float[np.ndarray, " k"], temperature: float) -> Float32[np.ndarray, " k"]:
    """The script's shares: NaN filled with the mean of the others, softmax in float32.

    Raises:
        WorldError: Ten or more values are negative, or none is a number.
    """
    if (count := int((complexity < 0).sum())) >= MOST_NEGATIVE:
        raise WorldError(
            f"{count:,} clusters have a complexity below zero; the published script stops at "
            f"{MOST_NEGATIVE}. Cluster again with embeddings of unit length."
        )
    if np.isnan(complexity).all():
        raise WorldError("no cluster has a complexity: d_inter * d_intra is NaN for all of them.")
    filled = np.where(np.isnan(complexity), np.nanmean(complexity), complexity)
    logits = filled.astype(np.float32) / np.float32(temperature)
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def _check(
    target: int, lower: Int[np.ndarray, " k"], upper: Int[np.ndarray, " k"], keep_ratio: float, total: int
) -> None:
    said = f"--prune-ratio={keep_ratio} (kept) of {total:,} rows"
    if target < 1:
        raise BudgetError(f"{said} keeps no row. Raise --prune-ratio, the fraction KEPT.")
    if target > upper.sum():
        raise BudgetError(
            f"cannot keep {target:,} rows, {said}: the clusters hold {upper.sum():,}. Lower "
            "--prune-ratio, or leave --total-dataset-size out to count the files' rows."
        )
    if target < lower.sum():
        raise BudgetError(
            f"cannot keep only {target:,} rows, {said}: the floors of {len(lower):,} clusters sum to "
            f"{lower.sum():,}. Raise --prune-ratio, or lower --cls-bal-ratio."
        )
