"""Intervals of a task's metrics, whatever its kind."""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from evaluation.kinds.registry import KINDS
from evaluation.metrics import fine
from evaluation.results import Result
from evaluation.statistics.significance import NUM_RESAMPLES, percentile_interval, picture_draws
from evaluation.tasks import Task


def metric_replicates(
    task: Task, metric: str, outcomes: Mapping[str, np.ndarray], *, seed: int, num_resamples: int = NUM_RESAMPLES
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
    if metric in fine.NAMES:
        size = len(outcomes[metric])
        blocks = picture_draws(size, num_resamples=num_resamples, generator=generator)
        return np.concatenate([fine.on_draws(outcomes, metric, drawn) for drawn in blocks])
    return KINDS[task.kind].replicates(outcomes, metric, num_resamples=num_resamples, generator=generator)


def on_draws(task: Task, metric: str) -> Callable[..., Float[np.ndarray, " r"]]:
    """The function of outcomes, metric and draws that computes a metric of a task on given draws."""
    return fine.on_draws if metric in fine.NAMES else KINDS[task.kind].on_draws


def paired_replicates(
    task: Task, metric: str, results: Sequence[Result], *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> Float[np.ndarray, "c r"]:
    """Compute a metric of several checkpoints, each resample the same pictures for all.

    Args:
        task: What was evaluated.
        metric: One of those that the task reports.
        results: Of one set and choice of pictures, with their outcomes.
        seed: Of the bootstrap; other sets draw independently.
        num_resamples: How many sets to draw.
    """
    first = results[0]
    assert all(r.set_digest == first.set_digest for r in results), "the same pictures"
    name = f"{task.key} {metric} {first.set_digest}"
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    blocks = picture_draws(first.num_samples, num_resamples=num_resamples, generator=generator)
    compute = on_draws(task, metric)
    return np.concatenate([[compute(r.outcomes, metric, drawn) for r in results] for drawn in blocks], axis=1)


def metric_intervals(
    task: Task,
    metrics: Mapping[str, float | None],
    outcomes: Mapping[str, np.ndarray],
    *,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, tuple[float, float]]:
    """Find the 95 % interval of every metric that has a value; counts have none."""
    return {
        name: percentile_interval(metric_replicates(task, name, outcomes, seed=seed, num_resamples=num_resamples))
        for name, value in metrics.items()
        if value is not None and not name.startswith("count_")
    }
