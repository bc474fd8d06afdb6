"""Where a sweep runs: on this machine, or as jobs of SLURM with a site's settings."""

from dataclasses import dataclass, field
from typing import Any, Literal

from dbp.config import build, require

ROLES = ("prepare", "shared", "arm", "evaluate", "report")


@dataclass(frozen=True)
class Resources:
    """What one job of a role asks for.

    Args:
        minutes: Its time limit; training and all stages go on from where they stopped.
        cpus: Cores of each process.
        gpus: Of each node.
        mem_gb: Of each node; the site's default where none is given.
        nodes: Of the job.
        ranks: Processes that do the work together; only of an arm.
    """

    minutes: int
    cpus: int
    gpus: int
    mem_gb: float | None
    nodes: int
    ranks: int

    def __post_init__(self) -> None:
        for name in ("minutes", "cpus", "nodes", "ranks"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.gpus >= 0, "gpus", self.gpus, "0 or more")
        require(self.mem_gb is None or self.mem_gb > 0, "mem_gb", self.mem_gb, "above 0, or null")
        require(self.ranks >= self.nodes, "ranks", self.ranks, f"at least nodes={self.nodes}")

    def options(self, processes: int) -> list[str]:
        """As sbatch takes them, for so many processes in all."""
        asked = {
            "time": self.minutes,
            "nodes": self.nodes,
            "ntasks": processes,
            "cpus-per-task": self.cpus,
            "gpus-per-node": self.gpus or None,
            "mem": f"{round(self.mem_gb * 1024)}M" if self.mem_gb else None,
        }
        return [f"--{name}={value}" for name, value in asked.items() if value is not None]


@dataclass(frozen=True)
class Launcher:
    """Who runs the arms of a sweep.

    Args:
        kind: `local`, or `slurm`; the rest is read for `slurm` alone.
        partition: Of SLURM; the site's default where none is given.
        account: Likewise.
        options: More options of sbatch for every job.
        setup: Lines of shell before every job, as `module load cuda`.
        command: Words before python, as of a container.
        max_array: Tasks of one array, at most the site's MaxArraySize.
        throttle: Tasks of an array that run at once; 0 for as many as the site gives.
        tries: Of each arm in one sweep, before it is reported as failed.
        part_workers: Tasks that make the parts of shared stages at once; 0: the shared job alone.
        arms_per_job: Arms of one device that share a job.
        checkpoints_per_job: Checkpoints that are evaluated together.
        resources: Of the jobs of each role.
    """

    kind: Literal["local", "slurm"]
    partition: str | None = None
    account: str | None = None
    options: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    max_array: int = 1000
    throttle: int = 0
    tries: int = 3
    part_workers: int = 0
    arms_per_job: int = 1
    checkpoints_per_job: int = 8
    prepare: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)
    arm: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_array", "tries", "arms_per_job", "checkpoints_per_job"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("throttle", "part_workers"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        if self.kind == "slurm":
            for role in ROLES:
                self.resources(role)
            ranks = self.resources("arm").ranks
            require(
                self.arms_per_job == 1 or ranks == 1,
                "arms_per_job",
                self.arms_per_job,
                f"1 with arm.ranks={ranks}: an arm of several ranks has its job to itself",
            )

    def resources(self, role: str) -> Resources:
        """What a job of a role asks for."""
        return build(getattr(self, role), Resources, f"launcher.{role}")
