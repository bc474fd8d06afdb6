"""How long training lasts: samples seen are the only clock, steps and epochs follow from them.

Two kinds of budget: a fixed number of samples (DataComp: every arm sees as many pairs), or a fixed
number of epochs over the kept set (density-based pruning on LAION: a smaller set costs less). The
number of loader workers, checkpoints or devices never enters.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from dbp.errors import ConfigError


@dataclass(frozen=True)
class Horizon:
    """The length of one training run."""

    num_kept: int  # pairs in the kept set, m
    batch_size: int  # pairs in one step, over all devices
    steps: int  # optimiser steps
    mixed_epochs: float | None = None  # of a mixture: a pair of weight w is seen w times in each, in the mean
    candidates: int | None = None  # of one step, where its batch is chosen among more

    @property
    def read(self) -> int:
        """Pairs of the stream that one step takes up: its candidates, or its batch."""
        return self.candidates or self.batch_size

    @property
    def samples_read(self) -> int:
        """Pairs of the stream that the run takes up."""
        return self.steps * self.read

    @property
    def samples_seen(self) -> int:
        """Pairs that go through the model, repeats counted."""
        return self.steps * self.batch_size

    @property
    def passes(self) -> float:
        """How often each kept pair is taken up, in the mean: the main confound between arms.

        It is seen as often, unless batches are chosen among candidates.
        """
        return self.passes_in(self.samples_seen)

    def passes_in(self, samples: int) -> float:
        """How often each kept pair is taken up while so many samples are seen, in the mean."""
        if self.mixed_epochs is None:
            return samples * self.read // self.batch_size / self.num_kept
        return samples / self.samples_seen * self.mixed_epochs

    def steps_for(self, samples: int) -> int:
        """Steps that see at least so many samples; at least one."""
        return max(1, -(-samples // self.batch_size))


def whole_steps(samples_seen: int, batch_size: int, rounds: bool = False) -> int:
    """The steps of a budget in samples.

    Args:
        rounds: Take the nearest whole number of batches, half up, and at least one.

    Raises:
        ConfigError: The budget is not a whole number of batches; the message names its neighbours.
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


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long training lasts, in one of two kinds.

    Args:
        batch_size: Pairs in one step, over all devices; each is a negative of all others.
        samples_seen: The budget in pairs seen, a multiple of the batch; or
        epochs: the budget in passes over the kept set. Exactly one of the two.
        round_budget: Take the nearest whole number of batches where `samples_seen` is none, and say
            so; otherwise it is refused.
        budget: What `samples_seen` holds equal: the `samples` that are trained on, or the `flops` that so many cost
            where nothing is chosen; scoring candidates is then paid in steps.
    """

    batch_size: int
    samples_seen: int | None = None
    epochs: float | None = None
    round_budget: bool = False
    budget: Literal["samples", "flops"] = "samples"

    @property
    def fixed_steps(self) -> int | None:
        """The steps of a budget in samples; none of one in epochs.

        Raises:
            ConfigError: It is not a whole number of batches.
        """
        samples = self.samples_seen
        return None if samples is None else whole_steps(samples, self.batch_size, self.round_budget)

    def check_budget(self) -> None:
        """Refuse a budget of no kind, of both, or in samples that are not whole batches.

        Raises:
            ConfigError: It is one of these.
        """
        if (self.samples_seen is None) == (self.epochs is None):
            given = ["null" if value is None else f"{value:,}" for value in (self.samples_seen, self.epochs)]
            raise ConfigError(
                f"samples_seen={given[0]} and train.epochs={given[1]}: exactly one must be set. Give "
                "train.samples_seen for equal compute between arms, or train.epochs for equal passes "
                "over each kept set; the other one is null (train.samples_seen=null train.epochs=N)."
            )
        _ = self.fixed_steps
        if self.budget == "flops" and self.samples_seen is None:
            raise ConfigError(
                f"budget=flops with train.epochs={self.epochs:g}: a budget in FLOPs is the work of a number of "
                "samples. Give train.samples_seen=N train.epochs=null, or train.budget=samples."
            )

    def horizon(self, num_kept: int, candidates: int | None = None) -> Horizon:
        """The length of a run over a kept set; a budget in epochs is cut to whole batches.

        Args:
            candidates: Of one step, where its batch is chosen among more: passes are then passes of these.

        Raises:
            ConfigError: Fewer pairs are kept than one batch holds, the budget is not a whole number of
                batches, or it makes no step at all.
        """
        batch = self.batch_size
        read = candidates or batch
        if candidates is not None and num_kept < candidates:
            raise ConfigError(
                f"cannot choose among {candidates:,} candidates (online.super_batch, or online.filter_ratio at "
                f"train.batch_size={batch:,}) with {num_kept:,} kept samples: a super-batch would hold a pair "
                "twice. Lower one of them, or keep more samples (budget.keep_fraction, budget.num_kept)."
            )
        if num_kept < batch:
            raise ConfigError(
                f"cannot train on {num_kept:,} kept samples with train.batch_size={batch:,}: one "
                "batch would hold a pair twice. Lower train.batch_size, or keep more samples "
                "(budget.keep_fraction, budget.num_kept)."
            )
        if (steps := self.fixed_steps) is None:
            # The decimal as written: 0.3 epochs of 10 pairs are 3 pairs, not 2.9999.
            steps = int(Decimal(str(self.epochs)) * num_kept) // read
        if steps == 0:
            raise ConfigError(
                f"train.epochs={self.epochs:g} over {num_kept:,} kept samples is less than one batch of "
                f"train.batch_size={batch:,}{f', chosen among {read:,}' if read > batch else ''}. Raise "
                "train.epochs, or lower train.batch_size."
            )
        return Horizon(num_kept, batch, steps, candidates=candidates)
