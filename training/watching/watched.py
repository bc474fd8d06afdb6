"""A run as those see it that measure its model on the way, and the rows held out for them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from dbp.data.pool import Pool
from training.feed.order import HELD_OUT, mix, stream
from training.resume.ranks import Ranks

Measure = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Watched:
    """What an evaluator may use of the run that it watches, seen from one process.

    Args:
        model: open_clip's model, neither compiled nor wrapped; its weights change as training goes.
        preprocess: The model's own, for evaluation.
        tokenizer: The model's own.
        device: Where the model is.
        pool: What the run trains on a part of.
        held_out: Share of the pool's uids that no arm trains on.
        folder: For what an evaluator prepares; it stays until the run is complete.
        ranks: The processes that train together.
    """

    model: Any
    preprocess: Callable[[Any], Any]
    tokenizer: Callable[[list[str]], Any]
    device: str
    pool: Pool
    held_out: float
    folder: Path
    ranks: Ranks


def is_held_out(uid_hashes: UInt64[np.ndarray, " n"], share: float) -> Bool[np.ndarray, " n"]:
    """Whether samples are kept from training in every arm and for every seed.

    It depends on the uid alone, so samples that share a uid go the same way. Near-duplicates under
    other uids do not: run after dedup where that matters.

    Args:
        uid_hashes: Of the samples.
        share: Expected share of uids, in [0, 1).
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
