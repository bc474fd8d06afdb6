"""Checkpoints and arms compared, with two kinds of noise kept apart.

Test-sample noise comes from the test samples, the same for all that is compared: it separates two
*checkpoints*. Training noise comes from the seeds, which arms share (`evaluation/statistics/arms.py`). A verdict
about *methods* needs both, and so at least three seeds per arm; with fewer nothing is called significant.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from evaluation.kinds.registry import find_kind
from evaluation.metrics.measures import on_draws, paired_replicates
from evaluation.results import Result
from evaluation.statistics.significance import (
    NUM_RESAMPLES,
    class_recall_replicates,
    exchange_p,
    exchanged_differences,
    exchanged_hits,
    mean_replicates,
    percentile_interval,
    sign_test,
)
from evaluation.tasks import find_task

MEAN = "mean"
# Metrics that are weighted sums of hits, beside acc1 and acc5.
RECALL, TEXT_RECALL = "mean_per_class_recall", "text_retrieval_recall@"
# What must be equal before two results of a task are compared, and what it is called.
SAME = {
    "protocol": "protocols",
    "precision": "precisions",
    "limit": "limits",
    "set_digest": "sets (another version, or another choice of pictures)",
}


@dataclass(frozen=True)
class Run:
    """One trained and evaluated point of an arm: one seed."""

    seed: int
    results: Sequence[Result]
    facts: dict[str, Any]  # keys, rows kept, steps, seconds


@dataclass(frozen=True)
class Arm:
    """One method at one point of the grid, over its seeds."""

    name: str
    runs: Sequence[Run]
    control: str | None = None  # name of the arm that differences are taken from
    failures: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Cell:
    """One metric of one arm."""

    value: float  # mean over seeds, in [0, 1]
    interval: tuple[float, float]  # 95 %, over test samples
    seeds: tuple[float, ...]  # the value of each seed
    difference: float | None = None  # to the control; none for the control itself
    # Of the difference, under test-sample and seed variance, simultaneous with all others of its family (the tasks
    # of all arms, or their means); none with fewer than three seeds
    difference_interval: tuple[float, float] | None = None
    p: float | None = None  # of no difference between the methods; none where there is no interval
    adjusted_p: float | None = None  # the same for the family (Sidak)
    is_separate: bool = False  # whether the interval excludes zero
    control: str | None = None  # the arm that the difference is to


@dataclass(frozen=True)
class Paired:
    """One metric of two checkpoints on the same samples, or the mean of several."""

    first: float  # its value
    second: float  # its value
    replicates: np.ndarray  # second - first on resampled test samples
    exchanged: np.ndarray  # second - first after random exchanges of the two's outcomes of each sample
    p: float  # of no difference: the exact sign test for hits and misses, else from the exchanges

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, over test samples; resamples without a value, as of a group nobody is in, are left out."""
        return percentile_interval(self.replicates[np.isfinite(self.replicates)])


def why_not_comparable(first: Result, second: Result) -> str | None:
    """Say what keeps two results of a task from being compared, if anything does."""
    for name, words in SAME.items():
        mine, other = getattr(first, name), getattr(second, name)
        if mine != other:
            return f"the {words} differ: {_short(mine)} and {_short(other)}"
    versions = [(result.own_task or {}).get("version", 1) for result in (first, second)]
    if versions[0] != versions[1]:
        return f"the versions of the task differ: {versions[0]} and {versions[1]}"
    if not first.outcomes or not second.outcomes:
        return "the outcomes of its samples are not beside the results file"
    for name in find_kind(find_task(first.task).kind).truth:
        if name in first.outcomes and not np.array_equal(first.outcomes[name], second.outcomes.get(name, ())):
            return f"the samples are not the same: their outcomes differ in {name}"
    return None


def pair(
    metric: str, first: Result, second: Result, *, seed: int, num_exchanges: int, num_resamples: int = NUM_RESAMPLES
) -> Paired:
    """Compare two checkpoints on one metric of one task.

    Args:
        metric: One that both have a value of.
        first: With outcomes.
        second: With outcomes, and comparable.
        seed: Of resamples and exchanges; other tasks and metrics draw independently.
        num_exchanges: The p-value is at least 1 in so many, plus one.
        num_resamples: Of the interval.
    """
    assert why_not_comparable(first, second) is None, "results that can be compared"
    task = find_task(first.task)
    mine, other = first.metrics[metric], second.metrics[metric]
    assert mine is not None, f"{metric} has no value"
    assert other is not None, f"{metric} has no value"
    words = f"{task.key} {metric} {first.set_digest} pair"
    generator = np.random.default_rng([seed, zlib.crc32(words.encode())])
    if (weights := _weights(first.outcomes, metric)) is not None:
        hits, their_hits = _hits(first.outcomes, metric), _hits(second.outcomes, metric)
        gains = their_hits.astype(np.int64) - hits
        draws = (
            class_recall_replicates(
                gains, first.outcomes["label"], num_resamples=num_resamples, generator=generator
            )
            if metric == RECALL
            else mean_replicates(gains, num_resamples=num_resamples, generator=generator)
        )
        exchanged = exchanged_hits(hits, their_hits, weights, num_exchanges=num_exchanges, generator=generator)
        p = exchange_p(float(gains @ weights), exchanged) if metric == RECALL else sign_test(hits, their_hits)
        return Paired(mine, other, draws, exchanged, p)
    both = paired_replicates(task, metric, [first, second], seed=seed, num_resamples=num_resamples)
    compute = on_draws(task, metric)
    observed, exchanged = exchanged_differences(
        first.outcomes, second.outcomes, lambda outcomes, drawn: compute(outcomes, metric, drawn),
        first.num_samples, owner=find_kind(task.kind).owner, num_exchanges=num_exchanges, generator=generator,
    )  # fmt: skip
    return Paired(mine, other, both[1] - both[0], exchanged, exchange_p(observed, exchanged))


def mean_pair(pairs: Sequence[Paired]) -> Paired:
    """Compare two checkpoints on the plain mean of tasks, whose test sets are independent."""
    exchanged = np.mean([one.exchanged for one in pairs], axis=0)
    first, second = (float(np.mean([getattr(one, side) for one in pairs])) for side in ("first", "second"))
    draws = np.mean([one.replicates for one in pairs], axis=0)
    return Paired(first, second, draws, exchanged, exchange_p(second - first, exchanged))


def _weights(outcomes: Mapping[str, np.ndarray], metric: str) -> Float[np.ndarray, " n"] | None:
    """The weight of each sample's hit in a metric that is a weighted sum of hits; none for others."""
    if metric == RECALL:
        _, number, sizes = np.unique(outcomes["label"], return_inverse=True, return_counts=True)
        return 1 / (len(sizes) * sizes[number])
    if metric in ("acc1", "acc5") or metric.startswith(TEXT_RECALL):
        num_samples = len(outcomes["text_rank" if "@" in metric else "rank"])
        return np.full(num_samples, 1 / num_samples)
    return None


def _hits(outcomes: Mapping[str, np.ndarray], metric: str) -> Bool[np.ndarray, " n"]:
    """Whether each sample is a hit, for a metric that has weights."""
    if metric == RECALL:
        return outcomes["predicted"] == outcomes["label"]
    if metric.startswith(TEXT_RECALL):
        return outcomes["text_rank"] < int(metric.removeprefix(TEXT_RECALL))
    return outcomes["rank"] < int(metric.removeprefix("acc"))


def _short(value: object) -> str:
    return "none" if value is None else str(value)[:12]
