"""What training was fed, counted from the rows that were really used, and proved by a hash chain in the log.

Nothing here talks to a device. Each rank notes its share of a step; what needs all ranks is worked out
when `settle` is called, by all of them at the same step. Costs 1 bit for each kept row, 8 bytes for
each pair since the last settling, and about 1 µs a pair (2 M kept rows, one core).

Each step adds a link: a sum over the pairs of the step, of a word for each pair that names the sample
really used and its position in the stream. Sums do not care who adds: ranks and workers may share a
step in any way. Links are made per step, so neither rows of metrics nor checkpoints enter. Two logs
with an equal chain at a number of samples seen were fed the same pairs at the same places.
"""

import hashlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int64, UInt8, UInt64

from dbp.data.pool import Pool
from dbp.dedup.exact import first_equal
from dbp.errors import PoolError
from training.feed.order import mix
from training.feed.subset import Subset
from training.resume.ranks import Ranks

log = logging.getLogger("dbp")

Uids = Callable[[Int[np.ndarray, " m"]], list[str]]  # names of rows of the pool

START = hashlib.sha256(b"").hexdigest()
LEAST_SAMPLES = 5_000  # before which a share of substitutes says little
SHOWN = 5  # rows that a message names
COUNTS = ("steps", "chain", "unique", "uid_duplicates", "group_duplicates", "substitutes", "bits")
MOST_PENDING = 1 << 20  # pairs noted before they must be settled: 8 MB


def fed(keys: UInt64[np.ndarray, " b"], positions: Int[np.ndarray, " b"]) -> np.uint64:
    """One word for pairs at their positions; over shares of a step, words add up modulo 2^64.

    Args:
        keys: What names each sample that was used: a substitute's own key, where one stood in.
        positions: Of each pair in the stream: step * batch_size + place in the global batch.
    """
    words = mix(keys ^ mix(np.asarray(positions).astype(np.uint64)))
    return np.add.reduce(words, dtype=np.uint64)


def link(chain: str, samples_seen: int, word: np.uint64) -> str:
    """The chain after one more step, whose pairs over all ranks have a word; it begins with `START`."""
    return hashlib.sha256(f"{chain} {samples_seen} {word}".encode()).hexdigest()


class Window(NamedTuple):
    """The steps that were settled together: for each, the kept samples used, in global order."""

    first_step: int
    indices: Int64[np.ndarray, "steps b"]


