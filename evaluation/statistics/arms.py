"""Differences of arms whose runs share seeds: how they spread over seeds, and one family of verdicts.

Runs of one seed share weights, order and augmentation, so an arm is compared with its control seed by seed. With
three seeds the spread of such differences is itself a guess, so it is taken from the residuals of all arms (a
two-way layout, arms x seeds), and made larger for a pair of arms that spreads more than the others over all
tasks. Chosen by simulation (`tests/benchmarks/bench_significance.py`, results in docs/evaluation.md).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evaluation.statistics.significance import ALPHA, TwoNoises

MIN_SEEDS = 3
POWER = 0.80
MANY_SEEDS = 1_000
# Below this a residual variance is rounding.
_NONE = 1e-20
Values = Mapping[str, Mapping[str, Mapping[int, float]]]  # arm -> column -> seed -> value


def pooled_variance(values: Float[np.ndarray, "a s"]) -> float:
    """Residual variance of a two-way layout without interaction, arms x seeds, of one run.

    Source:
        Fisher 1925: what neither an arm's mean nor a seed's mean explains, over (a - 1)(s - 1) degrees of freedom.
    """
    arms, seeds = values.shape
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return float((rest**2).sum()) / ((arms - 1) * (seeds - 1))


def seed_share(values: Float[np.ndarray, "a s"]) -> float:
    """Share of the variance within arms that the seed explains, in [0, 1]; 0 where nothing varies."""
    pooled = pooled_variance(values)
    of_seeds = max(0.0, float(values.mean(axis=0).var(ddof=1)) - pooled / len(values))
    return of_seeds / (of_seeds + pooled) if of_seeds + pooled > 0 else 0.0


def sidak(p: float, tests: int) -> float:
    """Adjust a p-value of a family of tests in one step: 1 - (1 - p)^tests.

    Source:
        Sidak 1967. Differences to one control depend on each other positively, where it errs on the safe side.
    """
    return -math.expm1(tests * math.log1p(-min(p, 1 - 1e-16)))


def family_level(tests: int) -> float:
    """The level of one test, so that one false verdict among all is as rare as `ALPHA` says."""
    return -math.expm1(math.log1p(-ALPHA) / tests)


class SharedSeeds:
    """The arms of a table that share seeds, and the noise of their differences.

    Args:
        values: Arm -> column -> seed -> value; columns are tasks and means of tasks.
        tasks: The columns that are tasks.
    """

    def __init__(self, values: Values, tasks: Sequence[str]) -> None:
        self.values, self.tasks = values, tasks
        seeds = {
            arm: frozenset().union(*(by_seed.keys() for by_seed in columns.values()))
            for arm, columns in values.items()
        }
        shared = Counter(found for found in seeds.values() if len(found) >= MIN_SEEDS)
        self.seeds = sorted(max(shared, key=lambda found: (shared[found], sorted(found)))) if shared else []
        self.arms = [arm for arm, found in seeds.items() if sorted(found) == self.seeds]
        self.apart = [arm for arm, found in seeds.items() if arm not in self.arms and len(found) >= MIN_SEEDS]

        columns = dict.fromkeys(column for row in values.values() for column in row)
        self.layouts = {c: layout for c in columns if (layout := self._layout(c)) is not None}
        self.pooled = {c: pooled_variance(layout) for c, layout in self.layouts.items()}
        self._spreads: dict[tuple[str, str], float] = {}

    def _layout(self, column: str) -> Float[np.ndarray, "a s"] | None:
        """Values of a column by arm and seed, one row for arms whose values are all the same; none below two."""
        rows = {
            tuple(self.values[arm][column][seed] for seed in self.seeds)
            for arm in self.arms
            if set(self.values[arm].get(column, ())) == set(self.seeds)
        }
        return np.array(sorted(rows)) if len(rows) > 1 else None

    def spread(self, arm: str, control: str) -> float:
        """How much more a pair's differences vary than those of all arms, over tasks; at least 1."""
        if (arm, control) not in self._spreads:
            ratios = [
                float(gains.var(ddof=1)) / (2 * self.pooled[task])
                for task in self.tasks
                if self.pooled.get(task, 0.0) > _NONE and (gains := self._gains(arm, control, task)) is not None
            ]
            self._spreads[arm, control] = max(1.0, float(np.mean(ratios))) if ratios else 1.0
        return self._spreads[arm, control]

    def _gains(self, arm: str, control: str, column: str) -> Float[np.ndarray, " s"] | None:
        sides = [self.values[name].get(column, {}) for name in (arm, control)]
        if arm not in self.arms or control not in self.arms:
            return None
        if any(set(side) != set(self.seeds) for side in sides):
            return None
        return np.array([sides[0][seed] - sides[1][seed] for seed in self.seeds])

    def noise(self, arm: str, control: str, column: str, sample_variance: float) -> TwoNoises | None:
        """The two noises of a difference; none below three seeds, or where no seed moves a value.

        Arms of other seeds than their control's are compared unpaired.
        """
        sides = [self.values[name].get(column, {}) for name in (arm, control)]
        if min(map(len, sides)) < MIN_SEEDS:
            return None
        layout, gains = self.layouts.get(column), self._gains(arm, control, column)
        if layout is None or gains is None:
            first, second = (np.array(list(side.values())) for side in sides)
            unpaired = TwoNoises.of(first, second, sample_variance)
            return unpaired if unpaired.of_seeds**2 > _NONE else None
        if self.pooled[column] <= _NONE:
            return None
        variance = 2 * self.pooled[column] * self.spread(arm, control) / len(self.seeds)
        freedom = (len(layout) - 1) * (len(self.seeds) - 1)
        return TwoNoises(math.sqrt(variance), float(freedom), math.sqrt(sample_variance))


@dataclass(frozen=True)
class Precision:
    """What a table of so many seeds can tell."""

    share: float  # of the variance within arms that seeds explain
    smallest: float  # the difference that is found with a power of 80 %, in the middle of all arms
    # Seeds per arm for half a point; none if no number is enough, since test samples alone hide it
    seeds_for_half: int | None


def precision(shared: SharedSeeds, column: str, noises: Sequence[TwoNoises]) -> Precision | None:
    """What the differences of a column can tell; none without a layout or a difference."""
    layout = shared.layouts.get(column)
    if layout is None or not noises:
        return None
    noise = sorted(noises, key=lambda one: one.reach(ALPHA))[len(noises) // 2]
    tests, seeds = len(noises), len(shared.seeds)

    def smallest(number: int) -> float:
        freedom = max(1.0, noise.freedom / (seeds - 1) * (number - 1))
        there = TwoNoises(noise.of_seeds * math.sqrt(seeds / number), freedom, noise.of_samples)
        return there.reach(family_level(tests)) + there.reach(2 * (1 - POWER))

    enough = next((n for n in range(2, MANY_SEEDS) if smallest(n) <= 0.005), None)
    return Precision(seed_share(layout), smallest(seeds), enough)
