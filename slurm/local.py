"""Run the points of a plan on this machine, in this process or in a few spawned ones.

All state is in the store, so a killed sweep goes on from what was finished, and two processes that make
the same artifact both end well.
"""

import contextlib
import os
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dbp.engine.processes import begin_worker, visible_gpus
from dbp.engine.stage import Node
from dbp.engine.store import Store
from dbp.errors import DbpError
from slurm.composer import stages
from slurm.plan import Plan, Point
from slurm.task import evaluate

DIED = "its process died, twice: killed, as when memory runs out (then lower train.batch_size)"


def run_here(plan: Plan, store: Store, workers: int, vectors: Path) -> dict[str, str]:
    """Do on this machine what is missing: keep lists, then all training, then all evaluation.

    Returns:
        Key of each failed point's evaluation -> why it failed.
    """
    failures: dict[str, str] = {}
    for point in plan.points:  # what several points rest on is built here, once; arms then run apart
        if store.entry(point.last) is None:
            # With the captions of a list, where an arm has them: arms share the list.
            refined = [up for name, up in point.nodes["train"].inputs.items() if name == "refined"]
            if reason := attempt(store, point.nodes["select"], *refined, point.last.inputs["sets"]):
                failures[str(store.key(point.last))] = reason
                print(f"{point.label} seed {point.seed}: {reason}")
    for last in ("train", "evaluate"):
        left = [point for point in plan.points if str(store.key(point.last)) not in failures]
        if last == "evaluate":
            evaluate_together(left, store, workers, vectors)
        failures |= run_points(left, store, workers, print, last)
    return failures


def run_points(
    points: Sequence[Point], store: Store, workers: int, say: Callable[[str], None], last: str = "evaluate"
) -> dict[str, str]:
    """Build the stage `last` of each point and all that it rests on; `say` a line for each point that ends.

    Each of `workers` processes takes an equal share of the cores, and a GPU in turn.

    Returns:
        Key of each failed point's evaluation -> why it failed; the other points are run all the same.
    """
    missing = [p for p in points if store.entry(p.last) is None and store.entry(p.nodes[last]) is None]
    by_key = {str(store.key(p.nodes[last])): p for p in missing}
    failures: dict[str, str] = {}
    ended = 0

    def done(point: Point, reason: str | None) -> None:
        nonlocal ended
        ended += 1
        if reason:
            alike = [p for p in missing if store.key(p.nodes[last]) == store.key(point.nodes[last])]
            failures.update({str(store.key(p.last)): reason for p in alike})
        word = "done" if last == "evaluate" else "trained"
        say(f"[{ended}/{len(by_key)}] {point.label} seed {point.seed}: {reason or word}")

    waiting = list(by_key.values())
    if workers <= 1 or len(waiting) <= 1:
        for point in waiting:
            done(point, attempt(store, point.nodes[last]))
        return failures
    while waiting:
        undone = _run_apart(waiting, store, workers, done, last)
        # A process that dies takes the work of its siblings with it. The point that killed it is among
        # the first undone, which go on one by one, so that it is known and fails alone.
        suspects, waiting = undone[: workers + 1], undone[workers + 1 :]
        for point in suspects:
            if _run_apart([point], store, 1, done, last):
                done(point, DIED)
    return failures


def evaluate_together(points: Sequence[Point], store: Store, workers: int, vectors: Path) -> None:
    """Evaluate what is trained, so that the checkpoints of one process share each decoded image.

    What fails or dies here is left: `run_points` then evaluates it alone, and reports it. The folder `vectors` is
    for what is encoded, and removed afterwards.
    """
    ready = [p for p in points if store.entry(p.nodes["train"]) and store.entry(p.last) is None]
    ready = list({str(store.key(p.last)): p for p in ready}.values())
    if len(ready) < 2:
        return
    workers = min(workers, len(ready))
    try:
        with _processes(workers) as pool:
            jobs = []
            with contextlib.suppress(BrokenProcessPool):
                for number in range(workers):
                    some = [(str(store.key(p.last)), p.container()) for p in ready[number::workers]]
                    jobs.append(pool.submit(evaluate, vectors / str(number), some))
            for job in jobs:
                job.exception()
    finally:
        shutil.rmtree(vectors, ignore_errors=True)


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Spawned processes that share out the cores and the GPUs."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (threads, context.Value("i", 0), visible_gpus()))
    try:
        yield pool
    finally:  # on an interrupt, too: what has not begun does not begin
        pool.shutdown(cancel_futures=True)


def _run_apart(
    points: Sequence[Point], store: Store, workers: int, done: Callable[[Point, str | None], None], last: str
) -> list[Point]:
    """Run points in processes of their own; return those that a dying process left undone, in order."""
    undone = {str(store.key(point.nodes[last])): point for point in points}
    with _processes(workers) as pool:
        jobs = {}
        with contextlib.suppress(BrokenProcessPool):
            for key, point in undone.items():
                jobs[pool.submit(_run, point.container(), str(store.root), str(store.runs), last)] = key
        for job in as_completed(jobs):
            error = job.exception()
            if not isinstance(error, BrokenProcessPool):
                done(undone.pop(jobs[job]), f"{type(error).__name__}: {error}" if error else job.result())
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


def _begin(threads: int, started: Any, gpus: list[str]) -> None:
    begin_worker(started, gpus)  # before torch looks for a GPU
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _run(container: dict[str, Any], root: str, runs: str, last: str) -> str | None:
    from omegaconf import OmegaConf

    return attempt(Store(root, runs), stages(OmegaConf.create(container))[last])
