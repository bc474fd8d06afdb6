"""A measure of an arm of ours, with test-sample noise and, from three seeds on, training noise.

Each resample takes the same test samples for every checkpoint, so that differences of arms are paired.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from evaluation.metrics.measures import paired_replicates
from evaluation.report.paper.match import Arm
from evaluation.report.paper.runs import OurRun
from evaluation.report.paper.tables import Measure
from evaluation.results import outcomes_path
from evaluation.statistics.arms import MIN_SEEDS
from evaluation.statistics.significance import ALPHA, TwoNoises, percentile_interval
from evaluation.tasks import find_task


@dataclass(frozen=True)
class Measured:
    """A measure of an arm."""

    seeds: tuple[float, ...]  # its value for each seed, in [0, 1]
    replicates: np.ndarray | None  # of the mean over seeds, on resampled test samples; none without outcomes

    @property
    def value(self) -> float:
        return float(np.mean(self.seeds))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %, over test samples, and over seeds where there are at least three."""
        if self.replicates is None:
            return None
        if len(self.seeds) < MIN_SEEDS:
            return percentile_interval(self.replicates)
        from scipy.stats import norm, t

        spread = float(np.std(self.seeds, ddof=1)) / len(self.seeds) ** 0.5
        by_seeds = float(t.isf(ALPHA / 2, len(self.seeds) - 1)) * spread
        reach = np.hypot(by_seeds, float(norm.isf(ALPHA / 2)) * float(np.std(self.replicates)))
        return float(max(self.value - reach, 0.0)), float(min(self.value + reach, 1.0))


@dataclass
class Measuring:
    """Computes measures, each resampled result once."""

    seed: int = 0  # of the bootstrap
    # Replicates by file, task, protocol and metric
    cache: dict[tuple[Path, str, str, str], np.ndarray | None] = field(default_factory=dict)

    def missing(self, measure: Measure, arm: Arm, protocol: str) -> list[str]:
        """The tasks of a measure that some run of an arm has no value of."""
        return [
            task for task in measure.tasks if any(_value(run, measure, task, protocol) is None for run in arm.runs)
        ]

    def measure(self, measure: Measure, arm: Arm, protocol: str) -> Measured:
        """The plain mean of a measure's tasks, which the arm has all values of."""
        assert measure.tasks, "a measure of something"
        assert not self.missing(measure, arm, protocol)
        seeds, draws = [], []
        for run in arm.runs:
            values = [_value(run, measure, task, protocol) for task in measure.tasks]
            seeds.append(float(np.mean([value for value in values if value is not None])))
            draws.append([self._draws(run, measure, task, protocol) for task in measure.tasks])
        known = [d for of_run in draws for d in of_run if d is not None]
        is_whole = len(known) == len(draws) * len(measure.tasks)
        return Measured(tuple(seeds), np.mean(known, axis=0) if is_whole else None)

    def _draws(self, run: OurRun, measure: Measure, task: str, protocol: str) -> np.ndarray | None:
        result, file = run.results[task, protocol]
        metric = _metric(measure, task)
        place = (file, f"{task} {result.identity}", protocol, metric)
        beside = outcomes_path(file, result)
        if place not in self.cache and not beside.exists():
            self.cache[place] = None
        elif place not in self.cache:
            with np.load(beside, allow_pickle=False) as arrays:
                whole = replace(result, outcomes=dict(arrays))
            self.cache[place] = paired_replicates(find_task(task), metric, [whole], seed=self.seed)[0]
        return self.cache[place]


def noise_of(first: Measured, second: Measured) -> TwoNoises | None:
    """Both kinds of noise of first - second; none with fewer than three seeds, or without outcomes."""
    if first.replicates is None or second.replicates is None:
        return None
    if min(len(first.seeds), len(second.seeds)) < MIN_SEEDS:
        return None
    variance = float(np.nanvar(first.replicates - second.replicates))
    return TwoNoises.of(np.array(first.seeds), np.array(second.seeds), variance)


def are_same_samples(measure: Measure, first: Arm, second: Arm, protocol: str) -> bool:
    """Whether two arms were measured on the same test samples."""
    digests = [
        {run.results[task, protocol][0].set_digest for run in (*first.runs, *second.runs)} for task in measure.tasks
    ]
    return all(len(found) == 1 for found in digests)


def _metric(measure: Measure, task: str) -> str:
    return measure.metric or find_task(task).main_metric or ""


def _value(run: OurRun, measure: Measure, task: str, protocol: str) -> float | None:
    found = run.results.get((task, protocol))
    return found[0].metrics.get(_metric(measure, task)) if found else None
