"""Run the points of a plan on this machine, in this process or in a few spawned ones.

All state is in the store, so a killed sweep goes on from what was finished, and two processes that make
the same artifact both end well.
"""

import contextlib
import os
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from dbp.errors import DbpError
from dbp.processes import begin_worker, visible_gpus
from dbp.stage import Node
from dbp.store import Store
from slurm.composer import stages
from slurm.plan import Point

DIED = "its process died, twice: killed, as when memory runs out (then lower train.batch_size)"


def run_points(
    points: Sequence[Point], store: Store, workers: int, say: Callable[[str], None]
) -> dict[str, str]:
    """Build the last stage of each point.

    Args:
        points: What to run.
        store: Where results go.
        workers: Processes; each takes an equal share of the cores, and a GPU in turn.
        say: Receives a line for each point that ends.

    Returns:
        Key of each failed point's evaluation -> why it failed; the other points are run all the same.
    """
    by_key = {str(store.key(p.last)): p for p in points if store.entry(p.last) is None}
    failures: dict[str, str] = {}
    ended = 0

    def done(point: Point, reason: str | None) -> None:
        nonlocal ended
        ended += 1
        if reason:
            failures[str(store.key(point.last))] = reason
        say(f"[{ended}/{len(by_key)}] {point.label} seed {point.seed}: {reason or 'done'}")

    waiting = list(by_key.values())
    if workers <= 1 or len(waiting) <= 1:
        for point in waiting:
            done(point, attempt(store, point.last))
        return failures
    while waiting:
        undone = _run_apart(waiting, store, workers, done)
        # A process that dies takes the work of its siblings with it. The point that killed it is among
        # the first undone, which go on one by one, so that it is known and fails alone.
        suspects, waiting = undone[: workers + 1], undone[workers + 1 :]
        for point in suspects:
            if _run_apart([point], store, 1, done):
                done(point, DIED)
    return failures


def _run_apart(
    points: Sequence[Point], store: Store, workers: int, done: Callable[[Point, str | None], None]
) -> list[Point]:
    """Run points in processes of their own; return those that a dying process left undone, in order."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = get_context("spawn")
    given = (threads, context.Value("i", 0), visible_gpus())
    pool = ProcessPoolExecutor(workers, context, _begin, given)
    undone = {str(store.key(point.last)): point for point in points}
    try:
        jobs = {}
        with contextlib.suppress(BrokenProcessPool):
            for key, point in undone.items():
                jobs[pool.submit(_run, _container(point), str(store.root), str(store.runs))] = key
        for job in as_completed(jobs):
            try:
                reason = job.result()
            except BrokenProcessPool:
                continue
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            done(undone.pop(jobs[job]), reason)
    finally:  # on an interrupt, too: what has not begun does not begin
        pool.shutdown(cancel_futures=True)
    return list(undone.values())


def attempt(store: Store, *nodes: Node) -> str | None:
    """Build nodes; return why it failed, if it did."""
    try:
        for node in nodes:
            store.get(node)
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


def _begin(threads: int, started: Any, gpus: list[str]) -> None:
    begin_worker(started, gpus)  # before torch looks for a GPU
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _run(container: dict[str, Any], root: str, runs: str) -> str | None:
    from omegaconf import OmegaConf

    return attempt(Store(root, runs), stages(OmegaConf.create(container))["evaluate"])
