"""Family-wise error and power of ways to compare arms that share seeds, by simulation.

    python tests/benchmarks/bench_significance.py [--tables 2000]

A table has arms x seeds x tasks. A value is an arm's true mean + its seed's shift (shared by all arms) + a
residual + test-sample noise that is one number for an arm and task in all its seeds. Spreads are residual
standard deviations in units of the typical one; `realistic` are those of the demo's five arms. Printed: the share
of tables with a false verdict when no arm differs, and the share of true verdicts when one arm differs by three
residual standard deviations in every task. At 2,000 tables a level of 5 % is seen as 4.0 to 6.0 %.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import digamma, ndtri, polygamma, stdtrit

from evaluation.statistics.arms import family_level, pooled_variance

SPREADS = {
    "equal": np.ones(6),
    "realistic": np.array([1.0, 0.5, 0.8, 1.0, 1.4, 1.0]),
    "threefold": np.array([1.0, 3.0, 1.0, 3.0, 1.0, 1.0]),
    "control threefold": np.array([3.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
}
TASKS, SHARED, SAMPLE_NOISE, EFFECT, ALPHA = 5, 0.4, 0.3, 3.0, 0.05


def reach(variance: Any, freedom: Any, sample: float, alpha: float) -> np.ndarray:
    """Half widths at level 1 - alpha: each noise's own, squares added."""
    seeds = stdtrit(freedom, 1 - alpha / 2) ** 2 * variance
    return np.sqrt(seeds + ndtri(1 - alpha / 2) ** 2 * sample)


def welch_holm(mean: np.ndarray, variance: np.ndarray, freedom: np.ndarray, sample: float) -> np.ndarray:
    """Holm's steps: the smallest p at alpha / m, the next at alpha / (m - 1), until one is not reached."""
    left, found = np.ones(mean.shape, bool), np.zeros(mean.shape, bool)
    while left.any():
        far = left & (np.abs(mean) >= reach(variance, freedom, sample, ALPHA / left.sum()))
        if not far.any():
            break
        found |= far
        left &= ~far
    return found


def moderated(own: np.ndarray, pooled: np.ndarray, freedom: float, most: float) -> tuple[np.ndarray, float]:
    """Variances shrunk towards pooled ones by how much their ratios vary, and degrees of freedom (Smyth 2004)."""
    logs = np.log(own / pooled)
    excess = (float(np.var(logs, ddof=1)) if logs.size > 1 else 0.0) - float(polygamma(1, freedom / 2))
    if excess <= 0:
        return pooled, most
    low, high = 1e-8, 1e8
    for _ in range(100):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if polygamma(1, middle) > excess else (low, middle)
    prior = 2 * float(low)
    back = [float(digamma(f / 2)) - np.log(f / 2) for f in (freedom, prior)]
    scale = np.exp(logs.mean() - back[0] + back[1])
    return (prior * scale * pooled + freedom * own) / (prior + freedom), min(prior + freedom, most)


