"""Which pair stands at which place of training: a pure function of seed, epoch and uid.

The place of a sample in an epoch is the rank of its keyed 64-bit hash. So sampling is without
replacement; arms that share samples meet them in the same relative order, changed in the same way;
nothing depends on workers or ranks; and resuming at a step needs no state but its number. Costs 8
bytes for each kept row, and one argsort of them for each epoch.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64, Shaped, UInt64

from dbp.errors import ConfigError
from training.account.horizon import Horizon

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDER, AUGMENTATION, MODEL = 0, 1, 2  # what a stream of random words is for
HELD_OUT, MIXTURE, CAPTION, SHARDS, ONLINE = 3, 4, 5, 6, 7
PICK = 8  # of several captions


def mix(words: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Scramble 64-bit words; a bijection, so different words stay different.

    Source: Steele et al. 2014, the output function of SplitMix64.
    """
    words = np.asarray(words, np.uint64) + GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def stream(seed: int, epochs: Int64[np.ndarray, " b"], purpose: int) -> UInt64[np.ndarray, " b"]:
    """One random word for each epoch (or step) of a seed, another for each purpose."""
    words = mix(np.full(len(epochs), seed, np.uint64)) + epochs.astype(np.uint64)
    return mix(mix(words) + np.uint64(purpose))


def sample_keys(uid_hashes: UInt64[np.ndarray, " n"], rows: Int64[np.ndarray, " m"]) -> UInt64[np.ndarray, " m"]:
    """What names each kept row to the random streams: its uid, and its copy where uids repeat.

    Args:
        uid_hashes: Of all rows of the pool: the number of a copy must not depend on what is kept.
    """
    ordered = np.sort(uid_hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated) == 0:
        return uid_hashes[rows]
    keys = uid_hashes.copy()
    again = np.flatnonzero(np.isin(uid_hashes, repeated))
    again = again[np.argsort(uid_hashes[again], kind="stable")]
    hashes = uid_hashes[again]
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]])
    copy = np.arange(len(again)) - np.repeat(starts, np.diff(np.r_[starts, len(again)]))
    keys[again] = np.where(copy == 0, hashes, mix(hashes ^ mix(copy.astype(np.uint64))))
    return keys[rows]


def copy_keys(keys: UInt64[np.ndarray, " b"], copies: Shaped[np.ndarray, " b"]) -> UInt64[np.ndarray, " b"]:
    """What names each copy of a sample to the random streams; the first has the sample's own key.

    Args:
        copies: 0 for the first time that a sample stands in an epoch, 1 for the second, and so on.
    """
    # Another formula than that of rows which share a uid, so that the two never meet.
    again = mix(mix(keys) ^ copies.astype(np.uint64))
    return np.where(copies == 0, keys, again)


def draws(
    seed: int, epochs: Int64[np.ndarray, " b"], keys: UInt64[np.ndarray, " b"], num_draws: int
) -> Float64[np.ndarray, "b d"]:
    """Uniform numbers in [0, 1) that decide how each sample is changed in its epoch."""
    start = mix(keys ^ stream(seed, epochs, AUGMENTATION))
    words = mix(start[:, None] + np.arange(num_draws, dtype=np.uint64)[None, :] * GOLDEN)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def step_seed(seed: int, step: int) -> int:
    """The seed of what the model itself draws in a step (dropout): in [0, 2^63)."""
    return int(stream(seed, np.array([step], np.int64), MODEL)[0] >> np.uint64(1))


