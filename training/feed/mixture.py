"""Weighted mixtures: how often each kept sample stands in an epoch.

A sample of weight w stands there floor(w) times, and once more with probability frac(w), drawn anew for each epoch
from (seed, epoch, uid). Each copy has a place and an augmentation of its own. So an epoch's length varies, and the
stream is still a pure function of the position. Weight 1 everywhere is `Order`, bit for bit.

Weights come from a keep list that says how often each row is taken, from `mixture=`, or are the product of both.

Memory, measured: 4 bytes a kept row for its weight; 9 bytes for each pair of the last two epochs
(`Order`: 8; 10 where a weight is above 255); 46 bytes a pair while an epoch is sorted (`Order`: 24).
"""

from decimal import Decimal
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt16, UInt64

from dbp.errors import ConfigError
from training.account.horizon import Budget, Horizon
from training.feed.order import MIXTURE, Order, copy_keys, mix, stream

MOST = 65_535  # copies of a sample in an epoch: one byte counts them, or two
BLOCK = 1 << 20  # rows whose random numbers are made at a time
Source = Literal["mixture", "keep list", "both"]
SOURCES: dict[Source, str] = {
    "mixture": "mixture",
    "keep list": "the keep list",
    "both": "the keep list times those of mixture",
}
_SELECTION = (
    "select.draws (soft_cap, hard_cap) or the budget, set select.clip=true (dynamics), or correct the imported list"
)
LOWER: dict[Source, str] = {
    "mixture": "Correct the weights of mixture",
    "keep list": f"Lower {_SELECTION}",
    "both": f"Correct the weights of mixture, lower {_SELECTION}",
}
RAISE: dict[Source, str] = {
    "mixture": "Raise the weights of mixture, or leave mixture out",
    "keep list": "Raise the budget or select.draws, so that the keep list has more draws",
    "both": "Raise the weights of mixture or leave it out, or raise the budget or select.draws of the keep list",
}


