"""A sweep of toys, and stand-ins for SLURM's commands that write down what they are asked."""

import os
import textwrap
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from omegaconf import OmegaConf

from dbp.config import build, compose
from dbp.engine.stage import Node, Stage
from dbp.engine.store import Store
from dbp.errors import StoreError
from slurm.cluster.jobs import Sweep
from slurm.cluster.launcher import Launcher
from slurm.cluster.manifest import Manifest
from slurm.composer import Composer
from slurm.encoder import Asked
from slurm.plan import Plan, Point
from slurm.settings import Grid, SweepSettings

# Each writes down its words and answers from files beside it.
STAND_INS = {
    "sbatch": """
        number=$(($(cat count) + 1)); echo $number > count
        if [ -f refuse-$number ]; then cat refuse-$number >&2; exit 1; fi
        echo $((100 + number))
    """,
    "squeue": """
        if [ -f gone ]; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi
        [ ! -f queue ] || cat queue
    """,
    "scontrol": 'cat "show-$3"',
    "scancel": "",
}


class Slurm:
    """Stand-ins for SLURM's commands, first on PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        (folder / "count").write_text("0")
        for name, script in STAND_INS.items():
            said = f"cd {folder}\nprintf '%s\\037' {name} \"$@\" >> calls; echo >> calls\n"
            (folder / name).write_text("#!/bin/sh\n" + said + textwrap.dedent(script))
            (folder / name).chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """The words of each call of a command."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        words = [line.split("\037")[:-1] for line in lines]
        return [said[1:] for said in words if said[0] == name]

    def say(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)


@dataclass(frozen=True)
class Toy(Stage):
    """A stage that is its name."""

    name: ClassVar[str] = "toy"

    text: str = ""

    def run(self, work: Any, **inputs: Any) -> dict[str, Any]:
        TRIED.append(self.text)
        if self.text.startswith("broken"):
            raise StoreError(f"{self.text} cannot be made")
        return {}

    def open(self, home: Path, **inputs: Any) -> str:
        return self.text


TRIED: list[str] = []


def toy(text: str, **inputs: Node) -> Node:
    return Node(Toy(text), inputs)


def point(label: str, rows: Node) -> Point:
    """A point that rests on shared rows; its config is its name."""
    keep = toy(f"select {label}", rows=rows)
    train = toy(f"train {label}", keep=keep)
    evaluate = toy(f"evaluate {label}", checkpoint=train, sets=toy("sets"))
    config = OmegaConf.create({"name": label})
    return Point(label, {}, config, {"select": keep, "train": train, "evaluate": evaluate}, label)


SETTINGS = SweepSettings(name="toys", arms={}, axes={}, encoder=None, control="uniform", plots=False)


@dataclass
class Home:
    """A sweep of toys in a store of its own."""

    folder: Path
    num_points: int = 2
    launcher: list[str] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "store", self.folder / "runs")
        self.rows = toy("rows")
        self.points = [point(f"arm {n}", self.rows) for n in range(self.num_points)]
        self.keys = [str(self.store.key(p.last)) for p in self.points]

    def make(self, *nodes: Node) -> None:
        for node in nodes:
            self.store.get(node)

    def sweep(self, out: Path | None = None) -> Sweep:
        asked = Asked(Composer([], []), SETTINGS, Grid({}, {}, {}), self.store)
        out = out or self.folder / "out"
        sweep = Sweep(asked, launcher(*self.launcher), out, ["experiment=toys"], [])
        sweep.plan = lambda: (Plan(self.points), {})  # type: ignore[method-assign]
        return sweep

    @property
    def record(self) -> Path:
        return self.folder / "out" / "slurm"

    def manifest(self) -> Manifest:
        found = Manifest.load(self.record)
        assert found is not None
        return found

    def status(self, capsys: pytest.CaptureFixture[str]) -> list[str]:
        capsys.readouterr()
        assert self.sweep().status(False) == 0
        return capsys.readouterr().out.splitlines()


@cache
def launcher(*settings: str) -> Launcher:
    """As a person sets it."""
    return build(compose("sweep", ["launcher=slurm_cpu", *settings]).launcher, Launcher, "launcher")


def option(words: list[str], name: str) -> str:
    """The value of an option of sbatch."""
    (found,) = [word.partition("=")[2] for word in words if word.startswith(f"--{name}=")]
    return found


# As SLURM 22.05 prints them: scontrol show job --oneliner.
END = (
    "JobId={job} ArrayJobId={job} ArrayTaskId=0 JobName=dbp-toys-arm UserId=root(0) GroupId=root(0) "
    "MCS_label=N/A Priority=4294901756 Nice=0 Account=(null) QOS=(null) JobState={state} Reason={reason} "
    "Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode={code} RunTime=00:00:07 "
    "TimeLimit=04:00:00 TimeMin=N/A SubmitTime=2026-01-01T10:00:00 EligibleTime=2026-01-01T10:00:00 "
    "AccrueTime=2026-01-01T10:00:00 StartTime=2026-01-01T10:00:01 EndTime=2026-01-01T10:00:08 Deadline=N/A "
    "SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-01-01T10:00:01 Scheduler=Main Partition=main "
    "AllocNode:Sid=login:77 ReqNodeList=(null) ExcNodeList=(null) NodeList=n[1-2] BatchHost=n1 NumNodes=2 "
    "NumCPUs=1 NumTasks=1 CPUs/Task=1 ReqB:S:C:T=0:0:*:* TRES=cpu=1,mem=480G,node=1,billing=1 "
    "Socks/Node=* NtasksPerN:B:S:C=0:0:*:1 CoreSpec=* MinCPUsNode=1 MinMemoryNode=480G MinTmpDiskNode=0 "
    "Features=(null) DelayBoot=00:00:00 OverSubscribe=OK Contiguous=0 Licenses=(null) Network=(null) "
    "Command=/clone/slurm/cluster/job.sbatch /runs/setup.sh 1 python -m slurm.task WorkDir=/home StdErr=/log "
    "StdIn=/dev/null StdOut=/log Power=\n"
)
