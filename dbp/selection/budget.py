"""One budget for every method: how many rows to keep, as one integer."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from dbp.errors import BudgetError


@dataclass(frozen=True)
class Budget:
    """Exactly one of three ways to say how many rows stay.

    Args:
        prune_ratio: Fraction removed, in [0, 1). (The published DBP script calls so what it keeps.)
        keep_fraction: Fraction kept, in (0, 1].
        num_kept: Rows kept.
        of: The rows that a fraction refers to: the `pool`'s valid rows, those left by `dedup`, or those
            left by the filter (`filtered`).
    """

    prune_ratio: float | None = None
    keep_fraction: float | None = None
    num_kept: int | None = None
    of: Literal["pool", "dedup", "filtered"] = "dedup"

    def __post_init__(self) -> None:
        given = {n: v for n in ("prune_ratio", "keep_fraction", "num_kept") if (v := getattr(self, n)) is not None}
        if len(given) != 1:
            said = " and ".join(f"budget.{n}={v}" for n, v in given.items()) or "none of them"
            raise BudgetError(
                "give exactly one of budget.prune_ratio (fraction removed), budget.keep_fraction and "
                f"budget.num_kept; given: {said}. On the command line, null unsets one."
            )
        ((name, value),) = given.items()
        low = value > 0 if name != "prune_ratio" else value >= 0
        high = value < 1 if name == "prune_ratio" else value <= 1 or name == "num_kept"
        if not (low and high):
            span = {
                "prune_ratio": "at least 0 and below 1",
                "keep_fraction": "above 0 and at most 1",
                "num_kept": "at least 1",
            }[name]
            raise BudgetError(f"{name}={value}: it must be {span}")

    def resolve(self, num_of: int, num_available: int) -> int:
        """The number of rows to keep: the floor of the exact decimal product.

        Args:
            num_of: Rows that the fraction refers to.
            num_available: Rows that can be chosen from.

        Raises:
            BudgetError: More than can be chosen from, or none.
        """
        if self.num_kept is not None:
            wanted, said = self.num_kept, f"budget.num_kept={self.num_kept:,}"
        elif self.keep_fraction is not None:
            wanted = int(Decimal(str(self.keep_fraction)) * num_of)
            said = f"budget.keep_fraction={self.keep_fraction} of {num_of:,} rows (budget.of={self.of})"
        else:
            wanted = int((1 - Decimal(str(self.prune_ratio))) * num_of)
            said = f"budget.prune_ratio={self.prune_ratio} of {num_of:,} rows (budget.of={self.of})"
        if wanted > num_available:
            raise BudgetError(
                f"cannot keep {wanted:,} rows ({said}): {num_available:,} are left after dedup and filter. "
                "Lower the budget, let more rows through (dedup.epsilon, filter), or set budget.of=filtered."
            )
        if wanted < 1:
            raise BudgetError(f"{said} keeps no row. Raise the budget.")
        return wanted
