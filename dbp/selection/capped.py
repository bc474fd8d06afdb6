"""Soft and hard cap: rows drawn by their scores, again and again, until a number of draws is reached."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.stage import runtime
from dbp.errors import BudgetError, ConfigError
from dbp.exact.clocks import Rounds, rings_before
from dbp.exact.order import keyed_hash
from dbp.narrowing import Narrowing
from dbp.offers import ReadsScore

ROUNDS = 1280  # of the published setting: 128 M draws in rounds of 100,000
LARGEST = 2.0**53  # of a logit: random clocks and penalties added to a larger one are lost in rounding


@dataclass(frozen=True, kw_only=True)
class Capped(ReadsScore, Narrowing):
    """Draw rows with probabilities softmax(score / temperature); a keep list that says how often each is taken.

    What is kept depends on stored scores, uids and the seed alone, not on their order or the processor. Rows
    without a score are never drawn. Takes no budget: the number of draws is one.

    Args:
        draws: M, the sum of how often rows are taken; as many as training sees makes it one pass.
        temperature: Divides the scores; they are used as they are at 1.
        seed: Of the draws.
        score: Name of the score, of `scores`; empty for the one of `score=`.
    """

    name: ClassVar[str] = "select"
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool", "scores")

    draws: int | None
    temperature: float
    seed: int
    score: str = runtime("")

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "above 0")
        require(self.draws is None or self.draws > 0, "draws", self.draws, "above 0")

    def decide(self, rows: KeepList, pool: Pool, scores: Scores) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        if self.draws is None:
            raise ConfigError(
                "select.draws is not set, and train.samples_seen, from which it comes, is null. Set select.draws=N."
            )
        scored = rows.mask & ~np.isnan(scores.values)
        at = np.flatnonzero(scored)
        with np.errstate(over="ignore"):
            logits = scores.goodness[at].astype(np.float64) / self.temperature
        if len(bad := np.flatnonzero(~(np.abs(logits) < LARGEST))):
            what = "so large that adding 1 changes nothing" if np.isfinite(logits[bad[0]]) else "not finite"
            raise ConfigError(
                f"select.temperature={self.temperature:g}: score {scores.values[at[bad[0]]]:g} of uid "
                f"{pool.uids(at[bad[:1]])[0]!r} divided by it is {what}. Raise the temperature, or "
                "filter such scores."
            )
        times, counts = self.times(pool.uid_hashes[at], logits, self.draws)
        assert times.sum() == self.draws, "all draws are made"
        drawn = np.zeros(rows.num_pool_rows, np.int64)
        drawn[at] = times
        codes, texts = scores.missing.codes_over(rows.num_pool_rows, f"no {scores.label}")
        codes[scored] = len(texts)
        kept = rows.within(
            "select", drawn > 0, (codes, [*texts, "never drawn"]), f"drawn by {scores.label}", value=scores.values
        ).weighted(times[times > 0])
        return kept, {"draws": int(times.sum()), "most draws of a row": int(times.max(initial=0)), **counts}

    @abstractmethod
    def times(
        self, keys: UInt64[np.ndarray, " n"], logits: Float64[np.ndarray, " n"], draws: int
    ) -> tuple[Int64[np.ndarray, " n"], dict[str, Any]]:
        """How often each row is drawn, `draws` in all; and counts for the manifest."""

    def words(self, num: int) -> UInt64[np.ndarray, " r"]:
        """A random word for each round."""
        return keyed_hash(np.arange(num, dtype=np.uint64), self.seed)


@dataclass(frozen=True, kw_only=True)
class SoftCap(Capped):
    """Draw different rows in each round; a drawn row's score falls by the penalty, so it comes again less often.

    Args:
        penalty: Taken from score / temperature of a row each time it is drawn.
        round_size: Rows in a round; null for draws / 1,280, as published. The last round may be smaller.

    Source: Shechter & Carmon 2025 (arXiv 2503.08805). Departure: their notebook draws without a seed.
    """

    penalty: float
    round_size: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.penalty < np.inf, "penalty", self.penalty, "0 or more")
        require(self.round_size is None or self.round_size > 0, "round_size", self.round_size, "above 0")

    def times(self, keys: np.ndarray, logits: np.ndarray, draws: int) -> tuple[np.ndarray, dict[str, Any]]:
        size = self.round_size or max(1, -(-draws // ROUNDS))
        if size > len(keys):
            raise BudgetError(
                f"select.round_size={size:,} rows differ in a round, and {len(keys):,} rows have a score. Lower "
                f"select.round_size (at most {len(keys):,}) or select.draws={draws:,}."
            )
        times = np.zeros(len(keys), np.int64)
        rounds = Rounds(keys, logits.copy(), size)
        words = self.words(-(-draws // size))
        for word in words:
            rounds.draws = min(size, draws - int(times.sum()))
            drawn = rounds.draw(word)
            times[drawn] += 1
            rounds.lower(drawn, logits[drawn] - self.penalty * times[drawn])
        return times, {"rounds": len(words), "round size": size}


@dataclass(frozen=True, kw_only=True)
class HardCap(Capped):
    """Draw with replacement; a row that was drawn `most` times is out.

    Args:
        most: The most draws of a row.

    Source: Shechter & Carmon 2025, the variant with a frequency limit.
    """

    most: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.most > 0, "most", self.most, "above 0")

    def times(self, keys: np.ndarray, logits: np.ndarray, draws: int) -> tuple[np.ndarray, dict[str, Any]]:
        if (room := self.most * len(keys)) < draws:
            raise BudgetError(
                f"select.most={self.most:,} draws of each of {len(keys):,} rows with a score are {room:,}, below "
                f"select.draws={draws:,}. Raise select.most, or lower select.draws."
            )
        return rings_before(keys, self.words(self.most), logits, draws), {}
