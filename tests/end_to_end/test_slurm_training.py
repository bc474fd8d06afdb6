"""Two processes of a SLURM step, on two nodes, train one model; the job is requeued on the way."""

import contextlib
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.append(str(HERE))
runs: Any = importlib.import_module("training_runs")
ranks: Any = importlib.import_module("test_training_ranks")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def slurm(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let this process and what it starts know the cluster."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return cluster


def submit(home: Path, command: list[str], kill: str = "1") -> str:
    """Hand in a job of two tasks on two nodes, as a user's own script would; its number."""
    home.mkdir()
    script = home / "job.sh"
    step = shlex.join([sys.executable, *command])
    script.write_text(f"#!/bin/bash\nsrun --kill-on-bad-exit={kill} {step}\n")
    done = subprocess.run(
        ["sbatch", "--parsable", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--requeue",
         "--open-mode=append", f"--output={home}/log", str(script)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def state(job: str) -> str:
    done = subprocess.run(
        ["scontrol", "show", "job", job, "--oneliner"], capture_output=True, text=True, check=True
    )
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)["JobState"]


def wait_for(job: str, wanted: str, home: Path, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while (now := state(job)) != wanted:
        told = (home / "log").read_text() if (home / "log").exists() else ""
        assert now in ("PENDING", "RUNNING", "COMPLETING"), (now, told)
        assert time.monotonic() < until, (now, told)
        time.sleep(0.2)


def test_a_requeue_in_the_middle_changes_nothing_but_rounding(tmp_path: Path) -> None:
    pool, alone, home = tmp_path / "pool", tmp_path / "alone", tmp_path / "job"
    runs.write_pool(pool)
    runs.finish(runs.start(runs.arguments(pool, alone)))
    job = submit(home, runs.arguments(pool, home, "train.num_workers=1"))
    runs.wait_for_step(home, 15, lambda: state(job) not in ("PENDING", "RUNNING"))
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_for(job, "COMPLETED", home)
    log = " ".join((home / "log").read_text().split())
    assert "training left after step" in log
    assert "on SIGTERM; a checkpoint is saved in" in log
    assert "going on after step" in log
    assert runs.manifest(home)["counts"]["num_devices"] == 2
    ranks.same_up_to_rounding(home, alone)


def test_a_job_whose_loader_worker_is_killed_ends_in_seconds_with_one_line_a_rank(tmp_path: Path) -> None:
    pool, home = tmp_path / "pool", tmp_path / "job"
    runs.write_pool(pool)
    job = submit(home, runs.arguments(pool, home, "train.num_workers=1"), kill="0")  # srun ends no rank for another
    runs.wait_for_step(home, 10, lambda: state(job) not in ("PENDING", "RUNNING"))
    os.kill(loader_worker(home), signal.SIGKILL)
    start = time.monotonic()
    wait_for(job, "FAILED", home, 90)
    assert time.monotonic() - start < 90
    log = (home / "log").read_text()
    assert "Traceback" not in log, log
    lines = [line for line in log.splitlines() if "WorldError: " in line]
    assert len(lines) == 2, log
    assert all("a worker process of the loader died (SIGKILL" in line for line in lines)
    assert sum("of 2 stops: rank" in line for line in lines) == 1


def loader_worker(home: Path) -> int:
    """A loader worker of one of the ranks: it is forked, so it has the command line of its parent."""
    own: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if words[0] == sys.executable.encode() and f"paths.runs={home}/runs".encode() in words:
                own[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return next(pid for pid, parent in own.items() if parent in own)
