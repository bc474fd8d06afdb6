"""Where each kind of task finds its intervals. A new kind adds its module here."""

import zlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from evaluation import retrieval, zero_shot
from evaluation.significance import NUM_RESAMPLES, percentile_interval
from evaluation.tasks import Task

REPLICATES = {
    "classification": zero_shot.replicates,
    "retrieval": retrieval.replicates,
}


def metric_replicates(
    task: Task,
    metric: str,
    outcomes: Mapping[str, np.ndarray],
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> Float[np.ndarray, " r"]:
    """Compute a metric on resampled test samples; tasks draw independently of each other.

    Args:
        task: Its key takes part in the seed, so that no other task of the suite changes the draw.
        metric: One of those that the task reports.
        outcomes: Per-sample outcomes, as in `Result.outcomes`.
        seed: Of the bootstrap.
        num_resamples: How many sets to draw.
    """
    generator = np.random.default_rng([seed, zlib.crc32(f"{task.key} {metric}".encode())])
    replicates = REPLICATES[task.kind]
    return replicates(outcomes, metric, num_resamples=num_resamples, generator=generator)


def metric_intervals(
    task: Task,
    metrics: Mapping[str, float | None],
    outcomes: Mapping[str, np.ndarray],
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, tuple[float, float]]:
    """Find the 95 % interval of every metric that has a value."""
    return {
        name: percentile_interval(
            metric_replicates(task, name, outcomes, seed=seed, num_resamples=num_resamples)
        )
        for name, value in metrics.items()
        if value is not None
    }
