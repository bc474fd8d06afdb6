"""A training run that is killed, or asked to leave, ends with the weights of one that was not."""

import importlib
import os
import random
import signal
import sys
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
