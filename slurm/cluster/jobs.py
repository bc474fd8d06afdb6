"""A sweep as jobs of SLURM: submitted, watched, cancelled.

The queue and the files say all; the last job of a submission is the sweep itself, which submits what failed once
more or writes the table. So nobody has to stay logged in, and a lost node costs what was under way on it.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from dbp.engine.slurm_queue import ask
from dbp.errors import WorldError
from slurm.cluster.launcher import Launcher
from slurm.cluster.manifest import Job, Manifest
from slurm.cluster.submit import Submitter, code
from slurm.cluster.watching import Queue, last_line, lines, log_of, states
from slurm.encoder import Asked, Encoders
from slurm.plan import Plan
from slurm.results.arms import write_arms
from slurm.results.summary import tell
from slurm.task import VECTORS


class Sweep:
    """A sweep as jobs of SLURM.

    Args:
        asked: What it is.
        launcher: The site's settings.
        out: Its folder.
        arguments: The words of the command, for the jobs that go on with it.
        config_dirs: Its folders of configs.
    """

    def __init__(
        self, asked: Asked, launcher: Launcher, out: Path, arguments: list[str], config_dirs: list[str]
    ) -> None:
        self.asked, self.store, self.settings = asked, asked.store, asked.settings
        self.launcher, self.out, self.folder = launcher, out, out / "slurm"
        self.began = time.monotonic()
        self.new = Manifest(code(), arguments, [str(Path(folder).absolute()) for folder in config_dirs])

    def plan(self) -> tuple[Plan | None, Encoders]:
        """The plan, once its keys are known, and the sweep's encoders."""
        with self.store.steady():
            _, plan, encoders = self.asked.outlook()
        return plan, encoders or {}

    def hand_in(self, by_person: bool) -> int:
        """Submit what is neither there nor in the queue; print the table where nothing is left to do.

        Args:
            by_person: Whether the user asks, and not the last job of a submission: then failed arms
                get all their tries again.
        """
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
            preparing = [job for job in manifest.jobs if job.role == "prepare"]
            if any(queue.holds(job) for job in preparing):
                print("the job that prepares the pool and the encoder is in the queue")
                return 0
            if not by_person:
                words = last_line(log_of(self.folder, max(preparing, key=lambda job: int(job.number)), 0))
                raise WorldError(f"the pool or the encoder could not be prepared. Log: {words}")
            self._say(submitter.prepare())
            return 0
        in_queue = {
            key
            for job in manifest.jobs
            for number, keys in enumerate(job.elements)
            for key in keys
            if queue.holds(job, number)
        }
        by_key = {str(self.store.key(point.last)): point for point in plan.points}
        if by_person:
            manifest.tries = {}
        to_do = [
            point
            for key, point in by_key.items()
            if key not in in_queue
            and manifest.tries.get(key, 0) < self.launcher.tries
            and self.store.entry(point.last) is None
        ]
        if to_do:
            under_way = [job for job in manifest.jobs if job.role == "shared" and queue.holds(job)]
            jobs = submitter.submit(self.store, to_do, under_way)
            write_arms(plan, self.store, self.settings, self.out, encoders=encoders)
            print(f"{len(plan.points)} runs of {len(plan.labels)} arms; {len(to_do)} handed in")
            self._say(jobs)
            return 0
        if in_queue:
            print(f"{len(in_queue)} runs are in the queue, nothing else is missing:")
            return self.status(False)
        found = zip(plan.points, states(plan, self.store, self.folder, manifest, queue), strict=True)
        failures = {str(self.store.key(p.last)): state.about for p, state in found if state.word == "failed"}
        shutil.rmtree(self.folder / VECTORS, ignore_errors=True)  # of evaluations that failed
        return tell(plan, self.store, self.settings, failures, encoders, self.out, self.began)

    def status(self, watches: bool) -> int:
        """Say what is done, running, waiting and failed, once or until all is done."""
        while True:
            manifest = Manifest.load(self.folder)
            queue = Queue.of(manifest.jobs if manifest else [])
            with self.store.steady():
                plan, _ = self.plan()
                found = list(states(plan, self.store, self.folder, manifest, queue)) if plan else []
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
