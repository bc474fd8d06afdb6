"""Weighted mixtures: how often each kept sample stands in an epoch.

A sample of weight w stands there floor(w) times, and once more with probability frac(w), drawn anew
for each epoch from (seed, epoch, uid). Each copy has a place and an augmentation of its own. So an
epoch's length varies, and the stream is still a pure function of the position. Weight 1 everywhere
is `Order`, bit for bit.

Memory, measured: 4 bytes a kept row for its weight; 9 bytes for each pair of the last two epochs
(`Order`: 8); 46 bytes a pair while an epoch is sorted (`Order`: 24).
"""

from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt64

from dbp.errors import ConfigError
from training.account.horizon import Horizon
from training.feed.order import MIXTURE, ORDER, Order, copy_keys, mix, stream

MOST = 255  # copies of a sample in an epoch: a byte counts them
BLOCK = 1 << 20  # rows whose random numbers are made at a time


class MixedOrder(Order):
    """The endless stream of a mixture: epoch after epoch, each with its own copies."""

    def __init__(
        self,
        keys: UInt64[np.ndarray, " m"],
        seed: int,
        weights: Float32[np.ndarray, " m"],
        windows: object = None,
    ) -> None:
        """Lay out the stream.

        Args:
            keys: What names each kept sample.
            seed: Of the order and of the copies.
            weights: How often each stands in an epoch, in the mean; from 0 to 255.
            windows: As `Order` takes it.

        Raises:
            ConfigError: A weight is out of range, or their sum is below 1.
        """
        super().__init__(keys, seed, windows)  # type: ignore[arg-type]
        check_weights(weights)
        self.weights = weights
        self._ends = [0]  # pairs before each epoch that was reached, and behind the last
        self._copies: dict[int, np.ndarray] = {}

    def counts(self, number: int) -> UInt8[np.ndarray, " m"]:
        """How often each kept sample stands in an epoch."""
        word = stream(self.seed, np.array([number], np.int64), MIXTURE)
        found = np.empty(len(self.keys), np.uint8)
        for start in range(0, len(found), BLOCK):
            rows = slice(start, start + BLOCK)
            weights = self.weights[rows]
            whole = np.floor(weights)
            drawn = (mix(self.keys[rows] ^ word) >> np.uint64(11)).astype(np.float64) * 2.0**-53
            found[rows] = whole.astype(np.uint8) + (drawn < weights - whole)
        return found

    def start(self, number: int) -> int:
        """The position at which an epoch begins."""
        while len(self._ends) <= number:
            length = int(self.counts(len(self._ends) - 1).sum(dtype=np.int64))
            self._ends.append(self._ends[-1] + length)
        return self._ends[number]

    def epoch(self, number: int) -> Int64[np.ndarray, " e"]:
        """The kept samples, as indices 0..m-1, in the order of an epoch, copies included."""
        if number not in self._epochs:
            counts = self.counts(number)
            samples = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
            copies = np.zeros(len(samples), np.uint8)
            keys = self.keys[samples]
            if counts.max(initial=0) > 1:
                starts = np.cumsum(counts, dtype=np.int64) - counts
                copies[:] = np.arange(len(samples)) - np.repeat(starts, counts)
                keys = copy_keys(keys, copies)
            word = stream(self.seed, np.array([number], np.int64), ORDER)
            order = self.sort(number, mix(keys ^ word), samples)
            last = {number - 1}
            self._epochs = {n: o for n, o in self._epochs.items() if n in last}
            self._copies = {n: c for n, c in self._copies.items() if n in last}
            self._epochs[number], self._copies[number] = samples[order], copies[order]
        return self._epochs[number]

    def at(
        self, positions: Int64[np.ndarray, " b"]
    ) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
        """The epoch, the sample and the number of its copy at positions of the stream."""
        self.epoch_of(int(positions.max(initial=0)))
        # An empty epoch begins where the next one does; the last one that begins there is meant.
        epochs = np.searchsorted(self._ends, positions, side="right") - 1
        indices, copies = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(epochs).tolist():
            inside = epochs == number
            offsets = positions[inside] - self.start(number)
            indices[inside] = self.epoch(number)[offsets]
            copies[inside] = self._copies[number][offsets]
        return epochs, indices, copies

    def epoch_of(self, position: int) -> int:
        """The epoch in which a position of the stream lies."""
        while self._ends[-1] <= position:
            self.start(len(self._ends))
        return int(np.searchsorted(self._ends, position, side="right")) - 1

    def pairs(self, epochs: float) -> int:
        """Pairs in so many epochs, a part of one included."""
        whole, part = divmod(Decimal(str(epochs)), 1)
        start = self.start(int(whole))
        return start + int(part * (self.start(int(whole) + 1) - start)) if part else start

    def passes(self, samples_seen: int) -> float:
        """Epochs that so many pairs are."""
        number = self.epoch_of(samples_seen)
        start = self.start(number)
        return number + (samples_seen - start) / (self.start(number + 1) - start)

    def unique(self, samples_seen: int) -> int:
        """Different kept samples among the first pairs of the stream; exact."""
        last = self.epoch_of(samples_seen)
        is_seen = np.zeros(len(self.keys), bool)
        for number in range(last):
            is_seen |= self.counts(number) > 0
            if is_seen[self.weights > 0].all():  # as after one epoch where no weight is below 1
                break
        if rest := samples_seen - self.start(last):
            is_seen[self.epoch(last)[:rest]] = True
        return int(np.count_nonzero(is_seen))


