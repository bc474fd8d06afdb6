"""What choosing while training costs: samples read, decoded and scored, operations and seconds; and equal FLOPs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dbp.errors import ConfigError
from training.account.cost import CountFlops
from training.account.horizon import Budget

SUMS = ("candidates", "samples_decoded", "samples_scored", "choice_seconds")


@dataclass(frozen=True)
class Rates:
    """Operations for one pair.

    Args:
        training: Forward and backward, at full context length; none where they cannot be counted.
        scoring: Of the learner's forward pass over a candidate, likewise; 0 where it scores none.
        count_scoring: The same by the length of the caption, as they are made.
    """

    training: int | None
    scoring: int | None
    count_scoring: CountFlops


class Price:
    """Sums over the steps of a run, as its batches say them.

    Each rank notes its own since the ranks settled; `settle` adds them up.
    """

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.total: dict[str, Any] = dict.fromkeys(SUMS, 0)
        self.here: dict[str, Any] = dict.fromkeys(SUMS, 0)

    def note(self, batch: Mapping[str, Any]) -> None:
        """Note this rank's share of a step."""
        for name in SUMS:
            self.here[name] += batch.get(name, 0)

    def settle(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Add what all ranks noted."""
        for name in SUMS:
            self.total[name] += sum(one[name] for one in told)
        self.here = dict.fromkeys(SUMS, 0)

    def counts(self, is_gpu: bool) -> dict[str, Any]:
        """For rows of metrics and the manifest; seconds are of devices, or of loader workers before decoding."""
        scored, each = self.total["samples_scored"], self.rates.scoring
        seconds = self.total["choice_seconds"]
        return {
            **self.total,
            "choice_seconds": round(seconds, 3),
            "scoring_flops": None if each is None else each * scored,
            "scoring_gpu_hours": round(seconds / 3600, 6) if is_gpu and scored else 0.0,
        }


def affordable(budget: Budget, candidates: int, rates: Rates, reference_flops: int | None, runs: int) -> Budget:
    """The budget in samples whose FLOPs are those of `budget` where nothing is chosen.

    Each step pays for its batch, forward and backward, and for scoring its candidates; the run pays its part of the
    reference's vectors. The rest that makes no whole step is left.

    Args:
        candidates: Of one step.
        reference_flops: Of all vectors of the reference.
        runs: That share the cost of the reference's vectors.

    Raises:
        ConfigError: Operations cannot be counted, or pay for no step.
    """
    batch = budget.batch_size
    if rates.training is None or rates.scoring is None or reference_flops is None:
        what = "vectors that are read" if reference_flops is None else "a model that cannot be traced"
        raise ConfigError(
            f"train.budget=flops: the FLOPs of {what} are not known. Give train.budget=samples, or another "
            f"{'online.reference' if reference_flops is None else 'model'}."
        )
    steps = budget.fixed_steps
    assert steps is not None, "a budget in samples"
    have = steps * batch * rates.training
    shared = reference_flops // runs
    each = batch * rates.training + candidates * rates.scoring
    if (left := (have - shared) // each) < 1:
        raise ConfigError(
            f"train.budget=flops: {have:.3g} FLOPs, of train.samples_seen={steps * batch:,}, pay for no step: "
            f"the part of the reference's vectors (online.runs={runs}) is {shared:.3g}, a step {each:.3g}. Raise "
            "train.samples_seen, or online.runs if more runs share these vectors."
        )
    return Budget(batch_size=batch, samples_seen=int(left) * batch)
