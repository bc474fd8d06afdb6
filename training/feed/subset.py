"""What a run trains on: a pool seen through a keep list, without the rows that are held out of every arm."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt64

from dbp.data.column import Column
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.errors import ConfigError
from training.feed.order import HELD_OUT, mix, sample_keys, stream


@dataclass(frozen=True, eq=False)
class Subset:
    """A pool seen through a keep list: m samples, no image copied."""

    pool: Pool
    rows: Int64[np.ndarray, " m"]
    weights: Float32[np.ndarray, " m"] | None = None  # how often each stands in an epoch; None is once
    column: Column | None = None  # that a mixture reads

    @classmethod
    def of(cls, pool: Pool, keep: KeepList, column: Column | None = None) -> "Subset":
        """What a keep list keeps.

        Raises:
            ConfigError: The keep list was made for another pool.
        """
        if keep.pool_digest != pool.digest:
            raise ConfigError(
                f"cannot train on keep list {keep.digest[:12]}: it was made for the pool with digest "
                f"{keep.pool_digest[:12]}, and this pool has {pool.digest[:12]}; their rows are not the same "
                "samples. Curate this pool, or carry the list over by uids (dbp export, dbp import)."
            )
        return cls(pool, np.asarray(keep.rows, np.int64), keep.weights, column)

    def split(self, share: float) -> tuple["Subset", "Subset"]:
        """What is trained on, and what is held out of it by uid: an expected share of the pool's uids."""
        if not share:
            return self, Subset(self.pool, self.rows[:0])
        is_out = is_held_out(self.pool.uid_hashes[self.rows], share)
        return self._where(~is_out), self._where(is_out)

    def _where(self, mask: Bool[np.ndarray, " m"]) -> "Subset":
        weights = None if self.weights is None else self.weights[mask]
        return Subset(self.pool, self.rows[mask], weights, self.column)

    def within(self, pool: Pool) -> "Subset":
        """The same rows of the same pool, read in another way."""
        assert pool.digest == self.pool.digest, "the same samples"
        return Subset(pool, self.rows, self.weights, self.column)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def keys(self) -> UInt64[np.ndarray, " m"]:
        """What names each sample to the random streams."""
        return sample_keys(self.pool.uid_hashes, self.rows)


def is_held_out(uid_hashes: UInt64[np.ndarray, " n"], share: float) -> Bool[np.ndarray, " n"]:
    """Whether samples are kept from training in every arm and for every seed: a share of all uids, in [0, 1).

    It depends on the uid alone, so samples that share a uid go the same way. Near-duplicates under
    other uids do not: run after dedup where that matters.
    """
    assert 0 <= share < 1, share
    return _held_out_words(uid_hashes) < np.uint64(int(share * 2**64))


def held_out_rows(pool: Pool, share: float) -> Int64[np.ndarray, " h"]:
    """The valid rows of a pool that are held out, in an order of their own, the same for all arms.

    They are of the whole pool, so that arms with different keep lists are measured on equal pairs.
    """
    hashes = pool.uid_hashes
    rows = np.flatnonzero(is_held_out(hashes, share) & pool.is_valid)
    return rows[np.argsort(_held_out_words(hashes[rows]), kind="stable")].astype(np.int64)


def _held_out_words(uid_hashes: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    return mix(uid_hashes ^ stream(0, np.zeros(1, np.int64), HELD_OUT))