def verdicts(
    y: np.ndarray, contrasts: np.ndarray, sample: float, tasks: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Which contrasts each analysis calls different: Bool[contrast x task] by name.

    Args:
        y: Values[arm, seed, task].
        contrasts: Arm and control of each.
        sample: Variance of a difference over test samples.
        tasks: Where `y` is a mean of tasks, their values, for the spread of a pair.
    """
    num_arms, num_seeds, _ = y.shape
    differences = y[contrasts[:, 0]] - y[contrasts[:, 1]]
    mean, own = differences.mean(axis=1), differences.var(axis=1, ddof=1) / num_seeds
    both = y.var(axis=1, ddof=1) / num_seeds
    parts = both[contrasts[:, 0]], both[contrasts[:, 1]]
    unpaired = parts[0] + parts[1]
    freedom = unpaired**2 / (parts[0] ** 2 + parts[1] ** 2) * (num_seeds - 1)
    pooled = np.array([pooled_variance(table) for table in np.moveaxis(y, 2, 0)])
    common = np.broadcast_to(2 * pooled / num_seeds, own.shape)
    most = (num_arms - 1) * (num_seeds - 1)
    shrunk, degrees = moderated(own, common, num_seeds - 1, most)
    ratio = np.maximum(1, ratios(y if tasks is None else tasks, contrasts))
    family = family_level(mean.size)

    def one_step(variance: np.ndarray, freedom: Any) -> np.ndarray:
        return np.abs(mean) >= reach(variance, freedom, sample, family)

    return {
        "unpaired Welch, Holm": welch_holm(mean, unpaired, freedom, sample),
        "paired t, Holm": welch_holm(mean, own, np.full(mean.shape, num_seeds - 1.0), sample),
        "two-way pooled, Holm": welch_holm(mean, common, np.full(mean.shape, float(most)), sample),
        "two-way pooled, Sidak": one_step(common, most),
        "shrunk, Sidak": one_step(shrunk, degrees),
        "shrunk or pooled, the larger, Sidak": one_step(np.maximum(shrunk, common), degrees),
        "pooled x spread over tasks, Sidak": one_step(common * ratio, most),
    }


def ratios(y: np.ndarray, contrasts: np.ndarray) -> np.ndarray:
    """How much more a pair's differences vary than those of all arms: mean over tasks, one column."""
    gains = (y[contrasts[:, 0]] - y[contrasts[:, 1]]).var(axis=1, ddof=1)
    pooled = np.array([pooled_variance(table) for table in np.moveaxis(y, 2, 0)])
    return (gains / (2 * pooled)).mean(axis=1, keepdims=True)


def draw(spreads: np.ndarray, seeds: int, block: float, chance: np.random.Generator) -> np.ndarray:
    """One table: Float[arm, seed, task]; residuals of one run share a part over its tasks."""
    arms = len(spreads)
    shared = chance.normal(size=(arms, seeds, 1))
    own = chance.normal(size=(arms, seeds, TASKS))
    residual = (np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * own) * spreads[:, None, None]
    shift = block * chance.normal(size=(1, seeds, TASKS))
    fixed = SAMPLE_NOISE * chance.normal(size=(arms, 1, TASKS))
    return residual + shift + fixed


def study(tables: int, say: Callable[[str], None]) -> None:
    """Print a row for each setting and analysis: both families, the tasks and their mean."""
    for controls in (1, 2):
        contrasts = np.array([(a, c) for c in range(controls) for a in range(6) if a >= controls])
        at = contrasts[:, 0] == 5
        for spread, spreads in SPREADS.items():
            for block in (0.0, 1.0):
                for seeds in (3, 5, 8):
                    chance = np.random.default_rng(0)
                    rates: dict[str, np.ndarray] = {}
                    for _ in range(tables):
                        y = draw(spreads, seeds, block, chance)
                        moved = y + np.where(np.arange(6) == 5, EFFECT, 0)[:, None, None]
                        sample = 2 * SAMPLE_NOISE**2
                        tests = [
                            found
                            for table in (y, moved)
                            for found in (
                                verdicts(table, contrasts, sample),
                                verdicts(table.mean(axis=2, keepdims=True), contrasts, sample / TASKS, table),
                            )
                        ]
                        for name in tests[0]:
                            none, none_mean, one, one_mean = (found[name] for found in tests)
                            row = [none.any(), none_mean.any(), one[at].mean(), one_mean[at].mean()]
                            rates[name] = rates.get(name, np.zeros(4)) + row
                    for name, sums in rates.items():
                        cells = " | ".join(f"{100 * value / tables:.1f}" for value in sums)
                        say(f"| {controls} | {spread} | {block:g} | {seeds} | {name} | {cells} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=2000)
    print("| controls | spreads | seed shift | seeds | analysis | false %, tasks | mean | power %, tasks | mean |")
    print("|---|---|---|---|---|---|---|---|---|")
    study(parser.parse_args().tables, lambda line: print(line, flush=True))
