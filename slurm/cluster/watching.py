"""What SLURM and the files say of a sweep: which points are done, running, waiting, failed."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dbp.engine.slurm_queue import ask
from dbp.engine.store import Store
from slurm.cluster.manifest import Job, Manifest, read_failures
from slurm.plan import Plan

FORMAT = "%F|%K|%T|%r|%L"  # job, task of the array, state, reason, time left

# SLURM's word for the end of a job -> ours, with what to do. From `scontrol show job`.
ENDS = {
    "OUT_OF_MEMORY": "killed for memory; it asked for {memory}. Raise launcher.{role}.mem_gb",
    "TIMEOUT": "ran into its time limit of {limit} before it could save and go back into the queue. Raise "
    "launcher.{role}.minutes",
    "NODE_FAIL": "lost its node {nodes}, and the site does not requeue",
    "CANCELLED": "was cancelled",
    "FAILED": "ended with exit code {code}",
    "DEADLINE": "could not end before its deadline",
    "BOOT_FAIL": "its node {nodes} did not start",
}
SHOWN = {"limit": "TimeLimit", "nodes": "NodeList", "code": "ExitCode"}  # our word -> scontrol's


class Queued(NamedTuple):
    """One task as squeue shows it."""

    state: str
    reason: str
    left: str


@dataclass
class Queue:
    """The tasks of some jobs that are in SLURM's queue now.

    Args:
        tasks: (job, number in its array or 0) -> what squeue says.
        answers: Whether SLURM answered.
    """

    tasks: dict[tuple[str, int], Queued] = field(default_factory=dict)
    answers: bool = True

    @classmethod
    def of(cls, jobs: Sequence[Job]) -> "Queue":
        """Ask SLURM, once for all jobs."""
        if not jobs:
            return cls()
        mine = {job.number for job in jobs}
        said = ask("squeue", "--noheader", "--array", f"--format={FORMAT}", "--me")
        if said is None:
            return cls(answers=False)
        tasks: dict[tuple[str, int], Queued] = {}
        for line in said.splitlines():
            number, task, state, reason, left = line.split("|", 4)
            if number in mine:
                tasks[number, int(task) if task.isdigit() else 0] = Queued(state, reason, left)
        return cls(tasks)

    def holds(self, job: Job, task: int = 0) -> bool:
        """Whether a task waits or runs."""
        return (job.number, task) in self.tasks


class State(NamedTuple):
    """One point: `done`, `running`, `waiting`, `failed` or `not submitted`, and what there is to say."""

    word: str
    about: str = ""


def states(plan: Plan, store: Store, folder: Path, manifest: Manifest | None, queue: Queue) -> Iterator[State]:
    """The state of each point of a plan, in its order."""
    keys = [str(store.key(point.last)) for point in plan.points]
    failures = read_failures(folder, keys)
    jobs: dict[str, list[tuple[Job, int]]] = {}
    for job in manifest.jobs if manifest else ():
        for number, mine in enumerate(job.elements):
            for key in mine:
                jobs.setdefault(key, []).append((job, number))
    show = cache(shown)  # of an array all tasks in one answer
    is_missing = cache(lambda node: store.entry(node) is None)  # points share what they rest on
    for point, key in zip(plan.points, keys, strict=True):
        if store.entry(point.last) is not None:
            yield State("done")
            continue
        is_trained = store.entry(point.nodes["train"]) is not None
        # An evaluation that waits brings on nothing where no arm will train.
        mine = [at for at in jobs.get(key, []) if is_trained or at[0].role != "evaluate"]
        last = {job.number for job, _ in mine if job.round == mine[-1][0].round}
        failed_in, reason = failures.get(key, ("", ""))
        queued = [(job, n, queue.tasks[job.number, n]) for job, n in mine if queue.holds(job, n)]
        running = [item for item in queued if item[2].state in ("RUNNING", "COMPLETING")]
        trained = "trained; " if is_trained else ""
        if running:
            job, number, task = running[0]
            yield State("running", f"{trained}{job.role}, {task.left} left{_said(folder, job, number)}")
        elif queued:
            job, _, task = queued[0]
            yield State("waiting", f"{trained}{job.role} ({task.reason})")
        elif failed_in in last:  # an older reason is not why this try failed
            yield State("failed", reason)
        elif not mine:
            yield State("not submitted")
        elif not queue.answers:
            yield State("unknown", f"{trained}SLURM does not answer")
        else:
            lacks_shared = any(map(is_missing, point.nodes["select"].inputs.values()))
            blamed = "evaluate" if is_trained else "shared" if lacks_shared else "arm"
            job, number = [at for at in mine if at[0].role == blamed or at is mine[0]][-1]
            about = describe_end(show(job.number).get(number, ""), job.role)
            yield State("failed", f"{trained}{job.role} {about}{_said(folder, job, number)}")


def lines(plan: Plan, found: Sequence[State], manifest: Manifest | None, queue: Queue) -> Iterator[str]:
    """The states as text, a line each, with a count at the end."""
    width = max((len(point.label) for point in plan.points), default=0)
    for point, state in zip(plan.points, found, strict=True):
        yield f"{point.label:<{width}} seed {point.seed}  {state.word:<13} {state.about}".rstrip()
    for job in manifest.jobs if manifest else ():
        if job.role in ("prepare", "shared", "report") and queue.holds(job):
            task = queue.tasks[job.number, 0]
            yield f"job {job.number} {job.role}: {task.state.lower()} ({task.reason}), {task.left} left"
    if not queue.answers:
        yield "SLURM does not answer; this is what the files say."
    count = Counter(state.word for state in found)
    yield ", ".join(f"{number} {word}" for word, number in count.items()) or "no points"


def describe_end(shown: str, role: str) -> str:
    """What a line of `scontrol show job --oneliner` says of the end of a job, in words; `role` names its settings.

    The line is empty where SLURM has forgotten the job.
    """
    values = dict(re.findall(r"(\w+)=(\S+)", shown))
    state = values.get("JobState", "")
    memory = re.search(r"mem=([^,\s]+)", shown)
    asked = memory[1] if memory else "the site's default"
    if state in ENDS:
        said = {ours: values.get(theirs, "?") for ours, theirs in SHOWN.items()}
        return ENDS[state].format(memory=asked, role=role, **said)
    return "left the queue without a result" + (f" ({state.lower()})" if state else "")


def shown(job: str) -> dict[int, str]:
    """Number of each task of an array -> what `scontrol show job --oneliner` says of it."""
    said = ask("scontrol", "show", "job", job, "--oneliner") or ""
    found = {re.search(r"\bArrayTaskId=(\d+)\s", line): line for line in said.splitlines()}
    return {int(task.group(1)): line for task, line in found.items() if task}


def log_of(folder: Path, job: Job, number: int) -> Path:
    """The log of a task."""
    name = f"{job.number}_{number}" if job.role in ("shared", "arm", "evaluate") else job.number
    return folder / "logs" / f"{job.role}-{name}.log"


def last_line(log: Path) -> str:
    """The last line of a log that is the program's own, in its last 8 KB."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in said if not line.startswith(("srun:", "slurmstepd:"))] or said
    return own[-1][-200:] if own else ""


def _said(folder: Path, job: Job, number: int) -> str:
    words = last_line(log_of(folder, job, number))
    return f"; log: {words}" if words else ""
