"""How far a number could have come out otherwise, had other test pictures been drawn.

Percentile bootstrap: the samples (pictures, with their captions) are drawn again with replacement,
the metric is computed anew, and the middle 95 % of its values is the interval. One rule for every
metric: samples are drawn over the whole set, never within classes.

Resampled sums depend only on how often each distinct outcome is drawn, and these counts are
multinomial. So a resample of 50,000 hits and misses costs one binomial draw, exactly.

This is test-sample noise. Training noise (other seeds) is not in it. A metric of 0 or 1 has an
interval of no width here: the bootstrap cannot see what never occurred.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

NUM_RESAMPLES = 1_000
LEVEL = 0.95
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
    return np.concatenate(
        [statistic(generator.multinomial(num_samples, counts / num_samples, s)) for s in sizes]
    )


def mean_replicates(
    values: Shaped[np.ndarray, " n"],
    *,
    num_resamples: int = NUM_RESAMPLES,
    generator: np.random.Generator,
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
    num_pictures: int,
    *,
    num_resamples: int = NUM_RESAMPLES,
    generator: np.random.Generator,
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
    is_right: Bool[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    *,
    num_resamples: int = NUM_RESAMPLES,
    generator: np.random.Generator,
) -> Float[np.ndarray, " r"]:
    """Mean per-class recalls of resampled samples; a class that is not drawn is left out."""
    classes, number = np.unique(labels, return_inverse=True)
    num_classes = len(classes)
    counts = np.bincount(2 * number.ravel() + is_right, minlength=2 * num_classes)

    def recall(drawn: Int[np.ndarray, "r u"]) -> Float[np.ndarray, " r"]:
        wrong_right = drawn.reshape(len(drawn), num_classes, 2)
        sizes = wrong_right.sum(axis=2)
        recalls = wrong_right[:, :, 1] / np.maximum(sizes, 1)
        return recalls.sum(axis=1) / (sizes > 0).sum(axis=1)

    return resample_counts(counts, recall, num_resamples=num_resamples, generator=generator)


def percentile_interval(
    replicates: Float[np.ndarray, " r"], level: float = LEVEL
) -> tuple[float, float]:
    """Cut equal tails off, so that `level` of the replicates lie between.

    Source:
        Efron 1979; Efron and Tibshirani 1993, section 13.3.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def paired_interval(
    first: Shaped[np.ndarray, " n"],
    second: Shaped[np.ndarray, " m"],
    *,
    generator: np.random.Generator,
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Interval of the mean of first - second, two outcomes of each of the same samples.

    Narrower than two intervals apart, since what is hard for one is mostly hard for the other.

    Raises:
        ValueError: The two do not have the same number of samples.
    """
    if len(first) != len(second):
        raise ValueError(
            f"Cannot pair {len(first):,} outcomes with {len(second):,}: both must be of the same "
            "samples in the same order. Evaluate both checkpoints on the same set and limit."
        )
    differences = first.astype(np.float64) - second.astype(np.float64)
    replicates = mean_replicates(differences, num_resamples=num_resamples, generator=generator)
    return percentile_interval(replicates, level)
