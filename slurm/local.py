"""Run the points of a plan on this machine, in this process or in a few spawned ones.

All state is in the store, so a killed sweep goes on from what was finished, and two processes that make
the same artifact both end well.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from dbp.errors import DbpError
from dbp.store import Store
from slurm.plan import Point, stages


def run_points(
    points: Sequence[Point], store: Store, workers: int, say: Callable[[str], None]
) -> dict[str, str]:
    """Build the last stage of each point.

    Args:
        points: What to run.
        store: Where results go.
        workers: Processes; each takes an equal share of the cores.
        say: Receives a line for each point that ends.

    Returns:
        Key of each failed point's evaluation -> why it failed; the other points are run all the same.
    """
    waiting = [p for p in points if store.entry(p.last) is None]
    failures: dict[str, str] = {}

    def done(point: Point, reason: str | None, number: int) -> None:
        if reason:
            failures[str(store.key(point.last))] = reason
        say(f"[{number}/{len(waiting)}] {point.label} seed {point.seed}: {reason or 'done'}")

    if workers <= 1 or len(waiting) <= 1:
        for number, point in enumerate(waiting, 1):
            done(point, _attempt(point, store), number)
        return failures
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _quiet, (threads,)) as pool:
        jobs = [
            (p, pool.apply_async(_run, (_container(p), str(store.root), str(store.runs))))
            for p in waiting
        ]
        for number, (point, job) in enumerate(jobs, 1):
            try:
                reason = job.get()
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            done(point, reason, number)
    return failures


def _attempt(point: Point, store: Store) -> str | None:
    try:
        store.get(point.last)
    except DbpError as error:
        return f"{type(error).__name__}: {error}"
    except Exception:  # a bug in one arm must not stop the others; its trace is the message
        return traceback.format_exc()
    finally:
        store.loaded.clear()
    return None


def _container(point: Point) -> dict[str, Any]:
    from omegaconf import OmegaConf

    found: Any = OmegaConf.to_container(point.config, resolve=True)
    return found


def _quiet(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _run(container: dict[str, Any], root: str, runs: str) -> str | None:
    from omegaconf import OmegaConf

    config = OmegaConf.create(container)
    point = Point("", {}, config, stages(config))
    return _attempt(point, Store(root, runs))
