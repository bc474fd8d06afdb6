"""wandb without a network: what the files hold after a run, after a requeue, and after a sweep."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from wandb_files import read_offline

from training.account.metrics import Wandb, read_metrics
from training.publish import once

pytest.importorskip("wandb")

OFFLINE = Wandb(project="dbp-tests", mode="offline")
KEY = "0123456789abcdef01234567"


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [{"step": s, "samples_seen": 8 * s, "loss": 1 / s} for s in range(first, last + 1)]


def record(folder: Path, past: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    with OFFLINE.open(folder, KEY, {"lr": 0.5, "model": {"name": "m"}}, past) as write:
        for row in new:
            write(row)


def test_a_record_has_the_runs_key_its_settings_and_every_row(tmp_path):
    record(tmp_path / "try", [], rows(1, 4))
    (found,) = read_offline(tmp_path / "try")
    assert found.run_id == KEY
    assert found.config["lr"] == 0.5
    assert found.config["model"] == {"name": "m"}
    assert [(r["_step"], r["samples_seen"], r["loss"]) for r in found.rows] == [
        (s, 8 * s, 1 / s) for s in range(1, 5)
    ]
    assert found.exit_code == 0


def test_after_a_requeue_one_record_of_one_id_has_every_step_once(tmp_path):
    record(tmp_path / "first", [], rows(1, 5))
    # A killed process leaves its folder half-written, and it is swept; the run goes on from step 3.
    shutil.rmtree(tmp_path / "first")
    record(tmp_path / "second", rows(1, 3), rows(4, 7))
    (found,) = read_offline(tmp_path / "second")
    assert found.run_id == KEY
    assert [r["_step"] for r in found.rows] == list(range(1, 8))
    assert [r["loss"] for r in found.rows] == [1 / s for s in range(1, 8)]


def test_a_run_that_fails_is_recorded_as_failed(tmp_path):

    def run() -> None:
        with OFFLINE.open(tmp_path, KEY, {}, []) as write:
            write(rows(1, 1)[0])
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        run()
    (found,) = read_offline(tmp_path)
    assert found.exit_code == 1
    assert len(found.rows) == 1


def test_what_was_sent_is_not_sent_again_unless_it_changed_or_failed(tmp_path):
    said = []
    for digest in ("a", "a", "b", "b"):
        with once(tmp_path, OFFLINE, "table", digest) as is_new:
            said.append(is_new)
    assert said == [True, False, True, False]
    with pytest.raises(RuntimeError, match="no network"), once(tmp_path, OFFLINE, "run"):
        raise RuntimeError("no network")
    with once(tmp_path, OFFLINE, "run") as is_new:
        assert is_new
    online = Wandb(project="dbp-tests", mode="online")
    with once(tmp_path, online, "run") as is_new:
        assert is_new, "what lies in a folder has not gone over a network"


SMALL = [
    "pool=glyphs", "pool.plan.num_pairs=300", "pool.plan.task_pictures=40", "model=glyphs", "train=glyphs",
    "root=glyphs", "dedup=none", "sweep.select=[none,uniform]", "sweep.name=two", "train.samples_seen=64",
    "train.batch_size=32", "train.log_every_samples=32", "sweep.workers=1", "suite=[glyphs/letters]",
    "evaluate.limit=40", "evaluate.max_templates=1", "sweep.plots=false", "logger=wandb",
    "budget=of_pool", "budget.keep_fraction=0.5",
]  # fmt: skip


@pytest.mark.nightly
def test_a_sweep_leaves_runs_with_artifacts_results_and_its_table(tmp_path):
    from slurm.sweep import main

    where = [f"paths.store={tmp_path}/store", f"paths.runs={tmp_path}/runs"]
    assert main([*SMALL, *where], []) == 0
    manifests = [json.loads(f.read_text()) for f in tmp_path.glob("runs/train/*/manifest.json")]
    assert len(manifests) == 2
    behind = read_offline(tmp_path / "runs")
    for made in manifests:
        (training,) = read_offline(tmp_path / "runs/train" / made["key"])
        truth = read_metrics(tmp_path / "runs/train" / made["key"] / "metrics.jsonl")
        assert training.run_id == made["key"]
        assert [r["loss"] for r in training.rows] == [r["loss"] for r in truth]
        assert training.config["batch_size"] == 32
        mine = [one for one in behind if one.run_id == made["key"]]
        sent = {
            a["type"]: a for one in mine for a in one.artifacts if a["type"] in ("keep-list", "model", "evaluation")
        }
        assert set(sent) == {"keep-list", "model", "evaluation"}
        keep = made["inputs"]["keep"]["key"]
        assert sent["keep-list"]["name"] == f"keep-list-{keep}"
        assert "weights.pt" in sent["model"]["files"]
        lineage = sent["model"]["metadata"]["lineage"]
        assert lineage[-1] == {"stage": "train", "key": made["key"]}
        assert {"stage": "select", "key": keep} in lineage
        (results,) = [r for one in mine for r in one.rows if "evaluate/glyphs/letters/acc1" in r]
        assert results["_step"] > max(r["_step"] for r in training.rows)
    (table,) = [one for one in behind if one.job_type == "sweep"]
    assert {r["train"] for r in table.config["runs"]} == {m["key"] for m in manifests}
    assert main([*SMALL, *where], []) == 0
    assert len(read_offline(tmp_path / "runs")) == len(behind), "nothing is sent twice"


@pytest.mark.nightly
def test_a_killed_training_goes_on_in_one_record_without_a_gap(tmp_path):
    import os
    import signal
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
    from training_runs import BATCH, STEPS, arguments, finish, manifest, start, wait_for_step, write_pool

    write_pool(tmp_path / "pool")
    command = arguments(tmp_path / "pool", tmp_path, "logger=wandb")
    killed = start(command)
    wait_for_step(tmp_path, 20, lambda: killed.poll() is not None)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    finish(start(command))
    made = manifest(tmp_path)
    (found,) = read_offline(made["folder"])
    assert found.run_id == made["key"]
    assert [r["_step"] for r in found.rows] == list(range(1, STEPS + 1))
    assert [r["samples_seen"] for r in found.rows] == [BATCH * s for s in range(1, STEPS + 1)]
    sent = read_offline(tmp_path / "runs")
    assert {one.run_id for one in sent} == {made["key"]}
    assert {a["type"] for one in sent for a in one.artifacts} >= {"keep-list", "model"}
