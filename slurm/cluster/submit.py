"""Hand what is missing of a sweep to SLURM, in the order in which it rests on each other.

    prepare   the pool's index and the sweep's own encoder, without which no key is known
    shared    embeddings, clusters, dedup, scores: once for all points
    arm       keep list and training of each point, as an array
    evaluate  several checkpoints a task, as an array
    report    this submission once more: the table if all is there, else the next submission

Every dependency is `afterany`: one arm that fails strands nothing. What the store holds and what still is in
the queue is not submitted again.
"""

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dbp.engine.provenance import commit
from dbp.engine.runners import outside_any_job
from dbp.engine.store import Store
from dbp.errors import WorldError
from slurm.cluster.launcher import Launcher
from slurm.cluster.manifest import Job, Manifest, write_round
from slurm.plan import Point

SCRIPT = Path(__file__).with_name("job.sbatch")


@dataclass
class Submitter:
    """One submission of a sweep.

    Args:
        launcher: The site's settings.
        folder: Of the manifest.
        manifest: Of the sweep so far.
        name: Of the sweep, for the names of its jobs.
    """

    launcher: Launcher
    folder: Path
    manifest: Manifest
    name: str

    def prepare(self) -> list[Job]:
        """Submit what makes keys known, and the continuation; raises as `submit` does."""
        with self._all_or_none() as jobs:
            self._again("prepare", (), jobs)
            self._again("report", list(jobs), jobs)
        return jobs

    def submit(self, store: Store, missing: Sequence[Point], after: Sequence[Job] = ()) -> list[Job]:
        """Submit the points that are missing, what they rest on, and the continuation.

        Args:
            store: Says what is there.
            missing: The points.
            after: Jobs in the queue that may make what these points share.

        Raises:
            WorldError: SLURM takes no job, or the folder cannot be written; what was submitted before is
                taken back.
        """
        manifest, keys = self.manifest, [str(store.key(point.last)) for point in missing]
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
            "sbatch", "--parsable", f"--job-name=dbp-{self.name}-{role}",
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


def code() -> str:
    """Version and commit of this code."""
    from dbp import __version__

    return f"{__version__} {commit() or 'without a commit'}"
