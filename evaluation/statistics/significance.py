"""How far a number could have come out otherwise, had other test pictures been drawn.

Percentile bootstrap: the samples (pictures, with their captions) are drawn again with replacement,
the metric is computed anew, and the middle 95 % of its values is the interval. One rule for every
metric: samples are drawn over the whole set, never within classes.

Resampled sums depend only on how often each distinct outcome is drawn, and these counts are
multinomial. So a resample of 50,000 hits and misses costs one binomial draw, exactly.

This is test-sample noise. Training noise (other seeds) is not in it. A metric of 0 or 1 has an
interval of no width here: the bootstrap cannot see what never occurred.

Two checkpoints on the same samples are tested, not only bracketed: if they are equally good on each
sample, their outcomes of a sample may change places, and the difference must not stand out among
those after random exchanges. For hits and misses that is the exact sign test (McNemar's).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

NUM_RESAMPLES = 1_000
LEVEL = 0.95
# Of what is called a difference, after Holm's correction.
ALPHA = 0.05
_SMALLEST_P = 1e-100
# Differences of metrics are sums of rounded numbers: equal ones may differ by this.
_ROUNDING = 1e-9
# Counts held at once, 8 bytes each.
_BLOCK = 2**22


def resample_counts(
    counts: Int[np.ndarray, " u"],
    statistic: Callable[[Int[np.ndarray, "r u"]], Float[np.ndarray, " r"]],
    *,
    num_resamples: int,
    generator: np.random.Generator,
) -> Float[np.ndarray, " r"]:
    """Compute a statistic of how often each distinct outcome is drawn.

    Args:
        counts: How many of the n samples have each of the u distinct outcomes.
        statistic: From resampled counts, each row summing to n.
        num_resamples: How many sets to draw.
        generator: Source of chance.
    """
    num_samples = int(counts.sum())
    step = max(1, _BLOCK // len(counts))
    sizes = [min(step, num_resamples - start) for start in range(0, num_resamples, step)]
    return np.concatenate([statistic(generator.multinomial(num_samples, counts / num_samples, s)) for s in sizes])


def mean_replicates(
    values: Shaped[np.ndarray, " n"], *, num_resamples: int = NUM_RESAMPLES, generator: np.random.Generator
) -> Float[np.ndarray, " r"]:
    """Means of resampled values, as hits (0 or 1) or differences of hits (-1, 0 or 1)."""
    distinct, counts = np.unique(values, return_counts=True)
    return resample_counts(
        counts,
        lambda drawn: drawn @ distinct.astype(np.float64) / len(values),
        num_resamples=num_resamples,
        generator=generator,
    )


def picture_draws(
    num_pictures: int, *, num_resamples: int = NUM_RESAMPLES, generator: np.random.Generator
) -> Iterator[Float32[np.ndarray, "b n"]]:
    """How often each picture is drawn in each resample, in blocks of resamples.

    For what is compared on the same pictures: one draw must serve all, or what they share in luck does
    not cancel. Equal seeds of the shortcut above do not do that.
    """
    step = max(1, _BLOCK // num_pictures)
    for start in range(0, num_resamples, step):
        block = [
            np.bincount(generator.integers(num_pictures, size=num_pictures), minlength=num_pictures)
            for _ in range(min(step, num_resamples - start))
        ]
        yield np.array(block, np.float32)  # exact: counts and their sums are far below 2**24


def class_recall_replicates(
    values: Shaped[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    *,
    num_resamples: int = NUM_RESAMPLES,
    generator: np.random.Generator,
) -> Float[np.ndarray, " r"]:
    """Means over classes of resampled values' means in each; a class that is not drawn is left out.

    Args:
        values: Hits (0 or 1), or differences of hits (-1, 0 or 1).
        labels: The class of each sample.
        num_resamples: How many sets to draw.
        generator: Source of chance.
    """
    classes, number = np.unique(labels, return_inverse=True)
    distinct, value = np.unique(values, return_inverse=True)
    shape = (len(classes), len(distinct))
    cells = number.ravel() * len(distinct) + value.ravel()

    def recall(drawn: Int[np.ndarray, "r u"]) -> Float[np.ndarray, " r"]:
        by_class = drawn.reshape(len(drawn), *shape)
        sizes = by_class.sum(axis=2)
        recalls = by_class @ distinct.astype(np.float64) / np.maximum(sizes, 1)
        return recalls.sum(axis=1) / (sizes > 0).sum(axis=1)

    counts = np.bincount(cells, minlength=shape[0] * shape[1])
    return resample_counts(counts, recall, num_resamples=num_resamples, generator=generator)


def percentile_interval(replicates: Float[np.ndarray, " r"], level: float = LEVEL) -> tuple[float, float]:
    """Cut equal tails off, so that `level` of the replicates lie between.

    Source:
        Efron 1979; Efron and Tibshirani 1993, section 13.3.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def sign_test(first: Bool[np.ndarray, " n"], second: Bool[np.ndarray, " n"]) -> float:
    """Test exactly, on both sides, whether hits of one checkpoint are misses of the other by chance.

    Source:
        McNemar 1947, with the binomial distribution in place of chi-square's: of the samples that
        one alone got right, each is the second's with probability one half.
    """
    from scipy.stats import binomtest

    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def exchanged_hits(
    first: Bool[np.ndarray, " n"],
    second: Bool[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    *,
    num_exchanges: int,
    generator: np.random.Generator,
) -> Float[np.ndarray, " e"]:
    """Differences of weighted sums of hits, second - first, after random exchanges of outcomes.

    Only samples that one alone got right move it, each up or down; those of one weight are counted.

    Args:
        first: Hits.
        second: The other checkpoint's hits of the same samples.
        weights: 1 / n for accuracy; for mean recall 1 / (classes x samples of the class).
        num_exchanges: How many to make.
        generator: Source of chance.
    """
    distinct, decided = np.unique(weights[first != second], return_counts=True)
    gained = generator.binomial(decided, 0.5, size=(num_exchanges, len(decided)))
    return (2.0 * gained - decided) @ distinct


def exchanged_differences(
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    on_draws: Callable[[Mapping[str, np.ndarray], Float32[np.ndarray, "r m"]], Float[np.ndarray, " r"]],
    num_samples: int,
    *,
    owner: str | None = None,
    num_exchanges: int,
    generator: np.random.Generator,
) -> tuple[float, Float[np.ndarray, " e"]]:
    """Difference of any metric, second - first, as it is and after random exchanges of outcomes.

    Both checkpoints' outcomes are laid end to end as 2 n samples; an exchange draws, for each place,
    which of a sample's two outcomes stands there. Each is drawn twice, so that a draw of 2 n samples
    has 2 n of them; no metric of means and ratios sees that.

    Args:
        first: Outcomes of each sample.
        second: The same samples' outcomes of the other checkpoint.
        on_draws: A metric on draws, as a kind of task gives it.
        num_samples: n.
        owner: The outcome that holds numbers of samples, if one does.
        num_exchanges: How many to make.
        generator: Source of chance.
    """
    both = joined(first, second, num_samples, owner)

    def difference(exchange: Bool[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
        chosen = np.concatenate([exchange, ~exchange], axis=1)
        sides = [on_draws(both, 2 * side.astype(np.float32)) for side in (chosen, ~chosen)]
        return sides[0] - sides[1]

    observed = float(difference(np.zeros((1, num_samples), bool))[0])
    step = max(1, _BLOCK // (2 * num_samples))
    sizes = [min(step, num_exchanges - start) for start in range(0, num_exchanges, step)]
    found = [difference(generator.integers(2, size=(size, num_samples), dtype=bool)) for size in sizes]
    return observed, np.concatenate(found)


def exchange_p(observed: float, exchanged: Float[np.ndarray, " e"]) -> float:
    """Share of exchanges, the true order among them, with a difference at least as far from nil.

    Source:
        Phipson and Smyth 2010: with the true order counted, the p-value is never too small.
    """
    as_far = int((np.abs(exchanged) >= abs(observed) - _ROUNDING).sum())
    return (1 + as_far) / (1 + len(exchanged))


def holm(p: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Adjust p-values of m tests, so that one false verdict among all is as rare as stated.

    Source:
        Holm 1979: the smallest times m, the next times m - 1, and so on, never falling, at most 1.
    """
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def joined(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], num_samples: int, owner: str | None
) -> dict[str, np.ndarray]:
    """Lay the outcomes of two checkpoints end to end, as those of twice as many samples.

    What is one number for the whole set, as the protocol, is the first's.
    """
    if owner:
        second = {**second, owner: second[owner] + num_samples}
    return {
        name: np.concatenate([values, second[name]]) if values.ndim else values for name, values in first.items()
    }


@dataclass(frozen=True)
class TwoNoises:
    """Standard errors of a difference of two methods."""

    of_seeds: float  # from the spread of the seeds
    freedom: float  # degrees of freedom of that
    of_samples: float  # from the test samples

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, sample_variance: float) -> "TwoNoises":
        """From the values of the seeds of two arms, two or more each.

        Source:
            Welch 1947, for unequal spreads.
        """
        parts = [float(side.var(ddof=1)) / len(side) for side in (first, second)]
        terms = [p**2 / (len(side) - 1) for p, side in zip(parts, (first, second), strict=True)]
        freedom = sum(parts) ** 2 / sum(terms) if sum(terms) > 0 else math.inf
        return cls(math.sqrt(sum(parts)), freedom, math.sqrt(sample_variance))

    def reach(self, alpha: float) -> float:
        """Half the width of the interval at level 1 - alpha: each noise's own reach, squares added.

        With three seeds an arm it errs less often than stated where both noises count, and up to a
        fifth more often where test samples have next to none and one arm's seeds spread many times
        as far as the other's.
        """
        from scipy.special import ndtri, stdtrit  # as scipy.stats', a hundred times sooner

        by_seeds = float(stdtrit(self.freedom, alpha / 2)) * self.of_seeds if self.of_seeds else 0.0
        return math.hypot(by_seeds, float(ndtri(alpha / 2)) * self.of_samples)

    def p(self, difference: float) -> float:
        """The smallest alpha whose interval leaves nil out."""
        from scipy.optimize import brentq

        if self.reach(_SMALLEST_P) <= abs(difference):
            return _SMALLEST_P if difference else 1.0
        if difference == 0:
            return 1.0
        found: Any = brentq(lambda power: self.reach(10**power) - abs(difference), math.log10(_SMALLEST_P), 0)
        return float(10**found)
