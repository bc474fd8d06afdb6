"""What a run measures of its model on the way: settings, and the rows held out for it.

Training never imports evaluation: an evaluator is a dataclass that the config names by `_target_`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from dbp.config import require
from dbp.data.pool import Pool
from dbp.errors import ConfigError
from dbp.stage import runtime
from training.order import HELD_OUT, mix, stream
from training.ranks import Ranks

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


@dataclass(frozen=True)
class Evaluator(ABC):
    """Measures a model without changing it. All ranks call it together, and all get the numbers."""

    @abstractmethod
    def titles(self) -> list[str]:
        """What the names of its numbers begin with, before a slash."""

    @abstractmethod
    def open(self, run: Watched) -> Measure:
        """Prepare once, before the first step, so that what is wrong stops the run at its start.

        Returns:
            A function that measures the model as it is when called: in evaluation mode, without
            gradients and autocast. Its numbers are the same for any number of ranks and workers.
        """


@dataclass(frozen=True)
class Watch:
    """When a run is measured, and by what. It never changes the weights.

    Args:
        every_samples: Pairs between two evaluations, rounded up to whole steps; null for the end
            alone.
        evaluators: What measures; none for no evaluation at all.
    """

    every_samples: int | None
    evaluators: tuple[Evaluator, ...]

    def __post_init__(self) -> None:
        require(
            self.every_samples is None or self.every_samples > 0,
            "every_samples",
            self.every_samples,
            "above 0, or null for the end alone",
        )
        titles = [title for evaluator in self.evaluators for title in evaluator.titles()]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise ConfigError(
                f"evaluators={[type(e).__name__ for e in self.evaluators]}: {twice[0]} would be "
                "measured twice under one name. Name each task in one evaluator."
            )


@dataclass(frozen=True)
class HeldOut(Evaluator):
    """The contrastive loss, and recall at 1 both ways, on pairs of the pool that no arm trains on.

    Both depend on how many pairs compete, so `batch_size` is fixed, whatever the run's own batch.

    Args:
        batch_size: Pairs in one batch; each is a candidate for all others.
        num_samples: Most pairs to measure on; whole batches of them are taken.
        num_workers: Processes that decode.
    """

    batch_size: int
    num_samples: int
    num_workers: int = runtime(0)

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2, for negatives")
        must = f"at least batch_size={self.batch_size}"
        require(self.num_samples >= self.batch_size, "num_samples", self.num_samples, must)
        require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")

    def titles(self) -> list[str]:
        return ["held_out"]

    def open(self, run: Watched) -> Measure:
        """Choose the rows and fix the batches.

        Raises:
            ConfigError: Nothing is held out, or less than one batch.
        """
        from training.validation import HeldOutLoss

        if run.held_out == 0:
            raise ConfigError(
                "train.held_out=0, and a HeldOut evaluator of train.watch has no pairs to measure "
                "on. Set train.held_out to a small share such as 0.01, or take the evaluator out."
            )
        rows = held_out_rows(run.pool, run.held_out)[: self.num_samples]
        rows = rows[: len(rows) // self.batch_size * self.batch_size]
        if len(rows) == 0:
            raise ConfigError(
                f"train.held_out={run.held_out:g} of {run.pool.num_rows:,} rows is less than one "
                f"batch of {self.batch_size:,} for the held-out loss. Raise train.held_out, or "
                "lower batch_size of its evaluator."
            )
        return HeldOutLoss(run, rows.reshape(-1, self.batch_size), self.num_workers)


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
