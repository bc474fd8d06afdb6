"""A sweep as jobs of a real SLURM: the table of one machine, through kills, requeues and a lost node."""

import importlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.append(str(HERE))
night: Any = importlib.import_module("night_sweep")

pytestmark = pytest.mark.slow

POINT = ["sweep.seed=[0]", "sweep.budget.keep_fraction=[0.3]", "sweep.select.temperature=[0.1]"]
ALONE = [*POINT, "~sweep.arms.ssp", "~sweep.arms.uniform", "sweep.add_controls=false"]


@pytest.fixture(autouse=True)
def slurm(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let this process and what it starts know the cluster; leave its queue empty."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield cluster
    cluster.call("scancel", "--user=root")
    until = time.monotonic() + 60
    while cluster.queue() and time.monotonic() < until:
        time.sleep(0.5)


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return night.write_configs(tmp_path_factory.mktemp("configs"))


@pytest.fixture(
    scope="module",
    params=[pytest.param([0], id="one seed"), pytest.param([0, 1], id="two seeds", marks=pytest.mark.nightly)],
)
def seeds(request: pytest.FixtureRequest) -> list[int]:
    """Those of the grid: one takes half the time."""
    return request.param


@pytest.fixture(scope="module")
def here(configs: Path, seeds: list[int], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The whole grid on this machine."""
    home = night.Home(tmp_path_factory.mktemp("here"), configs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        home.sweep(f"sweep.seed={seeds}")
    return home


@pytest.fixture(scope="module")
def there(configs: Path, seeds: list[int], cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The whole grid on SLURM."""
    home = night.Home(tmp_path_factory.mktemp("there"), configs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.conf))
        patch.setenv("OMP_NUM_THREADS", "1")
        said = home.sweep(f"sweep.seed={seeds}", "launcher=slurm_cpu")
        assert re.search(r"job \d+ prepare\njob \d+ report\n", said), said
        night.wait_until_empty(cluster, home)
    return home


# the table


def test_slurm_makes_the_table_of_this_machine(here: Any, there: Any, seeds: list[int]) -> None:
    assert len(here.results()) == 2 * len(seeds) * (4 + 2 + 2)
    assert there.results() == here.results()
    assert there.keep_lists() == here.keep_lists()
    assert len(set(here.keep_lists().values())) > 4 * len(seeds), "methods and ratios keep different rows"
    assert there.artifacts() == here.artifacts()


def test_each_artifact_is_made_once(there: Any) -> None:
    made = Counter(re.findall(r"^(\w+) +([0-9a-f]{12})  made in", there.logs(), re.MULTILINE))
    assert set(made) == {(stage, key[:12]) for stage, key in there.artifacts()}
    # Two arms that differ in the seed of training alone may make their keep list side by side.
    twice = {stage for (stage, _), times in made.items() if times > 1}
    assert twice <= {"select"}
    assert made.keys() >= {("select", key[:12]) for key in there.keep_lists()}
    assert not there.half_written()


def test_a_second_sweep_submits_nothing_and_prints_the_table(there: Any, slurm: Any, seeds: list[int]) -> None:
    before = there.manifest()
    began = time.monotonic()
    said = there.sweep(f"sweep.seed={seeds}", "launcher=slurm_cpu")
    print(f"a second sweep took {time.monotonic() - began:.1f} s")
    assert there.manifest() == before
    assert slurm.queue() == []
    assert re.search(rf"^dbp keep_fraction=0\.5 temperature=0\.0001 +{len(seeds)} ", said, re.MULTILINE)
    assert "finished, in " in said


def test_one_more_temperature_submits_its_arm_alone_and_cancel_empties_the_queue(there: Any, slurm: Any) -> None:
    more = [*POINT[:2], "sweep.select.temperature=[0.1,0.0001,0.002]", "launcher=slurm_cpu"]
    before = there.manifest()["jobs"]
    said = there.sweep(*more)
    assert "5 runs of 5 arms; 1 handed in" in said
    arm, evaluation, report = there.manifest()["jobs"][len(before) :]
    assert [job["role"] for job in (arm, evaluation, report)] == ["arm", "evaluate", "report"]
    assert arm["elements"] == evaluation["elements"]
    assert len(arm["elements"]) == 1
    night.training(there, step=8)
    assert "3 tasks of 3 jobs cancelled; what was made is kept" in there.sweep("cancel", *more)
    night.wait_until_empty(slurm, there, 120)
    told = there.sweep("status", *more)
    assert told.splitlines()[-1] == "4 done, 1 failed"
    assert re.search(
        # The arm may have trained its last steps while it was being taken back.
        r"^dbp temperature=0\.002 +seed 0 +failed +(arm was cancelled|trained; evaluate was cancelled)",
        told,
        re.MULTILINE,
    )


# disturbed


def test_a_requeue_a_kill_and_a_lost_node_change_nothing(
    here: Any, configs: Path, tmp_path: Path, slurm: Any
) -> None:
    home, words = night.Home(tmp_path, configs), ["sweep.seed=[0]", "launcher=slurm_cpu"]
    home.sweep(*words)
    assert "the points are known once the pool is indexed" in home.sweep("status", *words)

    first = night.training(home, step=24)
    slurm.call("scontrol", "requeue", f"{first.job}_{first.task}")
    second = night.training(home, step=24, but={first.partial})
    os.kill(second.pid, signal.SIGKILL)
    said = night.tell_truth(slurm, home, here, *words)
    assert "failed        arm ended with exit code 137:0; log: " in said
    third = night.training(home, step=24, but={first.partial, second.partial})
    slurm.lose(third.node)
    time.sleep(2)
    slurm.revive(third.node)
    night.tell_truth(slurm, home, here, *words)
    night.wait_until_empty(slurm, home)

    log = home.logs("arm")
    assert "training left after step" in log
    assert len(re.findall(r"train: going on after step", log)) >= 3, "each of the three"
    assert home.manifest()["rounds"] == 2, "what was killed was submitted again, once"
    seed = [line for line in here.results() if line["seed"] == 0]
    assert len(seed) == len(home.results()) == 2 * 8
    assert home.results() == seed
    assert home.keep_lists().items() <= here.keep_lists().items()
    assert not home.half_written()
    assert home.sweep("status", *words).splitlines()[-1] == "8 done"


# one point, in other ways


@pytest.fixture
def begun(there: Any, tmp_path: Path) -> Any:
    """A home where all is made but runs and results; its encoder is trained."""
    shutil.copytree(there.folder / "store", tmp_path / "store")
    encoder = next(
        folder for folder in there.folder.glob("runs/train/*")
        if json.loads((folder / "manifest.json").read_text())["counts"]["samples_seen"] == 8 * night.BATCH
    )  # fmt: skip
    shutil.copytree(encoder, tmp_path / "runs" / "train" / encoder.name)
    return night.Home(tmp_path, there.configs)


def same_run(home: Any, other: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifests of a run that both homes have made."""
    (line,) = {line["train_key"] for line in home.results()}
    return tuple(  # type: ignore[return-value]
        json.loads((at.folder / "runs" / "train" / line / "manifest.json").read_text()) for at in (home, other)
    )


def test_two_ranks_on_two_nodes_train_the_arm_of_one(begun: Any, here: Any, slurm: Any) -> None:
    nodes = ["launcher.arm.nodes=2", "launcher.arm.ranks=2"]
    begun.sweep(*ALONE, "launcher=slurm_cpu", *nodes)
    night.wait_until_empty(slurm, begun)
    two, one = same_run(begun, here)
    assert (two["counts"]["num_devices"], one["counts"]["num_devices"]) == (2, 1)
    assert two["key"] == one["key"]
    assert two["counts"]["consumed"] == one["counts"]["consumed"]
    folders = [home.folder / "runs" / "train" / two["key"] for home in (begun, here)]
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in folders
    ]
    assert len(losses[0]) == len(losses[1]) == night.STEPS
    assert losses[0][:5] == pytest.approx(losses[1][:5], rel=1e-4)
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=2e-2)
    weights = [torch.load(f / "weights.pt", weights_only=True)["state_dict"] for f in folders]
    for name in weights[0]:
        assert np.abs((weights[0][name] - weights[1][name]).numpy()).max() < 2e-2


def test_arms_that_share_a_job_run_each_its_own_point(begun: Any, here: Any, slurm: Any) -> None:
    # Three arms by two to a job, so that a process of the second job has no point. The nodes have one core.
    shared = ["launcher.arms_per_job=2", "launcher.options=[--overcommit]"]
    begun.sweep(*POINT, "launcher=slurm_cpu", *shared)
    (arms,) = [job for job in begun.manifest()["jobs"] if job["role"] == "arm"]
    assert [len(keys) for keys in arms["elements"]] == [2, 1]
    night.wait_until_empty(slurm, begun)
    found, known = begun.results(), here.results()
    for line in (*found, *known):
        del line["arm"]  # its name holds the axes of the grid
    keys = {line["evaluate_key"] for line in found}
    assert len(keys) == 3
    assert found == [line for line in known if line["evaluate_key"] in keys]
    assert begun.manifest()["rounds"] == 1


def test_an_arm_that_fails_is_tried_and_then_stands_in_the_table(begun: Any, slurm: Any) -> None:
    greedy = "+sweep.arms.greedy={select:uniform,budget:{num_kept:10000,keep_fraction:null}}"
    words = [*ALONE, greedy, "launcher=slurm_cpu", "launcher.tries=2"]
    begun.sweep(*words)
    night.wait_until_empty(slurm, begun)
    said = begun.manifest()
    assert said["rounds"] == 2
    assert sorted(said["tries"].values()) == [1, 2]
    table = (begun.out / "table.md").read_text()
    assert "| greedy | 0 | no result: BudgetError: cannot keep 10,000 rows" in table
    assert {line["arm"] for line in begun.results()} == {"dbp"}
    last = slurm.call("scontrol", "show", "job", said["jobs"][-1]["number"], "--oneliner")
    assert "JobState=FAILED" in last
    assert "ExitCode=1:0" in last
    told = begun.sweep("status", *words)
    assert "greedy" in told
    assert "failed        BudgetError: cannot keep 10,000 rows" in told
