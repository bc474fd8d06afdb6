"""Who makes the parts of a long stage: spawned processes of this machine, or SLURM job arrays.

Runners are thin: they start `dbp.engine.part_jobs` elsewhere and look at the files. What is done is known from the
parts' records alone, so a runner that dies, or a node that does, costs the parts that were being made.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dbp.config import require
from dbp.engine.part_jobs import do_parts, make_in_worker, write_job
from dbp.engine.parts import Parted, make_here, share_out, unfinished
from dbp.engine.processes import begin_worker, visible_gpus
from dbp.engine.progress import progress
from dbp.engine.slurm_queue import ArrayTasks, last_words
from dbp.engine.work import Part, Runner, Work
from dbp.errors import ConfigError, WorldError, nearest


@dataclass(frozen=True)
class Processes:
    """Parts on spawned processes of this machine, the costliest first.

    Where a stage computes on a GPU, worker i sees the GPU of number i modulo their count.

    Args:
        workers: Processes.
        threads: Of each, for matrix products; `OMP_NUM_THREADS` of the environment comes first.
    """

    workers: int
    threads: int = 1

    def __call__(self, work: Work, stage: Parted, parts: Sequence[Part], inputs: Mapping[str, Any]) -> None:
        import multiprocessing

        if len(parts) == 1:  # a process of its own would take longer to start
            make_here(work, stage, parts, inputs)
            return
        job, context = str(write_job(work)), multiprocessing.get_context("spawn")
        shared = (context.Value("i", 0), _gpus(stage))
        count = min(self.workers, len(parts))
        with (
            progress(stage.name, len(parts), stage.unit) as bar,
            ProcessPoolExecutor(count, context, begin_worker, shared) as pool,
        ):
            # Libraries of linear algebra look at them when they are loaded, so processes start with them.
            with _environment(OMP_NUM_THREADS=str(self.threads), OMP_WAIT_POLICY="passive"):
                tasks = [
                    pool.submit(make_in_worker, job, part.name)
                    for part in sorted(parts, key=lambda part: (-part.cost, part.number))
                ]
            try:
                for task in as_completed(tasks):
                    task.result()
                    bar.advance()
            except BrokenProcessPool as error:
                left = len(unfinished(work, parts))
                raise WorldError(
                    f"a worker process of {stage.name} died (killed, or out of memory); {left:,} of "
                    f"{len(parts):,} parts are left. Finished parts are kept: run the same command "
                    "again, with fewer workers (parts.workers) if memory was short."
                ) from error
            except BaseException:  # parts under way are finished, others are not begun
                pool.shutdown(cancel_futures=True)
                raise


@contextlib.contextmanager
def _environment(**defaults: str) -> Iterator[None]:
    """Variables for processes that the block starts; those that are set stay as they are."""
    new = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _gpus(stage: Parted) -> list[str]:
    """The GPUs to share out, as CUDA names them; none where the stage uses none, or a given one."""
    devices = {getattr(one, "device", None) for one in (stage, getattr(stage, "encoder", None))}
    return visible_gpus() if devices & {"auto", "cuda"} else []


# SLURM

OWN: dict[str, Any] = {"rounds": 3, "max_array": 1000, "poll_seconds": 2.0, "cluster": "slurm"}
ANYWHERE = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb", "nodes", "tasks_per_node")


@dataclass(frozen=True)
class Slurm:
    """Parts as SLURM job arrays, submitted through submitit.

    Parts are shared out by cost over tasks, tasks over arrays of `max_array`. SLURM puts a task of a lost
    node back into its queue; what is missing when the arrays have left the queue is submitted again, until
    `rounds` submissions in a row have brought no part. Arrays that a killed run left in the queue are
    waited for first; when this process ends by itself, it leaves none.

    Args:
        workers: Tasks that run at once.
        settings: submitit's parameters (partition, timeout_min, cpus_per_task, ...), and `max_array`, `rounds`,
            `poll_seconds`, `cluster` (`slurm`; `local` runs the same tasks as processes here).
    """

    workers: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, work: Work, stage: Parted, parts: Sequence[Part], inputs: Mapping[str, Any]) -> None:
        given = {name: value for name, value in self.settings.items() if value is not None}
        own = {name: given.pop(name, value) for name, value in OWN.items()}
        job, logs = str(write_job(work)), work.shared / "slurm"
        logs.mkdir(exist_ok=True)
        queue, left = ArrayTasks(stage.name, own["cluster"], own["poll_seconds"]), list(parts)
        submitted = in_vain = 0
        with progress(stage.name, len(parts), stage.unit) as bar, queue.emptied(logs):
            if queue.adopt(logs):
                left = queue.watch(work, left, bar)
            while left and in_vain < own["rounds"]:
                groups = share_out(left, self.workers * (4 if own["cluster"] == "slurm" else 1))
                self._submit(queue, groups, given, own["max_array"], logs, job)
                before, left = len(left), queue.watch(work, left, bar)
                submitted += 1
                in_vain = in_vain + 1 if len(left) == before else 0
        if left:
            raise WorldError(
                f"{len(left):,} of {len(parts):,} parts of {stage.name} were not made in {submitted} "
                f"submissions, the first of them {left[0].name}.{last_words(logs)} The logs are in {logs}. "
                "Finished parts are kept: the same command submits what is missing."
            )

    def _submit(
        self,
        queue: ArrayTasks,
        groups: list[list[Part]],
        given: dict[str, Any],
        max_array: int,
        logs: Path,
        job: str,
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise ConfigError(
                "parts.runner=slurm needs the package submitit: pip install 'density-based-pruning[slurm]'"
            ) from None
        arrays = [groups[at : at + max_array] for at in range(0, len(groups), max_array)]
        own = {"timeout_min": 240} | given
        if queue.cluster == "slurm":
            known = [*ANYWHERE, *submitit.SlurmExecutor._valid_parameters()]
            for name in given:
                if name not in known:
                    raise ConfigError(f"parts.slurm.{name}={given[name]!r}: {nearest(name, known)}")
            own["array_parallelism"] = max(1, self.workers // len(arrays))
            own = {name if name in ANYWHERE else f"slurm_{name}": own[name] for name in own}
        else:
            own = {name: own[name] for name in own if name in ANYWHERE}
        try:
            with outside_any_job():
                executor = submitit.AutoExecutor(str(logs), cluster=queue.cluster)
                executor.update_parameters(name=f"dbp-{queue.stage}", **own)
                for array in arrays:
                    names = [[part.name for part in group] for group in array]
                    queue.jobs += executor.map_array(do_parts, [job] * len(names), names)
        except Exception as error:  # submitit hands on whatever sbatch said
            said = [line for line in str(error).splitlines() if "sbatch: error" in line] or [str(error)]
            with_ = ", ".join(f"{name}={value}" for name, value in given.items()) or "none are set"
            raise WorldError(
                f"SLURM took no jobs for {queue.stage}: {' '.join(' '.join(said).split())[-400:]}. Settings are "
                f"under parts.slurm ({with_}); parts.runner=processes works on this machine."
            ) from error


@contextlib.contextmanager
def outside_any_job() -> Iterator[None]:
    """Hide what SLURM tells of the job that this process runs in: its tasks would take it for theirs."""
    marks = ("SLURM_", "SLURMD_", "SUBMITIT_")
    hidden = {n: v for n, v in os.environ.items() if n.startswith(marks) and n != "SLURM_CONF"}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@dataclass(frozen=True)
class PartsSettings:
    """How long stages are shared out: `parts` in the config."""

    runner: Literal["here", "processes", "slurm"] = "here"
    workers: int = 1
    threads: int = 1
    rows_per_part: int = 32_768
    device: str = "auto"
    slurm: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "rows_per_part"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name, least in (("rounds", 1), ("max_array", 1), ("poll_seconds", 0.01)):
            if (value := self.slurm.get(name)) is not None:
                ok = isinstance(value, int | float) and value >= least
                require(ok, f"parts.slurm.{name}", value, f"a number of at least {least}")
        cluster = self.slurm.get("cluster") or "slurm"
        require(cluster in ("slurm", "local"), "parts.slurm.cluster", cluster, "slurm or local")

    def build(self) -> Runner | None:
        """The runner; None for this process."""
        if self.runner == "slurm":
            return Slurm(self.workers, self.slurm)
        return Processes(self.workers, self.threads) if self.runner == "processes" else None
