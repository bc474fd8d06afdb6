"""How long training lasts: samples seen are the only clock, steps and epochs follow from them.

Two kinds of budget: a fixed number of samples (DataComp: every arm sees as many pairs), or a fixed
number of epochs over the kept set (density-based pruning on LAION: a smaller set costs less). The
number of loader workers, checkpoints or devices never enters.
"""

from dataclasses import dataclass
from decimal import Decimal

from dbp.errors import ConfigError


@dataclass(frozen=True)
class Horizon:
    """The length of one training run.

    Args:
        num_kept: Pairs in the kept set, m.
        batch_size: Pairs in one step, over all devices.
        steps: Optimiser steps.
    """

    num_kept: int
    batch_size: int
    steps: int

    @property
    def samples_seen(self) -> int:
        """Pairs that go through the model, repeats counted."""
        return self.steps * self.batch_size

    @property
    def passes(self) -> float:
        """How often each kept pair is seen, in the mean: the main confound between arms."""
        return self.samples_seen / self.num_kept

    @property
    def unique_samples(self) -> int:
        """Different pairs seen; exact, since sampling is without replacement."""
        return min(self.num_kept, self.samples_seen)

    def steps_for(self, samples: int) -> int:
        """Steps that see at least so many samples; at least one."""
        return max(1, -(-samples // self.batch_size))


def whole_steps(samples_seen: int, batch_size: int, rounds: bool = False) -> int:
    """The steps of a budget in samples.

    Args:
        samples_seen: The budget in pairs.
        batch_size: Pairs in one step, over all devices.
        rounds: Take the nearest whole number of batches, half up, and at least one.

    Raises:
        ConfigError: The budget is no whole number of batches; the message names its neighbours.
    """
    steps, remainder = divmod(samples_seen, batch_size)
    if remainder == 0 and steps > 0:
        return steps
    if rounds:
        return max(1, steps + (2 * remainder >= batch_size))
    fits = [f"{s * batch_size:,} ({s:,} step{'s' * (s != 1)})" for s in (steps, steps + 1) if s > 0]
    raise ConfigError(
        f"samples_seen={samples_seen:,} is no whole number of batches of train.batch_size="
        f"{batch_size:,}: it makes {samples_seen / batch_size:,.2f} steps. Give train.samples_seen="
        f"{' or '.join(fits)}, another train.batch_size, or train.round_budget=true."
    )


def plan_horizon(
    num_kept: int,
    batch_size: int,
    samples_seen: int | None = None,
    epochs: float | None = None,
    rounds: bool = False,
) -> Horizon:
    """The horizon of a budget over a kept set.

    A budget in epochs is cut to whole batches: at most batch_size - 1 pairs fewer than asked.

    Args:
        num_kept: Pairs in the kept set.
        batch_size: Pairs in one step, over all devices.
        samples_seen: The budget in samples, or
        epochs: the budget in passes over the kept set; exactly one of the two.
        rounds: Whether a budget in samples may be rounded to whole batches.

    Raises:
        ConfigError: Fewer pairs are kept than one batch holds, the budget is no whole number of
            batches, or it makes no step at all.
    """
    check_budget_kind(samples_seen, epochs)
    if num_kept < batch_size:
        raise ConfigError(
            f"cannot train on {num_kept:,} kept samples with train.batch_size={batch_size:,}: one "
            "batch would hold a pair twice. Lower train.batch_size, or keep more samples "
            "(budget.keep_fraction, budget.num_kept)."
        )
    if samples_seen is not None:
        return Horizon(num_kept, batch_size, whole_steps(samples_seen, batch_size, rounds))
    # The decimal as written: 0.3 epochs of 10 pairs are 3 pairs, not 2.9999.
    steps = int(Decimal(str(epochs)) * num_kept) // batch_size
    if steps == 0:
        raise ConfigError(
            f"train.epochs={epochs:g} over {num_kept:,} kept samples is less than one batch of "
            f"train.batch_size={batch_size:,}. Raise train.epochs, or lower train.batch_size."
        )
    return Horizon(num_kept, batch_size, steps)


def check_budget_kind(samples_seen: int | None, epochs: float | None) -> None:
    """Refuse a budget of no kind, or of both.

    Raises:
        ConfigError: Not exactly one is given.
    """
    if (samples_seen is None) == (epochs is None):
        given = ["null" if value is None else f"{value:,}" for value in (samples_seen, epochs)]
        raise ConfigError(
            f"samples_seen={given[0]} and train.epochs={given[1]}: exactly one must be set. Give "
            "train.samples_seen for equal compute between arms, or train.epochs for equal passes "
            "over each kept set; the other one is null (train.samples_seen=null train.epochs=N)."
        )
