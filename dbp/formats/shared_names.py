"""Names that several samples of a pool have, in lists that are to name some of them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from dbp.data.columns import one_chunk
from dbp.data.pool import Pool
from dbp.errors import ConfigError


@dataclass(frozen=True)
class SharedNames:
    """What a list of uids says beyond the rows that it is made from."""

    example: str  # a name of a kept sample and of one that is not kept
    num_names: int  # such names
    num_kept: int  # kept samples that have one
    num_others: int  # usable samples that are not kept, and have one
    num_repeats: int  # names of several kept samples, all of them kept

    def refuse(self, what: str, way_out: str = "") -> None:
        """Raise a ConfigError if the names would bring in samples that are not kept."""
        if self.num_names:
            raise ConfigError(
                f"{what} cannot be written as uids: {self.num_kept:,} of its samples share their uid with "
                f"{self.num_others:,} that it does not keep ({self.num_names:,} uids, such as {self.example!r}), "
                "so who reads the list would keep both. Index the pool by a rule that parts them (pool.uid=path or "
                f"content; dbp init names one) and curate again{way_out}."
            )

    def __str__(self) -> str:
        return f"; {self.num_repeats:,} uids stand there more than once" if self.num_repeats else ""


def shared_names(pool: Pool, kept: Bool[np.ndarray, " n"]) -> SharedNames:
    """The uids of kept rows that other rows have, too. An unusable row counts as none."""
    rows = twins(pool)
    rows = rows[kept[rows] | pool.is_valid[rows]]
    if not kept[rows].any():
        return SharedNames("", 0, 0, 0, 0)
    found = one_chunk(pool.index.at("uid", rows)).dictionary_encode()  # equal hashes are not yet equal names
    name = found.indices.to_numpy(zero_copy_only=False)
    num = [np.bincount(name[of], minlength=len(found.dictionary)) for of in (kept[rows], ~kept[rows])]
    is_torn = (num[0] > 0) & (num[1] > 0)
    example = found.dictionary[int(np.argmax(is_torn))].as_py() if is_torn.any() else ""
    repeats = int(np.count_nonzero((num[0] > 1) & ~is_torn))
    return SharedNames(example, int(is_torn.sum()), int(num[0][is_torn].sum()), int(num[1][is_torn].sum()), repeats)


def twins(pool: Pool) -> Int[np.ndarray, " t"]:
    """The rows whose uid has the hash of another row's."""
    hashes = pool.uid_hashes
    ordered = np.sort(hashes)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.flatnonzero(np.isin(hashes, repeated)) if len(repeated) else np.zeros(0, np.int64)


def hits_text(hits: Int[np.ndarray, " l"]) -> str:
    """How many names hit how many rows, of those that hit several: `20 name 2 samples each`."""
    values, counts = np.unique(hits[hits > 1], return_counts=True)
    said = [f"{count:,} name {value:,} samples each" for value, count in zip(values[:5], counts[:5], strict=True)]
    return ", ".join(said) + (f", up to {values[-1]:,}" if len(values) > 5 else "")
