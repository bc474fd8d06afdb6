"""A sweep as jobs of SLURM: handed in, looked at, taken back.

The queue and the files say all; the last job of a submission is the sweep itself, which submits what failed once
more or writes the table. So nobody has to stay logged in, and a lost node costs what was under way on it.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from dbp.engine.slurm_queue import ask
from dbp.engine.store import Store
from dbp.errors import WorldError
from slurm.cluster.launcher import Launcher
from slurm.cluster.manifest import Job, Manifest
from slurm.cluster.submit import Submitter, code, waiting_keys
from slurm.cluster.watching import Queue, last_line, lines, log_of, states
from slurm.composer import Composer
from slurm.encoder import encoder_points, known_encoders, untrained
from slurm.plan import Plan, check_compute, distinct, expand
from slurm.results.arms import write_arms
from slurm.results.summary import tell
from slurm.settings import Grid, SweepSettings
from slurm.task import VECTORS


class Sweep:
    """A sweep as jobs of SLURM: handed in, looked at, taken back."""

    def __init__(
        self,
        composer: Composer,
        settings: SweepSettings,
        launcher: Launcher,
        grid: Grid,
        store: Store,
        out: Path,
        arguments: list[str],
        config_dirs: list[str],
    ) -> None:
        self.composer, self.settings, self.launcher, self.grid = composer, settings, launcher, grid
        self.store, self.out, self.folder = store, out, out / "slurm"
        self.began = time.monotonic()
        folders = [str(Path(folder).absolute()) for folder in config_dirs]
        self.new = Manifest(code(), arguments, folders)

    def plan(self) -> tuple[Plan | None, dict[int, dict[str, str]]]:
        """The plan, once its keys are known, and the sweep's encoders."""
        with self.store.steady():
            return self._plan()

    def _plan(self) -> tuple[Plan | None, dict[int, dict[str, str]]]:
        own = encoder_points(self.composer, self.settings, self.grid)
        encoders = known_encoders(own, self.store)
        points = expand(
            self.composer,
            self.grid.arms,
            self.grid.axes,
            untrained(own) if encoders is None else encoders,
        )
        if encoders is None:
            return None, {}
        if any(self.store.key(point.last) is None for point in points):
            return None, encoders
        plan = distinct(points, self.store, self.grid.controls)
        check_compute(plan, self.settings.unequal_compute)
        return plan, encoders

    def hand_in(self, by_person: bool) -> int:
        """Submit what is neither there nor in the queue; print the table where nothing is left to do.

        Args:
            by_person: Whether a person asks, and not the last job of a submission: then failed arms
                get all their tries again.
        """
        with self.store.steady():
            return self._hand_in(by_person)

    def _hand_in(self, by_person: bool) -> int:
        manifest = Manifest.load(self.folder) or self.new
        manifest.arguments, manifest.config_dirs = self.new.arguments, self.new.config_dirs
        queue = Queue.of(manifest.jobs)
        if not queue.answers:
            raise WorldError(
                "SLURM does not answer (squeue), so what is in its queue is not known and nothing was "
                "submitted. Try again when it does; launcher=local runs the sweep on this machine."
            )
        if manifest.code != self.new.code and queue.tasks:
            print(f"note: jobs in the queue were handed in by {manifest.code}; this is {self.new.code}")
        plan, encoders = self.plan()
        submitter = Submitter(self.launcher, self.folder, manifest, self.settings.name)
        if plan is None:
            if any(job.role == "prepare" and queue.holds(job.number, 0) for job in manifest.jobs):
                print("the job that prepares the pool and the encoder is in the queue")
                return 0
            if not by_person:
                last = max((job for job in manifest.jobs if job.role == "prepare"), key=_number)
                words = last_line(log_of(self.folder, last, 0))
                raise WorldError(f"the pool or the encoder could not be prepared. Log: {words}")
            self._say(submitter.prepare())
            return 0
        in_queue = waiting_keys(manifest, queue)
        keys = [str(self.store.key(point.last)) for point in plan.points]
        lacking = [
            (key, point) for key, point in dict(zip(keys, plan.points, strict=True)).items()
            if self.store.entry(point.last) is None and key not in in_queue
        ]  # fmt: skip
        if by_person:
            manifest.tries = {}
        tried = manifest.tries.get
        to_do = [point for key, point in lacking if tried(key, 0) < self.launcher.tries]
        if to_do:
            shared = [job for job in manifest.jobs if job.role == "shared"]
            under_way = [job for job in shared if queue.holds(job.number, 0)]
            jobs = submitter.submit(self.store, to_do, under_way)
            write_arms(plan, self.store, self.settings, self.out, encoders=encoders)
            print(f"{len(plan.points)} runs of {len(plan.labels)} arms; {len(to_do)} handed in")
            self._say(jobs)
            return 0
        if in_queue:
            print(f"{len(in_queue)} runs are in the queue, nothing else is missing:")
            return self.status(False)
        found = states(plan, self.store, self.folder, manifest, queue)
        failures = {k: s.about for k, s in zip(keys, found, strict=True) if s.word == "failed"}
        shutil.rmtree(self.folder / VECTORS, ignore_errors=True)  # of evaluations that failed
        return tell(plan, self.store, self.settings, failures, encoders, self.out, self.began)

    def status(self, watches: bool) -> int:
        """Say what is done, running, waiting and failed, once or until all is done."""
        while True:
            manifest = Manifest.load(self.folder)
            queue = Queue.of(manifest.jobs if manifest else [])
            with self.store.steady():
                plan, _ = self.plan()
                found = states(plan, self.store, self.folder, manifest, queue) if plan else []
            for line in lines(plan or Plan([]), found, manifest, queue):
                print(line, flush=True)
            if plan is None:
                print("the points are known once the pool is indexed and the encoder is trained")
            if not watches or (found and not queue.tasks):
                return 0
            time.sleep(10)

    def cancel(self) -> int:
        """Take the sweep's jobs out of the queue; what was made stays."""
        manifest = Manifest.load(self.folder)
        queue = Queue.of(manifest.jobs if manifest else [])
        numbers = sorted({job for job, _ in queue.tasks})
        if numbers and ask("scancel", *numbers) is None:
            raise WorldError(f"scancel does not answer; take {' '.join(numbers)} back by hand.")
        print(f"{len(queue.tasks)} tasks of {len(numbers)} jobs cancelled; what was made is kept")
        return 0

    def _say(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            tasks = f", {len(job.elements)} tasks" if len(job.elements) > 1 else ""
            print(f"job {job.number} {job.role}{tasks}")
        print(f"logs in {self.folder / 'logs'}; dbp sweep status … says how it goes")


def _number(job: Job) -> int:
    return int(job.number)