class Tally:
    """Counts of what a run consumed, over all ranks.

    Laws: the same for any number of ranks, workers, rows of metrics and resumes; unique + repeats =
    samples seen. Counts of duplicates and of unique samples are kept on the first rank, which writes.

    Args:
        rows: The kept rows of the pool, ascending.
        keys: What names each to the random streams: uid and copy.
        names: Hash of each kept row's uid; `keys` when not given, so that uids do not repeat.
        groups: A number for each kept row, equal for rows that dedup takes for one; as
            `content_groups` gives it. Without it twins are not counted.
    """

    def __init__(
        self,
        rows: Int[np.ndarray, " m"],
        keys: UInt64[np.ndarray, " m"],
        batch_size: int,
        ranks: Ranks,
        names: UInt64[np.ndarray, " m"] | None = None,
        groups: Int[np.ndarray, " m"] | None = None,
    ) -> None:
        assert batch_size % ranks.size == 0, "a batch is split evenly"
        self.rows, self.keys, self.batch_size, self.ranks = rows, keys, batch_size, ranks
        self.names, self.groups = keys if names is None else names, groups
        self.steps, self.chain = 0, START  # settled
        self.unique = self.uid_duplicates = self.substitutes = 0
        self.group_duplicates = None if groups is None else 0
        self.undecodable: set[int] = set()
        self.bits = np.zeros(-(-len(rows) // 8) if ranks.is_first else 0, np.uint8)
        self._indices: list[np.ndarray] = []
        self._words: list[np.uint64] = []
        self._failed: list[int] = []
        self._has_warned = False

    @property
    def samples_seen(self) -> int:
        """Pairs that went through the model, repeats counted."""
        return self.steps * self.batch_size

    @property
    def is_full(self) -> bool:
        """Whether so much is noted that it must be settled; at the same step on each rank."""
        return len(self._words) * self.batch_size >= MOST_PENDING

    @property
    def is_settled(self) -> bool:
        """Whether the counts hold all that was noted."""
        return not self._words

    def note(self, rows: Int64[np.ndarray, " share"], undecodable: Int64[np.ndarray, " u"]) -> None:
        """Note this rank's share of the next step: about 0.4 µs a pair, no word to other ranks.

        Args:
            rows: Of the pool, as they were used, in the order of the batch.
            undecodable: Those of this share for which others stand in.
        """
        order = np.argsort(rows)  # sorted questions are answered many times faster
        indices = np.empty(len(rows), np.int64)
        indices[order] = np.searchsorted(self.rows, rows[order])
        assert np.array_equal(self.rows[indices], rows), "only kept rows are used"
        first = (self.steps + len(self._words)) * self.batch_size + self.ranks.rank * len(rows)
        self._words.append(fed(self.keys[indices], first + np.arange(len(rows))))
        self._indices.append(indices)
        self._failed += undecodable.tolist()

    def settle(self) -> Window:
        """Count what was noted, over all ranks: all of them call it at the same step."""
        own = np.array(self._words, np.uint64), np.stack(self._indices), self._failed
        words, shares, failures = zip(*self.ranks.gather(own), strict=True)
        window = Window(self.steps, np.concatenate(shares, axis=1))
        for word in np.add.reduce(words, dtype=np.uint64):
            self.steps += 1
            self.chain = link(self.chain, self.samples_seen, word)
        failed = [row for rows in failures for row in rows]
        self.substitutes += len(failed)
        self.undecodable.update(failed)
        if self.ranks.is_first:
            self.unique += mark(self.bits, window.indices)
            self.uid_duplicates += num_repeated(self.names[window.indices])
            if self.groups is not None and self.group_duplicates is not None:
                self.group_duplicates += num_repeated(self.groups[window.indices])
        self._indices, self._words, self._failed = [], [], []
        return window

    def check_substitutes(self, most: float, uids: Uids) -> None:
        """Stop a run whose pool is broken; on all ranks alike.

        Args:
            most: Share of the pairs that others may stand in for, in [0, 1].

        Raises:
            PoolError: More did, of at least 5,000 pairs; the message names the first rows.
        """
        if self.undecodable and self.ranks.is_first and not self._has_warned:
            self._has_warned = True
            log.warning(
                "row %d of the pool cannot be decoded: the next kept sample stands in. All such "
                "rows are counted in the manifest.",
                min(self.undecodable),
            )
        share = self.substitutes / max(self.samples_seen, 1)
        if self.samples_seen < LEAST_SAMPLES or share <= most:
            return
        rows = np.array(sorted(self.undecodable)[:SHOWN], np.int64)
        named = [f"{row:,} (uid {uid!r})" for row, uid in zip(rows, uids(rows), strict=True)]
        more = len(self.undecodable) - len(rows)
        raise PoolError(
            f"training stopped: in {self.samples_seen:,} pairs others stood in for {self.substitutes:,} "
            f"({share:.2%}) whose pictures cannot be decoded, more than train.most_substitutes={most:g} allows. "
            f"Rows of the pool: {', '.join(named)}{f' and {more:,} more' if more else ''}. Restore the shards, or "
            "embed the pool and select again, which drops what cannot be decoded; or raise train.most_substitutes."
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; everything noted must be settled."""
        assert self.is_settled
        return {**{name: getattr(self, name) for name in COUNTS}, "undecodable": sorted(self.undecodable)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of the first rank, on any number of ranks."""
        for name, value in state.items():
            setattr(self, name, set(value) if name == "undecodable" else value)
        if not self.ranks.is_first:
            self.bits = np.zeros(0, np.uint8)
        if self.groups is None:
            self.group_duplicates = None  # no longer counted
        self._indices, self._words, self._failed = [], [], []


def mark(bits: UInt8[np.ndarray, " bytes"], indices: Int64[np.ndarray, "*shape"]) -> int:
    """Set the bits of some samples; return how many were not set before."""
    found = np.unique(indices)
    new = found[(bits[found >> 3] >> (found & 7)) & 1 == 0]
    np.bitwise_or.at(bits, new >> 3, (1 << (new & 7)).astype(np.uint8))
    return len(new)


def num_repeated(names: UInt64[np.ndarray, "steps b"] | Int[np.ndarray, "steps b"]) -> int:
    """Pairs whose name another pair of the same step has, too: false negatives of the loss."""
    ordered = np.sort(names, axis=1)
    equal = ordered[:, 1:] == ordered[:, :-1]
    edge = np.zeros((len(ordered), 1), bool)
    return int((np.hstack([edge, equal]) | np.hstack([equal, edge])).sum())


def uid_names(pool: Pool, rows: Int[np.ndarray, " m"], keys: UInt64[np.ndarray, " m"]) -> UInt64[np.ndarray, " m"]:
    """The uid hash of each kept row; `keys` itself, and so no memory, where no uid repeats."""
    names = pool.uid_hashes[rows]
    return keys if np.array_equal(names, keys) else names


def content_groups(pool: Pool, rows: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """Groups of kept rows with equal image bytes, by the content hash in the index.

    Worth its cost (24 bytes and a sort over the kept rows, for a moment) where exact dedup did not
    run; where it did, each row is alone.
    """
    return first_equal(pool.hash_words("content_hash", rows))


def tally_of(subset: Subset, batch_size: int, ranks: Ranks, count_twins: bool) -> Tally:
    """The tally of a run."""
    rows, keys = subset.rows, subset.keys
    if not ranks.is_first:
        return Tally(rows, keys, batch_size, ranks)
    groups = content_groups(subset.pool, rows) if count_twins else None
    return Tally(rows, keys, batch_size, ranks, uid_names(subset.pool, rows, keys), groups)