class MixedOrder(Order):
    """The endless stream of a mixture: epoch after epoch, each with its own copies.

    Args:
        weights: How often each kept sample stands in an epoch, in the mean; from 0 to 65,535.
        source: Where they come from, for messages: one of `SOURCES`.

    Raises:
        ConfigError: A weight is out of range, or their sum is below 1.
    """

    num_columns: ClassVar[int] = 2

    def __init__(
        self,
        keys: UInt64[np.ndarray, " m"],
        seed: int,
        weights: Float32[np.ndarray, " m"],
        windows: Any = None,
        source: Source = "mixture",
    ) -> None:
        super().__init__(keys, seed, windows)
        check_weights(weights, source)
        self.source: Source = source
        self.weights = weights
        self.count = np.uint8 if weights.max() <= 255 else np.uint16
        self._ends = [0]  # pairs before each epoch that was reached, and behind the last

    def about(self) -> dict[str, Any]:
        return {
            "draws": round(float(self.weights.sum(dtype=np.float64)), 2),
            "most_draws_of_a_sample": round(float(self.weights.max()), 4),
        }

    def counts(self, number: int) -> UInt8[np.ndarray, " m"] | UInt16[np.ndarray, " m"]:
        """How often each kept sample stands in an epoch."""
        word = stream(self.seed, np.array([number], np.int64), MIXTURE)
        found = np.empty(len(self.keys), self.count)
        for start in range(0, len(found), BLOCK):
            rows = slice(start, start + BLOCK)
            weights = self.weights[rows]
            whole = np.floor(weights)
            drawn = (mix(self.keys[rows] ^ word) >> np.uint64(11)).astype(np.float64) * 2.0**-53
            found[rows] = whole.astype(self.count) + (drawn < weights - whole)
        return found

    def start(self, number: int) -> int:
        while len(self._ends) <= number:
            length = int(self.counts(len(self._ends) - 1).sum(dtype=np.int64))
            self._ends.append(self._ends[-1] + length)
        return self._ends[number]

    def _make(self, number: int) -> tuple[np.ndarray, ...]:
        counts = self.counts(number)
        samples = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        copies = np.zeros(len(samples), self.count)
        keys = self.keys[samples]
        if counts.max(initial=0) > 1:
            starts = np.cumsum(counts, dtype=np.int64) - counts
            copies[:] = np.arange(len(samples)) - np.repeat(starts, counts)
            keys = copy_keys(keys, copies)
        order = self._sorted(number, keys, samples)
        return samples[order], copies[order]

    def epochs_of(self, positions: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        while self._ends[-1] <= positions.max(initial=0):
            self.start(len(self._ends))
        # An empty epoch begins where the next one does; the last one that begins there is meant.
        return np.searchsorted(self._ends, positions, side="right") - 1

    def pairs(self, epochs: float) -> int:
        """Pairs in so many epochs, a part of one included."""
        whole, part = divmod(Decimal(str(epochs)), 1)
        start = self.start(int(whole))
        return start + int(part * (self.start(int(whole) + 1) - start)) if part else start

    def passes(self, samples_seen: int) -> float:
        """Epochs that so many pairs are."""
        number = int(self.epochs_of(np.array([samples_seen]))[0])
        start = self.start(number)
        return number + (samples_seen - start) / (self.start(number + 1) - start)


def mixed_horizon(order: MixedOrder, budget: Budget, candidates: int | None = None) -> Horizon:
    """The length of a run over a mixture, whose passes are its epochs; one in epochs is cut to whole batches.

    Args:
        candidates: Of one step, where its batch is chosen among more: passes are then passes of these.

    Raises:
        ConfigError: An epoch is shorter than a batch in the mean, or the budget makes no step.
    """
    batch_size, steps, epochs = budget.batch_size, budget.fixed_steps, budget.epochs
    kept, expected = len(order.keys), float(order.weights.sum(dtype=np.float64))
    read = candidates or batch_size
    if expected < read:
        among = f", chosen among {read:,} candidates" if candidates else ""
        raise ConfigError(
            f"cannot train on {kept:,} kept samples whose weights, of {SOURCES[order.source]}, sum to "
            f"{expected:,.2f} with train.batch_size={batch_size:,}{among}: an epoch would be less "
            f"than one {'super-' if candidates else ''}batch. {RAISE[order.source]}, or lower train.batch_size."
        )
    if steps is None:
        assert epochs is not None
        steps = order.pairs(epochs) // read
        if steps == 0:
            raise ConfigError(
                f"train.epochs={epochs:g} is less than one batch of train.batch_size={batch_size:,}: by the "
                f"weights of {SOURCES[order.source]} an epoch has {expected:,.2f} pairs. Raise train.epochs, or "
                "lower train.batch_size."
            )
    return Horizon(kept, batch_size, steps, order.passes(steps * read), candidates)


def check_weights(weights: Float32[np.ndarray, " m"], source: Source = "mixture") -> None:
    """Refuse weights that no epoch can honour.

    Raises:
        ConfigError: One is negative, not finite or above 65,535, or they sum to less than 1.
    """
    bad = np.flatnonzero(~((weights >= 0) & (weights <= MOST)))  # NaN too
    if len(bad):
        raise ConfigError(
            f"{len(bad):,} of {len(weights):,} kept samples have a weight of {SOURCES[source]} that is "
            f"not from 0 to {MOST:,}; the first is {weights[bad[0]]} for kept sample {bad[0]:,}. A "
            f"weight says how often a sample stands in an epoch. {LOWER[source]}."
        )
    if (total := float(weights.sum(dtype=np.float64))) < 1:
        raise ConfigError(
            f"the weights of {len(weights):,} kept samples, of {SOURCES[source]}, sum to {total:g}, so an "
            f"epoch would be empty. {RAISE[source]}."
        )
