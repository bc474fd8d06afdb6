"""Intervals of a task's metrics, whatever its kind."""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from evaluation.kinds.base import Outcomes
from evaluation.kinds.registry import find_kind
from evaluation.metrics import fine
from evaluation.results import Result
from evaluation.statistics.significance import NUM_RESAMPLES, percentile_interval, picture_draws
from evaluation.tasks import Task


def metric_replicates(
    task: Task, metric: str, outcomes: Outcomes, *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> Float[np.ndarray, " r"]:
    """Compute a metric on resampled test samples; tasks draw independently of each other.

    The task's key takes part in the seed, so that no other task of the suite changes the draw.
    """
    generator = np.random.default_rng([seed, zlib.crc32(f"{task.key} {metric}".encode())])
    if metric in fine.NAMES:
        size = len(outcomes[metric])
        blocks = picture_draws(size, num_resamples=num_resamples, generator=generator)
        return np.concatenate([fine.on_draws(outcomes, metric, drawn) for drawn in blocks])
    return find_kind(task.kind).replicates(outcomes, metric, num_resamples=num_resamples, generator=generator)


def on_draws(task: Task, metric: str) -> Callable[..., Float[np.ndarray, " r"]]:
    """The function of outcomes, metric and draws that computes a metric of a task on given draws."""
    return fine.on_draws if metric in fine.NAMES else find_kind(task.kind).on_draws


def paired_replicates(
    task: Task, metric: str, results: Sequence[Result], *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> Float[np.ndarray, "c r"]:
    """Compute a metric of several checkpoints, each resample the same pictures for all.

    The results are of one set and choice of pictures, with their outcomes; other sets draw independently.
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
    outcomes: Outcomes,
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
