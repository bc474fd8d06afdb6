"""What a method that chooses while training is, and how many candidates stand behind each batch.

The stream of samples (`training/feed/order.py`) is cut into super-batches, one for each step; a method chooses the
batch from it. What needs no pixels is chosen by the loader's workers before anything is decoded (`ByRow`); what
needs the learner is chosen in the step (`training/online/jest.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64, UInt64

from dbp.config import require
from dbp.engine.stage import Node
from dbp.errors import ConfigError
from dbp.offers import Offers
from training.feed.order import ONLINE, Slice, mix, stream
from training.feed.subset import Subset

Choose = Callable[[Slice], Int64[np.ndarray, " b"]]  # from a super-batch to the places of the batch, ascending


@dataclass(frozen=True, kw_only=True)
class Online(ABC):
    """Chooses each batch from a super-batch of candidates.

    Args:
        super_batch: Candidates for each batch, over all devices: a multiple of the batch; or
        filter_ratio: the share of the candidates that is not chosen, in (0, 1): 1 / (1 - it) is a whole number.
    """

    scores: ClassVar[bool] = False  # whether the learner sees all candidates, so that all are decoded

    super_batch: int | None
    filter_ratio: float | None

    def __post_init__(self) -> None:
        if (self.super_batch is None) == (self.filter_ratio is None):
            raise ConfigError(
                f"super_batch={self.super_batch} and online.filter_ratio={self.filter_ratio}: exactly one must be "
                "set. Set the other one to null, as in online.super_batch=20480 online.filter_ratio=null."
            )
        if (ratio := self.filter_ratio) is not None:
            is_whole = 0 < ratio < 1 and (1 / (1 - Fraction(str(ratio)))).denominator == 1
            must = "between 0 and 1, with a whole number 1 / (1 - filter_ratio), as 0.5, 0.75, 0.8 or 0.9"
            require(is_whole, "filter_ratio", ratio, must)

    def candidates(self, batch_size: int) -> int:
        """Candidates for each batch.

        Raises:
            ConfigError: They are not a multiple of the batch, or no more than it.
        """
        if self.super_batch is None:
            return int(batch_size / (1 - Fraction(str(self.filter_ratio))))
        if self.super_batch <= batch_size or self.super_batch % batch_size:
            fits = ", ".join(f"{times * batch_size:,}" for times in (2, 5))
            raise ConfigError(
                f"online.super_batch={self.super_batch:,} candidates are not two or more whole batches of "
                f"train.batch_size={batch_size:,}. Give a multiple, such as {fits}, or online.filter_ratio."
            )
        return self.super_batch

    def check(self, batch_size: int) -> None:
        """Refuse settings that do not fit a batch.

        Raises:
            ConfigError: They do not.
        """
        self.candidates(batch_size)

    def inputs(self, offers: Offers) -> Mapping[str, Node]:
        """The artifacts that the choice reads, by the names under which a training run takes them."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ByRow(Online):
    """Chooses by what is known of rows, so that only what is chosen is decoded.

    The choice is a pure function of seed, step and candidates, the same bits for any ranks, workers and processor.
    """

    @abstractmethod
    def chooser(
        self, subset: Subset, seed: int, batch_size: int, beside: Mapping[str, Any]
    ) -> tuple[Choose, dict[str, Any]]:
        """What chooses, and counts for the manifest.

        Args:
            subset: What is trained on; candidates are indices of it.
            beside: The artifacts of `inputs`.
        """


def luck(seed: int, offered: Slice, keys: UInt64[np.ndarray, " m"]) -> UInt64[np.ndarray, " s"]:
    """A random word for each candidate of a step, by seed, step, uid and copy.

    Args:
        keys: Of all samples, as `Subset.keys`.
    """
    return mix(offered.named(keys) ^ stream(seed, np.array([offered.step], np.int64), ONLINE))


def first(words: UInt64[np.ndarray, " s"], count: int) -> Int64[np.ndarray, " b"]:
    """The places of the smallest words, ascending; equal words go to the earlier place."""
    return np.sort(np.argsort(words, kind="stable")[:count])