@dataclass(frozen=True)
class MixedHorizon(Horizon):
    """The length of a run over a mixture, with what a horizon alone cannot know.

    Args:
        epochs_seen: Epochs of the mixture that the run is.
        unique: Different kept pairs that it sees.
    """

    epochs_seen: float = field(kw_only=True)
    unique: int = field(kw_only=True)

    @property
    def passes(self) -> float:
        """Epochs of the mixture; a pair of weight w is seen w times in each, in the mean."""
        return self.epochs_seen

    @property
    def unique_samples(self) -> int:
        """Different pairs seen; exact."""
        return self.unique


def mixed_horizon(order: MixedOrder, batch_size: int, steps: int | None, epochs: float | None) -> MixedHorizon:
    """The horizon of a budget over a mixture.

    Args:
        order: The mixture's stream.
        batch_size: Pairs in one step, over all devices.
        steps: The budget in steps, from a budget in samples by `whole_steps`, or
        epochs: the budget in epochs of the mixture, cut to whole batches; exactly one of the two.

    Raises:
        ConfigError: An epoch is shorter than a batch in the mean, or the budget makes no step.
    """
    assert (steps is None) != (epochs is None)
    kept, expected = len(order.keys), float(order.weights.sum(dtype=np.float64))
    if expected < batch_size:
        raise ConfigError(
            f"cannot train on a mixture of {kept:,} kept samples whose weights sum to "
            f"{expected:,.2f} with train.batch_size={batch_size:,}: an epoch of it would be less "
            "than one batch. Raise the weights of mixture, or lower train.batch_size."
        )
    if steps is None:
        assert epochs is not None
        steps = order.pairs(epochs) // batch_size
        if steps == 0:
            raise ConfigError(
                f"train.epochs={epochs:g} of a mixture with {expected:,.2f} pairs in an epoch is "
                f"less than one batch of train.batch_size={batch_size:,}. Raise train.epochs, or "
                "lower train.batch_size."
            )
    seen = steps * batch_size
    return MixedHorizon(kept, batch_size, steps, epochs_seen=order.passes(seen), unique=order.unique(seen))


def check_weights(weights: Float32[np.ndarray, " m"]) -> None:
    """Refuse weights that no epoch can honour.

    Raises:
        ConfigError: One is negative, not finite or above 255, or they sum to less than 1.
    """
    bad = np.flatnonzero(~((weights >= 0) & (weights <= MOST)))  # NaN too
    if len(bad):
        raise ConfigError(
            f"mixture gives {len(bad):,} of {len(weights):,} kept samples a weight that is "
            f"not from 0 to {MOST}; the first is {weights[bad[0]]} for kept sample {bad[0]:,}. A "
            "weight says how often a sample stands in an epoch."
        )
    if (total := float(weights.sum(dtype=np.float64))) < 1:
        raise ConfigError(
            f"mixture: the weights of {len(weights):,} kept samples sum to {total:g}, so an "
            "epoch would be empty. Raise them, or leave mixture out."
        )
