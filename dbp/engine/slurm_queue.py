"""What SLURM says of the tasks of one stage: its queue, and their logs."""

import contextlib
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbp.engine.parts import unfinished
from dbp.engine.progress import log
from dbp.engine.work import Part, Work

ENDING = 20.0  # seconds that tasks without work left are given to end before they are cancelled


@dataclass
class ArrayTasks:
    """The tasks of one stage in SLURM's queue, or as processes here.

    SLURM itself is asked, since sacct needs a database that many clusters do not have.
    """

    stage: str
    cluster: str
    poll_seconds: float
    jobs: list[Any] = field(default_factory=list)
    arrays: set[str] = field(default_factory=set)  # of an earlier run
    said: float = -60.0  # when the log was told what is in the queue

    def adopt(self, logs: Path) -> bool:
        """Take over the arrays that an earlier run left in the queue; whether there are any."""
        if self.cluster == "slurm":
            self.arrays = {file.name.partition("_")[0] for file in logs.glob("*_submission.sh")}
        if not (self.arrays and self.is_filled()):
            self.arrays.clear()
        return bool(self.arrays)

    def watch(self, work: Work, left: list[Part], bar: Any) -> list[Part]:
        """Wait until the parts are made or no task is in the queue; return the parts not made."""
        pause, empty = self.poll_seconds, 0
        # Found empty twice, since a task that is put back leaves the queue for a moment.
        while left and empty < 2:
            time.sleep(pause)
            there = set(os.listdir(work.shared))
            made = {p.name for p in left if p.name in there and not unfinished(work, [p])}
            left = [part for part in left if part.name not in made]
            bar.advance(len(made))
            empty = 0 if self.is_filled() else empty + 1
            # Each question burdens the controller, so what lasts long is asked about less often.
            pause = min(1.1 * pause, 15 * self.poll_seconds)
        until = time.monotonic() + ENDING
        while not empty and self.is_filled() and time.monotonic() < until:
            time.sleep(self.poll_seconds)
        if not empty and self.is_filled():
            self.cancel()
        self.jobs.clear()
        self.arrays.clear()
        return left

    def is_filled(self) -> bool:
        """Whether a task waits or runs."""
        if self.cluster != "slurm":
            return any(not job.done() for job in self.jobs)
        there = ask(
            "squeue", "--noheader", "--array", f"--name=dbp-{self.stage}", "--format=%T %r",
            f"--jobs={self._ids()}",
        )  # fmt: skip
        if there and time.monotonic() - self.said >= 60:
            self.said = time.monotonic()
            states = Counter(line.lower() for line in there.splitlines())
            told = ", ".join(f"{count} {state}" for state, count in states.items())
            log.info("%s: tasks in SLURM's queue: %s", self.stage, told)
        return there != ""

    def cancel(self) -> None:
        """Take what is left out of the queue."""
        if self.cluster == "slurm" and (ids := self._ids()):
            ask("scancel", *ids.split(","))
        elif self.cluster != "slurm":
            for job in self.jobs:
                if not job.done():
                    job.cancel()

    @contextlib.contextmanager
    def emptied(self, logs: Path) -> Iterator[None]:
        """Leave nothing in the queue when the block is left by an error or Ctrl-C."""
        try:
            yield
        except BaseException:
            self.adopt(logs)  # also what was submitted a moment ago
            self.cancel()
            raise

    def _ids(self) -> str:
        return ",".join(sorted(self.arrays | {j.job_id.partition("_")[0] for j in self.jobs}))


def ask(*command: str) -> str | None:
    """What a command of SLURM prints; None if it does not answer."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=own)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s does not answer (%s)", command[0], error)
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        log.warning("%s does not answer (%s)", command[0], done.stderr.strip())
        return None
    return done.stdout.strip()


def last_words(logs: Path) -> str:
    """The last line of the newest log of a task that failed, or of the newest that says something."""
    found = {}
    for file in sorted(logs.glob("*.err"), key=lambda f: f.stat().st_mtime, reverse=True)[:20]:
        lines = [line for line in file.read_text(errors="replace").splitlines() if line.strip()]
        words = [line for line in lines if not line.startswith("srun: ")]  # that a task failed, not why
        if words:
            failed = len(words) < len(lines) or any("Traceback" in line for line in lines)
            found.setdefault(failed, f" The last log says: {words[-1].strip().rstrip('.')[-300:]}.")
    if not any(logs.glob("*_log.*")):
        return " No task wrote a log: paths.store must lie on a disk that all nodes share."
    return found.get(True) or found.get(False) or ""
