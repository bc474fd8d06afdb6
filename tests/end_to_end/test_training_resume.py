"""A training run that is killed, or asked to leave, ends with the weights of one that was not."""

import importlib
import os
import random
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

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "pool"
    runs.write_pool(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("undisturbed")
    runs.finish(runs.start(runs.arguments(pool, home, "train.num_workers=0")))
    return runs.manifest(home)


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGUSR1", pytest.param("SIGTERM", marks=pytest.mark.nightly)])
def test_five_interruptions_at_random_steps_change_no_bit(
    pool: Path, tmp_path: Path, undisturbed: dict[str, Any], kind: str
) -> None:
    number = signal.Signals[kind]
    chance, step = random.Random(kind), 0
    for turn in range(5):
        # Behind all that earlier turns told of: else the signal would come before the training.
        step = chance.randint(runs.last_step(tmp_path) + 1, runs.STEPS - 5 * (5 - turn))
        workers = f"train.num_workers={(1, 3, 0, 2, 1)[turn]}"
        process = runs.start(runs.arguments(pool, tmp_path, workers))
        runs.wait_for_step(tmp_path, step, lambda p=process: p.poll() is not None)
        # As SLURM does it: every process of the step gets the signal, loader workers too.
        os.killpg(process.pid, number)
        if kind == "SIGKILL":
            runs.finish(process, -number)
        else:
            said = runs.finish(process, 1)
            assert f"on {kind}; a checkpoint is saved in" in " ".join(said.split())
            assert "Traceback" not in said
    said = runs.finish(runs.start(runs.arguments(pool, tmp_path, "train.num_workers=2")))
    assert "going on after step" in said
    resumed = runs.manifest(tmp_path)
    assert resumed["key"] == undisturbed["key"]
    assert resumed["digest"] == undisturbed["digest"]
    for name in ("consumed", "substitutes", "unique_samples", "samples_seen"):
        assert resumed["counts"][name] == undisturbed["counts"][name]
    assert not list(tmp_path.glob("runs/.partial/*"))


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def one_error(said: str) -> str:
    """The one line that a run ended with."""
    assert "Traceback" not in said, said
    (line,) = [line for line in said.splitlines() if line.startswith("WorldError: ")]
    return line


def test_a_killed_loader_worker_ends_the_run_in_seconds_and_resuming_changes_no_bit(
    pool: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    process = runs.start(runs.arguments(pool, tmp_path, "train.num_workers=2"))
    runs.wait_for_step(tmp_path, 20, lambda: process.poll() is not None)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    start = time.monotonic()
    line = one_error(runs.finish(process, 1))
    assert time.monotonic() - start < 60
    assert "died (SIGKILL" in line
    assert "train.num_workers=2" in line
    assert "goes on from its last checkpoint" in line
    said = runs.finish(runs.start(runs.arguments(pool, tmp_path, "train.num_workers=1")))
    assert "going on after step" in said
    assert runs.manifest(tmp_path)["digest"] == undisturbed["digest"]


@pytest.mark.parametrize("kib", [60, 232])  # room for no batch of images, and for some of them
def test_a_full_shared_memory_is_named_with_the_way_out(pool: Path, tmp_path: Path, kib: int) -> None:
    mount = f"mount -t tmpfs -o size={kib}k tmpfs /dev/shm"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("a /dev/shm of its own cannot be mounted here (unshare --mount)")
    command = shlex.join([sys.executable, *runs.arguments(pool, tmp_path, "train.num_workers=2")])
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} && exec {command}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    line = one_error(done.stderr)
    for fact in ("/dev/shm", f"{kib * 1024:,} bytes", "train.num_workers=2", "train.prefetch", "--shm-size"):
        assert fact in line
