"""A sweep as jobs of SLURM: submitted in the order in which they rest on each other, watched, cancelled.

    prepare   the pool's index and the sweep's own encoder, without which no key is known
    shared    embeddings, clusters, dedup, scores: once for all points
    arm       keep list and training of each point, as an array
    evaluate  several checkpoints a task, as an array
    report    this submission once more: the table if all is there, else the next submission

Every dependency is `afterany`: one arm that fails strands nothing. The queue and the files say all, so that nobody
has to stay logged in and a lost node costs what was under way on it. What the store holds and what still is in the
queue is not submitted again.
"""

import contextlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dbp.engine.provenance import commit
from dbp.engine.runners import outside_any_job
from dbp.engine.slurm_queue import ask
from dbp.errors import WorldError
from dbp.planning import preflight
from slurm.cluster.launcher import Launcher
from slurm.cluster.limits import limit_notes
from slurm.cluster.manifest import Job, Manifest, write_round
from slurm.cluster.watching import Queue, last_line, lines, log_of, states
from slurm.encoder import Asked, Encoders
from slurm.plan import Plan, Point
from slurm.results.arms import write_arms
from slurm.results.summary import tell
from slurm.task import VECTORS

SCRIPT = Path(__file__).with_name("job.sbatch")


class Sweep:
    """A sweep as jobs of SLURM, which go on with it by the words of its command."""

    def __init__(
        self, asked: Asked, launcher: Launcher, out: Path, arguments: list[str], config_dirs: list[str]
    ) -> None:
        self.asked, self.store, self.settings = asked, asked.store, asked.settings
        self.launcher, self.out, self.folder = launcher, out, out / "slurm"
        self.began = time.monotonic()
        folders = [str(Path(folder).absolute()) for folder in config_dirs]
        self.manifest = Manifest(code(), arguments, folders)  # of this submission and those before it

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
        new = self.manifest
        manifest = self.manifest = Manifest.load(self.folder) or new
        manifest.arguments, manifest.config_dirs = new.arguments, new.config_dirs
        queue = Queue.of(manifest.jobs)
        if not queue.answers:
            raise WorldError(
                "SLURM does not answer (squeue), so what is in its queue is not known and nothing was "
                "submitted. Try again when it does; launcher=local runs the sweep on this machine."
            )
        if manifest.code != new.code and queue.tasks:
            print(f"note: jobs in the queue were handed in by {manifest.code}; this is {new.code}")
        plan, encoders = self.plan()
        if plan is None:
            preparing = [job for job in manifest.jobs if job.role == "prepare"]
            if any(queue.holds(job) for job in preparing):
                print("the job that prepares the pool and the encoder is in the queue")
                return 0
            if not by_person:
                words = last_line(log_of(self.folder, max(preparing, key=lambda job: int(job.number)), 0))
                raise WorldError(f"the pool or the encoder could not be prepared. Log: {words}")
            self.asked.checked()
            with self._all_or_none() as jobs:
                self._again("prepare", (), jobs)
                self._again("report", list(jobs), jobs)
            self._say(jobs)
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
            if by_person:
                preflight.require(self.store, [point.last for point in to_do])
                for note in limit_notes(self.store, to_do, self.launcher):
                    print(f"note: {note}")
            under_way = [job for job in manifest.jobs if job.role == "shared" and queue.holds(job)]
            jobs = self._submit(to_do, under_way)
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

    def _submit(self, missing: Sequence[Point], after: Sequence[Job]) -> list[Job]:
        """Submit the points that are missing, what they rest on, and the continuation.

        `after` are jobs in the queue that may make what these points share.

        Raises:
            WorldError: SLURM takes no job, or the folder cannot be written; what was submitted before is
                taken back.
        """
        manifest, store = self.manifest, self.store
        keys = [str(store.key(point.last)) for point in missing]
        untrained = [i for i, p in enumerate(missing) if store.entry(p.nodes["train"]) is None]
        roles: dict[str, list[list[int]]] = {}
        # Points share what they rest on, so each stage is looked for once.
        below = {node for i in untrained for node in missing[i].nodes["select"].inputs.values()}
        below |= {point.last.inputs["sets"] for point in missing}
        if any(store.entry(node) is None for node in below):
            roles["shared"] = [list(range(len(missing)))]
        for role, points, size in (
            ("arm", untrained, self.launcher.arms_per_job),
            ("evaluate", list(range(len(missing))), self.launcher.checkpoints_per_job),
        ):
            roles[role] = [points[at : at + size] for at in range(0, len(points), size)]
        configs = [point.container() for point in missing]
        size = self.launcher.max_array
        with self._all_or_none() as jobs:
            file = write_round(self.folder, manifest.rounds, configs, keys, roles)
            before = list(after)
            for role, tasks in roles.items():
                begun = len(jobs)
                packed = max(map(len, tasks), default=1) if role == "arm" else 1
                for first in range(0, len(tasks), size):
                    elements = [[keys[point] for point in task] for task in tasks[first : first + size]]
                    command = ["-m", "slurm.task", str(self.folder), str(file), role, str(first)]
                    jobs.append(self._sbatch(role, command, before, elements, packed))
                before = jobs[begun:] or before
            self._again("report", before, jobs)
            for key in keys:
                manifest.tries[key] = manifest.tries.get(key, 0) + 1
            manifest.rounds += 1
        return jobs

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[list[Job]]:
        """The jobs that the block hands in: all of them in the manifest at its end, or none in the queue."""
        jobs: list[Job] = []
        try:
            yield jobs
            self.manifest.jobs += jobs
            self.manifest.code = code()
            self.manifest.save(self.folder)
        except BaseException as error:
            for job in jobs:  # a half-submitted sweep would run without its report, or twice
                subprocess.run(["scancel", job.number], capture_output=True)
            if isinstance(error, OSError):
                raise WorldError(
                    f"cannot write the sweep's files in {self.folder}: {error.strerror or error}. No job is "
                    "left in the queue. Give a folder that can be written with paths.runs=FOLDER."
                ) from error
            raise

    def _again(self, role: str, after: Sequence[Job], jobs: list[Job]) -> None:
        """Hand in a job that calls the sweep itself; add it to `jobs`."""
        verb = "prepare" if role == "prepare" else "resume"
        folders = [word for name in self.manifest.config_dirs for word in ("--config-dir", name)]
        command = ["-m", "dbp", "sweep", verb, *folders, *self.manifest.arguments]
        jobs.append(self._sbatch(role, command, after))

    def _sbatch(
        self,
        role: str,
        command: Sequence[str],
        after: Sequence[Job],
        elements: list[list[str]] | None = None,
        packed: int = 1,
    ) -> Job:
        """Hand in one job: an array where `elements` has the points of each task, `packed` processes a task."""
        launcher, logs = self.launcher, self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        setup = self.folder / "setup.sh"
        setup.write_text("".join(f"{line}\n" for line in launcher.setup))
        asked = launcher.resources(role)
        processes = packed if packed > 1 else asked.ranks
        name = "%j" if elements is None else "%A_%a"
        words = [
            "sbatch", "--parsable", f"--job-name=dbp-{self.settings.name}-{role}",
            f"--output={logs / f'{role}-{name}.log'}", *asked.options(processes),
        ]  # fmt: skip
        if elements is not None:
            at_once = f"%{launcher.throttle}" if launcher.throttle else ""
            words.append(f"--array=0-{len(elements) - 1}{at_once}")
        if after:
            words.append("--dependency=afterany:" + ":".join(job.number for job in after))
        for option, value in (("partition", launcher.partition), ("account", launcher.account)):
            if value is not None:
                words.append(f"--{option}={value}")
        together = "0" if packed > 1 else "1"
        words += [*launcher.options, str(SCRIPT), str(setup), together]
        words += [*launcher.command, sys.executable, *command]
        try:
            with outside_any_job():
                done = subprocess.run(words, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WorldError(
                f"sbatch cannot be called ({error}). Is this a login node? launcher=local runs the sweep "
                "on this machine."
            ) from error
        if done.returncode:
            raise WorldError(
                f"SLURM took no {role} job: {' '.join(done.stderr.split())} The command was: "
                f"{shlex.join(words[: words.index(str(SCRIPT))])}. Its settings are under launcher "
                f"(launcher.partition, launcher.{role}.minutes, launcher.options, …)."
            )
        number = done.stdout.strip().partition(";")[0]
        return Job(number, role, self.manifest.rounds, [[]] if elements is None else elements)

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


def code() -> str:
    """Version and commit of this code."""
    from dbp import __version__

    return f"{__version__} {commit() or 'without a commit'}"