class Order:
    """The endless stream of kept samples: epoch after epoch, each one whole.

    Args:
        windows: From an epoch to the window of each kept sample; a window is finished before
            the next one begins. None for one window, which is the best mixing.
    """

    num_columns: ClassVar[int] = 1  # of what `at` gives beside the epoch

    def __init__(
        self,
        keys: UInt64[np.ndarray, " m"],
        seed: int,
        windows: Callable[[int], Int32[np.ndarray, " m"]] | None = None,
    ) -> None:
        self.keys, self.seed, self.windows = keys, seed, windows
        self._epochs: dict[int, tuple[np.ndarray, ...]] = {}

    def about(self) -> dict[str, Any]:
        """What the manifest of a run says of the stream; nothing where each sample stands in each epoch once."""
        return {}

    def epoch(self, number: int) -> Int64[np.ndarray, " e"]:
        """The kept samples, as indices 0..m-1, in the order of an epoch, copies included."""
        return self._entries(number)[0]

    def _entries(self, number: int) -> tuple[np.ndarray, ...]:
        """What stands in an epoch, in its order: samples and, in a mixture, the numbers of their copies."""
        if number not in self._epochs:
            made = self._make(number)
            # A batch lies in two epochs at most, since no batch is larger than the kept set.
            self._epochs = {n: o for n, o in self._epochs.items() if n == number - 1}
            self._epochs[number] = made
        return self._epochs[number]

    def _make(self, number: int) -> tuple[np.ndarray, ...]:
        return (self._sorted(number, self.keys),)

    def _sorted(
        self, number: int, keys: UInt64[np.ndarray, " e"], samples: Int64[np.ndarray, " e"] | None = None
    ) -> Int64[np.ndarray, " e"]:
        """The order of what stands in an epoch, window by window.

        Args:
            samples: The kept sample behind each key; by default one after another.
        """
        word = stream(self.seed, np.array([number], np.int64), ORDER)
        order = np.argsort(mix(keys ^ word), kind="stable").astype(np.int64)
        if self.windows is not None:
            window = self.windows(number)[order if samples is None else samples[order]]
            order = order[np.argsort(window, kind="stable")]
        return order

    def start(self, number: int) -> int:
        """The position at which an epoch begins."""
        return number * len(self.keys)

    def epochs_of(self, positions: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """The epochs in which positions of the stream lie."""
        return positions // len(self.keys)

    def at(self, positions: Int64[np.ndarray, " b"]) -> tuple[np.ndarray, ...]:
        """Epoch, sample and, in a mixture, number of the copy at positions of the stream: `Int64[b]` each.

        An epoch that ends within a batch runs over into the next one: nothing is dropped.
        """
        epochs = self.epochs_of(positions)
        found = [np.empty_like(positions) for _ in range(self.num_columns)]
        for number in np.unique(epochs).tolist():
            inside = epochs == number
            offsets = positions[inside] - self.start(number)
            for column, entries in zip(found, self._entries(number), strict=True):
                column[inside] = entries[offsets]
        return epochs, *found


class Slice(NamedTuple):
    """The samples of one step that one rank takes."""

    step: int
    epochs: Int64[np.ndarray, " b"]
    indices: Int64[np.ndarray, " b"]
    copies: Int64[np.ndarray, " b"] | None = None  # in a mixture: the how-manieth of its epoch

    def named(self, keys: UInt64[np.ndarray, " m"]) -> UInt64[np.ndarray, " b"]:
        """What names each pair of the slice to the random streams, from the keys of all samples."""
        own = keys[self.indices]
        return own if self.copies is None else copy_keys(own, self.copies)

    def at(self, places: Int64[np.ndarray, " c"]) -> "Slice":
        """The samples at some places of the slice."""
        copies = None if self.copies is None else self.copies[places]
        return Slice(self.step, self.epochs[places], self.indices[places], copies)


class Batches:
    """The batches of a run, as a pure function of the step: a sampler for torch's DataLoader.

    Rank r of w takes the r-th of w equal runs of each global batch, so that the ranks' slices, put
    one after another, are the batch of a single rank. Where batches are chosen from super-batches, what is
    said here of a batch holds of the super-batch.

    Args:
        whole: Each rank takes the whole super-batch, and decodes its share of what it chooses from it.

    Raises:
        ConfigError: The batch cannot be split evenly.
    """

    def __init__(
        self,
        order: Order,
        horizon: Horizon,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        whole: bool = False,
    ) -> None:
        if horizon.batch_size % world:
            raise ConfigError(
                f"train.batch_size={horizon.batch_size:,} cannot be split evenly over {world} "
                "processes. Give a multiple, or another number of devices."
            )
        self.order, self.horizon, self.start_step = order, horizon, start_step
        self.first, self.num_taken = (
            (0, horizon.read) if whole else (rank * horizon.read // world, horizon.read // world)
        )
        self.share = (horizon.batch_size if whole else horizon.read) // world  # pairs that are decoded for a step

    def __len__(self) -> int:
        """All steps of the run, also after a resume: Lightning counts batches from the first."""
        return self.horizon.steps

    def __iter__(self) -> Iterator[Slice]:
        for step in range(self.start_step, self.horizon.steps):
            yield self.slice(step)

    def slice(self, step: int) -> Slice:
        """What this rank takes in a step."""
        first = step * self.horizon.read + self.first
        return Slice(step, *self.order.at(np.arange(first, first + self.num_taken, dtype=np.int64)))
