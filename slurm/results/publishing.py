"""A sweep at Weights & Biases: each run's results beside its metrics, and the sweep's table."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from dbp.engine.store import Store
from dbp.errors import StoreError
from evaluation.statistics.comparison import Arm, Run
from slurm.plan import Plan, Point
from training.account.metrics import Wandb
from training.publish import artifact, once, publish_run, recorders

COLUMNS = ("task", "protocol", "metric", "value", "low", "high", "samples")


def publish_sweep(
    name: str, plan: Plan, store: Store, arms: Sequence[Arm], heading: Sequence[str], rows: Any
) -> None:
    """Send what a sweep found and its table as text, for each wandb logger of its runs; nothing without one."""
    loggers: dict[str, Wandb] = {}
    found = {(arm.name, run.seed): run for arm in arms for run in arm.runs}
    for point in plan.points:
        stage: Any = point.nodes["train"].stage
        if (run := found.get((point.label, point.seed))) is None:
            continue
        publish_run(store, point.nodes["train"])
        for logger in recorders(stage.loggers):
            loggers[repr(logger)] = logger
            _send_results(store, logger, point, run)
    for logger in loggers.values():
        _send_table(store, logger, name, plan, found, heading, rows)


def _send_results(store: Store, logger: Wandb, point: Point, run: Run) -> None:
    """Put the results of an evaluation behind the metrics of its training."""
    import wandb

    facts = run.facts
    with once(store.runs, logger, f"results-{facts['evaluate_key']}") as is_new:
        if not is_new:
            return
        table = wandb.Table(columns=list(COLUMNS))
        values: dict[str, float] = {}
        for result in run.results:
            for metric, value in result.metrics.items():
                if value is None:
                    continue
                low, high = result.intervals.get(metric, (None, None))
                table.add_data(result.task, result.protocol, metric, value, low, high, result.num_samples)
                values[f"evaluate/{result.task}/{metric}"] = value
        with logger.session(store.runs, facts["train_key"]) as record:
            # Behind the last step: what is logged at a step that was seen is dropped.
            record.log({"evaluate/results": table, **values}, step=facts["steps"] + 1)
            entry = store.entry(point.last)
            if entry is None:
                raise StoreError(f"evaluation {facts['evaluate_key']} is gone from {store.runs}")
            files = [entry.folder / "results.jsonl"]
            record.log_artifact(artifact(f"results-{entry.key}", "evaluation", entry, [entry], files))


def _send_table(
    store: Store,
    logger: Wandb,
    name: str,
    plan: Plan,
    found: dict[tuple[str, int], Run],
    heading: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> None:
    import wandb

    digest = hashlib.sha256(json.dumps([list(heading), list(map(list, rows))]).encode()).hexdigest()
    record_id = sweep_id(name, store.identity(plan.points[0].nodes["index"]) or "")
    with once(store.runs, logger, record_id, digest) as is_new:
        if not is_new:
            return
        keys = [
            {"arm": arm, "seed": seed, "train": run.facts["train_key"], "evaluate": run.facts["evaluate_key"]}
            for (arm, seed), run in found.items()
        ]  # fmt: skip
        with logger.session(store.runs, record_id, name=name, job_type="sweep") as record:
            record.config.update({"sweep": name, "runs": keys}, allow_val_change=True)
            record.log({"table": wandb.Table(columns=list(heading), data=[list(row) for row in rows])})


def sweep_id(name: str, pool: str) -> str:
    """The id of a sweep's record: the same for every try of it on one pool."""
    letters = re.sub(r"[^A-Za-z0-9_-]", "-", name)[:40]
    return f"sweep-{letters}-{hashlib.sha256(f'{name} {pool}'.encode()).hexdigest()[:12]}"
