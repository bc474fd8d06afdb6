"""The arms of a sweep with the keys of their runs, written for `dbp report`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dbp.engine.store import Store
from dbp.pools.rates import column_nodes
from evaluation.report.page.roster import NamedArm, NamedRun, Roster
from slurm.encoder import encoder_keys
from slurm.plan import Plan, Point
from slurm.settings import SweepSettings


def write_arms(
    plan: Plan,
    store: Store,
    settings: SweepSettings,
    out: Path,
    *,
    failures: Mapping[str, str] | None = None,
    encoders: Mapping[int, Mapping[str, str]] | None = None,
    notes: Sequence[str] | None = None,
) -> None:
    """Write `arms.json`: of every arm its control, and of every run its keys and why it failed.

    Args:
        plan, store, settings, out: Of the sweep.
        failures: Key of an evaluation -> why it failed.
        encoders: Seed -> the files of the checkpoint that curation uses.
        notes: What stands above the table; those of the settings where none are given.
    """
    with store.steady():
        arms = [
            NamedArm(
                label,
                _method(next(p for p in plan.points if p.label == label)),
                plan.control_of(label, settings.control),
                tuple(_run(p, store, failures or {}) for p in plan.points if p.label == label),
            )
            for label in plan.labels
        ]
        columns = {
            key: name
            for point in plan.points
            for name, node in column_nodes(point.nodes).items()
            if (key := store.key(node))
        }
    said = settings.notes if notes is None else notes
    out.mkdir(parents=True, exist_ok=True)
    Roster(settings.name, tuple(arms), tuple(said), encoder_keys(encoders or {}), columns).save(out)


def _run(point: Point, store: Store, failures: Mapping[str, str]) -> NamedRun:
    keep, train, last = (store.key(point.nodes[n]) for n in ("select", "train", "evaluate"))
    reason = failures.get(str(last))
    if store.entry(point.last) is None and reason is None:
        reason = "unfinished"
    problem = reason.strip().splitlines()[-1] if reason else None
    return NamedRun(point.seed, keep, train, last, problem)


def _method(point: Point) -> str:
    """A point's label without its budget, so that points of one method make one curve."""
    label = f"{point.label} "
    for axis, value in point.axes.items():
        if axis.startswith("budget."):
            for name in (axis, axis.rpartition(".")[2]):
                label = label.replace(f" {name}={value} ", " ")
    return label.strip()
