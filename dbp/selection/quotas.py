"""How many rows to keep in each cluster: the exact solution of DBP's quadratic programme.

    minimise sum_j (x_j - t_j)^2   subject to   sum_j x_j = budget,  lower_j <= x_j <= upper_j

By the Karush-Kuhn-Tucker conditions x_j = clip(t_j + lambda, lower_j, upper_j) for one lambda, found by
sorting the 2k values of lambda at which a bound begins or ends to hold. O(k log k), no tolerance.
Abbas et al. 2024 solve it with a general solver at its default tolerance, then round each alone.
"""

import numpy as np
from jaxtyping import Float, Float64, Int

from dbp.errors import BudgetError


def project(
    targets: Float[np.ndarray, " k"],
    budget: float | int,
    lower: Float[np.ndarray, " k"] | Int[np.ndarray, " k"],
    upper: Float[np.ndarray, " k"] | Int[np.ndarray, " k"],
) -> Float64[np.ndarray, " k"]:
    """The nearest point to the targets that sums to the budget within the bounds.

    Args:
        targets: Wished for rows of each cluster, T * P_j.
        budget: Rows to keep in all.
        lower: Fewest rows of each cluster.
        upper: Most rows of each cluster: its size.

    Returns:
        Continuous quotas in float64, of sum `budget` up to rounding.

    Raises:
        BudgetError: The bounds cross, or their sums do not enclose the budget; it gives both sums.
        ValueError: A value is not finite.
    """
    targets, lower, upper = (np.asarray(a, np.float64) for a in (targets, lower, upper))
    for name, values in (("targets", targets), ("lower", lower), ("upper", upper)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite; cluster {int(np.argmin(np.isfinite(values)))} is not")
    if not np.isfinite(budget):
        raise ValueError(f"budget must be finite; it is {budget}")
    _check(budget, lower, upper, slack=1e-9 * max(1.0, abs(budget)))
    if len(targets) == 0:
        return targets
    # g(lambda) = sum clip(t + lambda, lower, upper) rises from sum(lower) to sum(upper), with slope
    # the number of clusters between their bounds; the slope changes at the sorted breakpoints.
    starts, ends = lower - targets, upper - targets
    breaks = np.concatenate([starts, ends])
    order = np.argsort(breaks, kind="stable")
    breaks = breaks[order]
    slope = np.cumsum(np.where(order < len(targets), 1.0, -1.0))
    reached = lower.sum() + np.concatenate([[0.0], np.cumsum(slope[:-1] * np.diff(breaks))])
    at = int(np.searchsorted(reached, budget, side="right")) - 1
    at = min(max(at, 0), len(breaks) - 1)
    multiplier = breaks[at] + ((budget - reached[at]) / slope[at] if slope[at] > 0 else 0.0)
    quotas = np.clip(targets + multiplier, lower, upper)
    # One Newton step on the free clusters takes back what the running sums lost to rounding.
    free = (quotas > lower) & (quotas < upper)
    if free.any():
        multiplier += (budget - quotas.sum()) / free.sum()
        quotas = np.clip(targets + multiplier, lower, upper)
    return quotas


def allocate(
    targets: Float[np.ndarray, " k"], budget: int, lower: Int[np.ndarray, " k"], upper: Int[np.ndarray, " k"]
) -> Int[np.ndarray, " k"]:
    """Whole quotas: the projection, rounded by largest remainders.

    They sum to the budget and keep the bounds; of equal remainders the lower cluster number wins.

    Raises:
        BudgetError: As `project`.
    """
    _check(budget, np.asarray(lower), np.asarray(upper), slack=0.0)
    exact = project(targets, budget, lower, upper)
    # A quota within rounding of a whole number is that number, so its remainder is nil and not one.
    near = np.rint(exact)
    exact = np.where(np.abs(exact - near) < max(1e-9, 1e-14 * budget), near, exact)
    whole = np.floor(exact).astype(np.int64)
    missing = int(budget) - int(whole.sum())
    remainder = exact - whole
    while missing > 0:
        # Rounding of the sums can leave more to give than there are remainders: then go round again.
        open_ = np.flatnonzero(whole < np.asarray(upper))
        best = open_[np.argsort(-remainder[open_], kind="stable")][:missing]
        whole[best] += 1
        remainder[best] -= 1
        missing -= len(best)
    while missing < 0:
        open_ = np.flatnonzero(whole > np.asarray(lower))
        best = open_[np.argsort(remainder[open_], kind="stable")][:-missing]
        whole[best] -= 1
        remainder[best] += 1
        missing += len(best)
    return whole


def _check(budget: float | int, lower: np.ndarray, upper: np.ndarray, slack: float) -> None:
    if (lower > upper).any():
        bad = int(np.argmax(lower > upper))
        raise BudgetError(f"cluster {bad} must keep at least {lower[bad]:g} and at most {upper[bad]:g} rows")
    low, high = float(lower.sum()), float(upper.sum())
    if budget < low - slack:
        raise BudgetError(
            f"cannot keep only {budget:,.10g} rows: the floors of {len(lower):,} clusters sum to {low:,.10g} "
            f"(their sizes to {high:,.10g}). Raise the budget, lower the floor (select.balance, "
            "select.min_per_cluster), or use fewer clusters."
        )
    if budget > high + slack:
        raise BudgetError(
            f"cannot keep {budget:,.10g} rows: the clusters hold {high:,.10g} (their floors sum to {low:,.10g}). "
            "Lower the budget, or let more rows through dedup and filter."
        )
