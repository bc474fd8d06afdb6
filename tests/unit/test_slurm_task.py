"""What the jobs of a sweep do: tries, shared stages once, one point to a process."""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from slurm_toys import END, TRIED, Home, Slurm, launcher, point, toy

from dbp.errors import ConfigError, StoreError
from slurm import task
from slurm.cluster import jobs as jobs_module
from slurm.cluster.launcher import Launcher
from slurm.cluster.manifest import failure_file
from training.resume.ranks import Ranks
from training.resume.signals import SIGNALS


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path / "bin", monkeypatch)


def test_what_failed_is_handed_in_again_so_many_times_and_then_told(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, str]] = []
    monkeypatch.setattr(jobs_module, "tell", lambda *given: told.append(given[3]) or 1)
    home = Home(tmp_path, 2, ["launcher.tries=2"])
    home.make(home.rows, toy("sets"), home.points[0].last)
    home.sweep().hand_in(by_person=True)
    record = failure_file(home.record, home.keys[1])
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "101")
    task.record(home.record, home.keys[1], "arm", "BudgetError: none")
    assert home.sweep().hand_in(by_person=False) == 0
    assert home.manifest().tries == {home.keys[1]: 2}
    slurm.say("show-104", END.format(job=104, state="TIMEOUT", reason="TimeLimit", code="0:15"))
    assert home.sweep().hand_in(by_person=False) == 1
    (failures,) = told
    assert failures[home.keys[1]].startswith("arm ran into its time limit of 04:00:00 before")
    assert record.exists(), "of the first try"
    assert len(slurm.calls("sbatch")) == 6
    home.sweep().hand_in(by_person=True)
    assert home.manifest().tries == {home.keys[1]: 1}, "a person asks anew"


def test_the_shared_job_tries_a_broken_stage_once_for_all_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    broken = toy("broken rows")
    points = {f"key {n}": point(f"arm {n}", broken).nodes | {"cluster": broken} for n in (0, 1)}
    points["key 2"] = point("arm 2", home.rows).nodes | {"cluster": home.rows}
    here = Launcher(kind="local")
    monkeypatch.setattr(task, "open_points", lambda points: (home.store, here, dict(points)))
    monkeypatch.setattr("dbp.clustering.together.assign_together", lambda store, nodes: None)
    quiet = SimpleNamespace(Preempted=KeyboardInterrupt)  # as below: Lightning takes seconds to load
    monkeypatch.setitem(sys.modules, "training.resume.preemption", quiet)
    TRIED.clear()
    why = "StoreError: broken rows cannot be made"
    assert task.shared(home.record, list(points.items())) == {"key 0": why, "key 1": why, "key 2": None}  # type: ignore[arg-type]
    assert TRIED == ["broken rows", "rows", "sets"]


def test_a_run_that_was_asked_to_leave_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "training.resume.preemption", SimpleNamespace(Preempted=StoreError))

    def leave() -> None:
        raise StoreError("left after step 8")

    with pytest.raises(SystemExit, match="left after step 8"):
        task.attempt(leave)


def test_a_signal_ends_a_stage_and_lets_training_end_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    quiet = SimpleNamespace(requeue=lambda: asked.append("requeue") or "it is requeued")
    monkeypatch.setitem(sys.modules, "training.resume.preemption", quiet)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        task.leave_on_signals()
        with pytest.raises(SystemExit, match="left on SIGUSR1; it is requeued"):
            signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(SystemExit, match="left on SIGTERM; what was made is kept"):
            signal.raise_signal(signal.SIGTERM)
        handler: Any = signal.getsignal(signal.SIGUSR1)
        handler(signal.SIGUSR1, None)  # as training does, once it has saved
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert asked == ["requeue", "requeue"]


def test_an_evaluation_leaves_the_reason_of_the_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    home.make(home.points[1].nodes["train"])
    nodes = {key: p.nodes for key, p in zip(home.keys, home.points, strict=True)}
    monkeypatch.setattr(task, "open_points", lambda points: (home.store, None, nodes))
    monkeypatch.setattr(task, "replace", lambda stage, **more: stage)
    task.record(home.record, home.keys[0], "arm", "BudgetError: too few")
    assert task.evaluate(home.record, [(key, {}) for key in home.keys]) == {home.keys[1]: None}
    assert "too few" in failure_file(home.record, home.keys[0]).read_text()


def test_a_rank_that_follows_does_not_say_how_the_arm_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def joined(folder: Path) -> Any:
        yield Ranks(rank=1, size=2)

    monkeypatch.setattr("training.resume.ranks.joined", joined)
    quiet = SimpleNamespace(follow=lambda ranks: None)
    monkeypatch.setitem(sys.modules, "training.run", quiet)
    assert task.arm(tmp_path, [("key", {"paths": {"runs": str(tmp_path)}})]) == {}


def test_a_process_of_a_packed_job_takes_its_point_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: Any = [(key, {"launcher": {"arms_per_job": 4}}) for key in "abc"]
    found = []
    for number in range(4):
        monkeypatch.setenv("SLURM_PROCID", str(number))
        monkeypatch.setenv("SLURM_LOCALID", str(number))
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
        keys = [key for key, _ in task.own_share(packed)]
        found.append((keys, os.environ["CUDA_VISIBLE_DEVICES"], os.environ["SLURM_STEP_NUM_TASKS"]))
    assert found == [(["a"], "4", "1"), (["b"], "5", "1"), (["c"], "6", "1"), ([], "7", "1")]
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    alone: Any = [("a", {"launcher": {"arms_per_job": 1}})]
    assert task.own_share(alone) == alone
    assert os.environ["SLURM_STEP_NUM_TASKS"] == "4", "its ranks train together"


def test_an_arm_of_several_ranks_shares_its_job_with_none() -> None:
    with pytest.raises(ConfigError, match=r"launcher.arms_per_job=2: it must be 1 with arm.ranks=2"):
        launcher("launcher.arm.ranks=2", "launcher.arms_per_job=2")
