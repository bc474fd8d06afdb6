"""What a sweep has handed to SLURM: its jobs, the points of each, and how often each was tried.

    runs/sweeps/NAME/slurm/manifest.json     jobs and tries; written anew and renamed, by one submitter at a time
    runs/sweeps/NAME/slurm/round-000.json    one submission: the points, and which of them each task of a role has
    runs/sweeps/NAME/slurm/round-000.points  a resolved config a line; a task reads its own lines alone
    runs/sweeps/NAME/slurm/failed/KEY.json   why a try of a point failed
    runs/sweeps/NAME/slurm/logs/ROLE-JOB_TASK.log

Whether something is done is never written here: the store says it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dbp.engine.disk import replace_json
from dbp.errors import WorldError


@dataclass
class Job:
    """One job, or one array of jobs, in SLURM's queue.

    Args:
        number: SLURM's.
        role: One of `launcher.ROLES`.
        round: Of which submission.
        elements: The keys of the points of each task, by its number in the array; one where it is no array.
    """

    number: str
    role: str
    round: int
    elements: list[list[str]]


@dataclass
class Manifest:
    """The memory of a sweep's submissions.

    Args:
        code: Version and commit of the code that submitted last.
        arguments: The words of the command, for the jobs that go on with it.
        config_dirs: Its folders of configs.
        jobs: All of them, the newest last.
        tries: Key of a point's evaluation -> how often it was submitted since a person last asked.
        rounds: Submissions so far.
    """

    code: str
    arguments: list[str]
    config_dirs: list[str]
    jobs: list[Job] = field(default_factory=list)
    tries: dict[str, int] = field(default_factory=dict)
    rounds: int = 0

    def save(self, folder: Path) -> None:
        """Write it in place of what is there."""
        replace_json(folder / "manifest.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Manifest | None":
        """The manifest of a folder, if there is one.

        Raises:
            WorldError: It is not one of ours.
        """
        path = folder / "manifest.json"
        try:
            said = json.loads(path.read_text())
            return cls(**{**said, "jobs": [Job(**job) for job in said["jobs"]]})
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise WorldError(
                f"{path} is not a manifest of this version ({error}). If none of its jobs is left in the "
                "queue (squeue), move the folder away and submit again: what is in the store is not "
                "done again."
            ) from error


def write_round(
    folder: Path,
    number: int,
    configs: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    roles: Mapping[str, list[list[int]]],
) -> Path:
    """Write submission `number`; returns its file.

    Args:
        configs: Resolved, one for each point.
        keys: Of each point's evaluation.
        roles: Role -> the points of each of its tasks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"round-{number:03d}.json"
    places: list[int] = []
    with file.with_suffix(".points").open("wb") as lines:
        for config in configs:
            places.append(lines.tell())
            lines.write(json.dumps(config).encode() + b"\n")
    replace_json(file, {"keys": list(keys), "places": places, "roles": dict(roles)})
    return file


def read_points(file: Path, role: str, task: int) -> list[tuple[str, dict[str, Any]]]:
    """Key and config of each point of a task."""
    said = json.loads(file.read_text())
    found: list[tuple[str, dict[str, Any]]] = []
    with file.with_suffix(".points").open("rb") as lines:
        for point in said["roles"][role][task]:
            lines.seek(said["places"][point])
            found.append((said["keys"][point], json.loads(lines.readline())))
    return found


def failure_file(folder: Path, key: str) -> Path:
    """Where the reason stands why a try of a point failed, until one succeeds."""
    return folder / "failed" / f"{key}.json"


def read_failures(folder: Path, keys: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Key -> the number of the job and its reason, of the points of which a try left one."""
    found: dict[str, tuple[str, str]] = {}
    for key in keys:
        file = failure_file(folder, key)
        if file.exists():
            said = json.loads(file.read_text())
            found[key] = said["job"], said["reason"]
    return found
