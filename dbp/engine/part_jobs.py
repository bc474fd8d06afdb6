"""Parts of a long stage, made by another process: what it is told, and what it does.

A job file in the stage's folder of parts says what to make of which artifacts. A spawned process, a task of a SLURM
array and `dbp parts run` under any other scheduler read it alike.
"""

import hashlib
import json
import os
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dbp.engine.parts import Parted, make_one, unfinished
from dbp.engine.progress import log
from dbp.engine.signs import at_work
from dbp.engine.stage import rebuild
from dbp.engine.store import Store
from dbp.engine.work import Part, Work
from dbp.errors import WorldError


def write_job(work: Work) -> Path:
    """Write what another process needs to make parts; return the file.

    It is named by its content: two runs that make one artifact with other devices or paths do not
    change it under each other's workers.
    """
    # A worker finds the stages of other people's modules where this process does.
    path = [str(Path(entry).absolute()) for entry in sys.path]
    text = json.dumps(work.job | {"path": path}, indent=1)
    work.begin()
    job = work.shared / f"job-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    if not job.exists():
        beside = work.shared / f".{job.name}-{uuid.uuid4().hex}"
        beside.write_text(text)
        beside.rename(job)
    return job


def open_job(job: Path) -> tuple[Parted, Work, dict[str, Any]]:
    """The stage, desk and inputs that a job file describes.

    Raises:
        FileNotFoundError: It is gone: the artifact is complete.
    """
    said = json.loads(job.read_text())
    sys.path += [entry for entry in said["path"] if entry not in sys.path]
    store = Store(said["store"], said["runs"])
    stage = rebuild(said["stage"])
    inputs = {name: _open(store, up) for name, up in said["inputs"].items()}
    return stage, Work(job.parent, job.parent, said["key"], job=said, begun=True), inputs


def _open(store: Store, said: Mapping[str, Any]) -> Any:
    """Load an input as a job describes it."""
    needed = {name: _open(store, up) for name, up in said["inputs"].items()}
    return rebuild(said["stage"]).open(store.find(said["key"]).folder, **needed)


def do_parts(job: str, names: Sequence[str]) -> int:
    """Make some parts of a job by name, those that are finished left out; what a SLURM task runs.

    Returns:
        The number of parts that were made.

    Raises:
        WorldError: The store is not to be seen from here.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        stage, work, inputs = open_job(Path(job))
    except FileNotFoundError:
        if Path(job).exists():
            raise
        if not Path(job).parents[1].exists():
            raise WorldError(
                f"{socket.gethostname()} does not see {Path(job).parents[1]}. paths.store must lie on a disk "
                "that all nodes share."
            ) from None
        log.info("%s is gone: the artifact is complete", job)  # a lost node's task, put back too late
        return 0
    wanted = set(names)
    made, failed = 0, []
    with at_work(work.shared, (up["key"] for up in work.job["inputs"].values())):
        for part in unfinished(work, [part for part in stage.parts(**inputs) if part.name in wanted]):
            try:
                make_one(stage, work, part, inputs)
                made += 1
            except Exception as error:
                # One bad part must not keep the others back; a second one says that it is not the part.
                if failed:
                    raise
                failed.append(error)
    if failed:
        raise failed[0]
    return made


@cache
def _opened(job: str) -> tuple[Parted, Work, dict[str, Any], dict[str, Part]]:
    """A job and its parts by name; a process of a pool opens it once."""
    stage, work, inputs = open_job(Path(job))
    return stage, work, inputs, {part.name: part for part in stage.parts(**inputs)}


def make_in_worker(job: str, name: str) -> None:
    """Make one part of a job by name; what a process of the pool runs."""
    stage, work, inputs, parts = _opened(job)
    make_one(stage, work, parts[name], inputs)
