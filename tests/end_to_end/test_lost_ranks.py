"""Two ranks of which one ends early: the other one ends in seconds, with one line that names it."""

import importlib
import os
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


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lost") / "pool"
    runs.write_pool(folder)
    return folder


def start_two(pool: Path, home: Path, *more: str) -> list["subprocess.Popen[str]"]:
    """Two ranks as srun starts them: no launcher ends one when the other has ended."""
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID")
    return [
        runs.start(runs.arguments(pool, home, *more), **dict(zip(names, ("2", rank, rank), strict=True)))
        for rank in "01"
    ]


def end(processes: list["subprocess.Popen[str]"], seconds: float = 60) -> list[str]:
    """What each of the processes said, ended by itself in time."""
    start = time.monotonic()
    try:
        return [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert time.monotonic() - start < seconds


def one_error(said: str) -> str:
    assert "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("WorldError: ")]
    return line


@pytest.mark.parametrize(("lost", "workers"), [(0, 2), (1, 0)])
def test_a_rank_that_is_killed_in_training_ends_the_other_with_one_line(
    pool: Path, tmp_path: Path, lost: int, workers: int
) -> None:
    processes = start_two(pool, tmp_path, f"train.num_workers={workers}")
    runs.wait_for_step(tmp_path, 20, lambda: processes[0].poll() is not None)
    os.kill(processes[lost].pid, signal.SIGKILL)
    said = end(processes)
    line = one_error(said[1 - lost])
    assert f"rank {1 - lost} of 2 stops: rank {lost} died" in line
    assert processes[1 - lost].returncode == 1
    # The same command goes on, and its checkpoint is sound.
    if lost == 1:
        processes = start_two(pool, tmp_path)
        said = end(processes, 300)
        assert [process.returncode for process in processes] == [0, 0], said
        assert "going on after step" in said[0]


def test_a_rank_that_fails_in_training_tells_the_other_why(pool: Path, tmp_path: Path) -> None:
    processes = start_two(pool, tmp_path, "train.num_workers=1")
    runs.wait_for_step(tmp_path, 20, lambda: processes[0].poll() is not None)
    children = Path(f"/proc/{processes[1].pid}/task/{processes[1].pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    said = end(processes)
    assert "a worker process of the loader died" in one_error(said[1])
    line = one_error(said[0])
    assert "rank 0 of 2 stops: rank 1 failed: a worker process of the loader died" in line
    assert [process.returncode for process in processes] == [1, 1]
