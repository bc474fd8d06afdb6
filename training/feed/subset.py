"""What a run trains on: a pool seen through a keep list."""

from functools import cached_property

import numpy as np
from jaxtyping import Int64, UInt64

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.errors import ConfigError
from training.feed.order import sample_keys


class Subset:
    """A pool seen through a keep list: m samples, no picture copied."""

    def __init__(self, pool: Pool, keep: KeepList) -> None:
        """Join a pool and a keep list.

        Raises:
            ConfigError: The keep list was made for another pool.
        """
        if keep.pool_digest != pool.digest:
            raise ConfigError(
                f"cannot train on keep list {keep.digest[:12]}: it was made for the pool with "
                f"digest {keep.pool_digest[:12]}, and this pool has {pool.digest[:12]}; their rows "
                "are not the same samples. Curate this pool, or carry the list over by uids (dbp "
                "export, dbp import)."
            )
        self.pool, self.rows = pool, np.asarray(keep.rows, np.int64)

    def of(self, rows: Int64[np.ndarray, " m"]) -> "Subset":
        """The same pool with fewer of its kept rows."""
        return self._made(self.pool, rows)

    def within(self, pool: Pool) -> "Subset":
        """The same rows of the same pool, read in another way."""
        assert pool.digest == self.pool.digest, "the same samples"
        return self._made(pool, self.rows)

    def _made(self, pool: Pool, rows: Int64[np.ndarray, " m"]) -> "Subset":
        made = object.__new__(Subset)
        made.pool, made.rows = pool, rows
        return made

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def keys(self) -> UInt64[np.ndarray, " m"]:
        """What names each sample to the random streams."""
        return sample_keys(self.pool.uid_hashes, self.rows)
