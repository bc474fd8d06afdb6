"""The results of a roster: arms that can be compared side by side, each group with its columns and cells.

Two arms stand in one group where the same was measured in the same way: suite, protocol, precision, limit
and the content of every set. Others stand apart, and the group says what tells it from the first.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dbp.engine.store import Entry, Store
from dbp.errors import DbpError
from evaluation.report.ledger import item_of
from evaluation.report.page.roster import NamedArm, NamedRun, Roster, missing_inputs
from evaluation.results import Result
from evaluation.statistics.analysis import analyse
from evaluation.statistics.comparison import MEAN, Arm, Cell, Run
from evaluation.suites import groups as columns_of_tables
from evaluation.suites import missing_members
from evaluation.tasks import find_task, with_chance

FEW = 8  # tasks of a suite that all stand in the table at first


@dataclass(frozen=True)
class Column:
    """A column of results: a task, or the plain mean of some."""

    key: str
    label: str
    about: str
    is_shown: bool
    chance: float | None = None  # value of a random guess, in [0, 1]

    @property
    def heading(self) -> str:
        """The label, with the level of chance where it is known."""
        return with_chance(self.label, self.chance)


@dataclass
class Measured:
    """An arm with its finished runs, what is wrong with the others, and what is gone of what it rests on."""

    named: NamedArm
    number: int
    runs: list[Run] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    measured_as: dict[str, Any] = field(default_factory=dict)
    gone: dict[str, None] = field(default_factory=dict)

    @property
    def state(self) -> str:
        if not self.runs:
            return "unfinished"
        return "partly finished" if self.problems else "finished"


@dataclass(frozen=True)
class Group:
    """Arms that can be compared, and what keeps them apart from the first group."""

    name: str
    reason: str
    arms: list[Measured]
    columns: list[Column]
    cells: dict[str, dict[str, Cell]]
    notes: list[str]


def measure(store: Store, found: Mapping[str, Entry], roster: Roster) -> list[Measured]:
    """Read the results of every arm; what cannot be read is a problem of its arm."""
    measured: list[Measured] = []
    for number, named in enumerate(roster.arms):
        arm = Measured(named, number)
        for run in named.runs:
            try:
                _read(store, found, run, arm)
            except (DbpError, OSError, KeyError, ValueError) as error:
                arm.problems.append(f"seed {run.seed}: {type(error).__name__}: {error}")
            store.loaded.clear()
        measured.append(arm)
    return measured


def _read(store: Store, found: Mapping[str, Entry], run: NamedRun, arm: Measured) -> None:
    if run.evaluate is None or run.evaluate not in found:
        reason = run.problem or "unfinished"
        if run.evaluate and run.problem is None:
            reason = (
                f"its evaluation {run.evaluate[:12]} is not in {store.runs}: removed, or the store was moved "
                "(paths.store and paths.runs say where to look)"
            )
        arm.problems.append(f"seed {run.seed}: {reason.strip().splitlines()[-1]}")
        return
    entry = found[run.evaluate]
    results = store.open(run.evaluate)
    train = found.get(run.train or "") or found.get(entry.manifest["inputs"]["checkpoint"]["key"])
    arm.runs.append(Run(run.seed, results.results, _facts(train, entry, run)))
    arm.measured_as = arm.measured_as or _measured_as(entry, results.results)
    arm.problems += [f"seed {run.seed}: {f.task}: {f.reason}" for f in results.failures]
    arm.gone |= dict.fromkeys(missing_inputs(found, entry))


def _facts(train: Entry | None, evaluate: Entry, run: NamedRun) -> dict[str, Any]:
    counts = train.manifest["counts"] if train else {}
    names = ("kept", "samples_seen", "steps", "batch_size", "passes", "draws", "most_draws_of_a_sample")
    facts = {name: counts.get(name) for name in names}
    item = item_of(train.manifest) if train else None
    return {
        **facts,
        "train_flops": item and item.flops,  # with what was scored
        "equal": (train.manifest["parameters"].get("budget") if train else None) or "samples",
        "train_seconds": item and item.seconds,
        "gpu_hours": item and item.gpu_hours,
        "seconds": (item.seconds if item else 0.0) + evaluate.manifest["seconds"],
        "keep": run.keep,
        "train": train.key if train else None,
        "evaluate": evaluate.key,
    }


def _measured_as(entry: Entry, results: Sequence[Result]) -> dict[str, Any]:
    """What must be equal before two arms stand side by side."""
    settings = {
        name: value
        for name, value in entry.manifest["parameters"].items()
        if name in ("suite", "limit", "precision", "max_templates", "seed")
    }
    protocols = sorted({result.protocol for result in results})
    return {**settings, "protocol": ", ".join(protocols), "version": entry.manifest["version"]}


def group(measured: Sequence[Measured]) -> list[Group]:
    """Part arms that cannot be compared; those without a result stand with the arms of their sweep."""
    parted: list[list[Measured]] = []
    for arm in (arm for arm in measured if arm.runs):
        home = next((g for g in parted if _why_apart(g[0], arm) is None), None)
        if home is None:
            parted.append([arm])
        else:
            home.append(arm)
    idle = [arm for arm in measured if not arm.runs]
    if not parted:
        parted = [[]]
    parted[0] += idle
    parted[0].sort(key=lambda arm: arm.number)
    first = next((arm for arm in parted[0] if arm.runs), None)
    return [
        _group(arms, (_why_apart(first, arms[0]) or "") if number and first else "")
        for number, arms in enumerate(parted)
    ]


def _why_apart(first: Measured, other: Measured) -> str | None:
    if not first.runs or not other.runs:
        return None
    for name, value in first.measured_as.items():
        if value != other.measured_as.get(name):
            return f"{name}: {_words(value)} and {_words(other.measured_as.get(name))}"
    sets = {r.task: r.set_digest for run in first.runs for r in run.results}
    for result in (result for run in other.runs for result in run.results):
        if sets.get(result.task, result.set_digest) != result.set_digest:
            return f"the set of {result.task} holds other content"
    return None


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _group(arms: list[Measured], reason: str) -> Group:
    compared = [Arm(a.named.name, a.runs, a.named.control, a.problems) for a in arms if a.runs]
    tasks = list(dict.fromkeys(r.task for arm in compared for run in arm.runs for r in run.results))
    means = _means(tasks)
    analysis = analyse(compared, means=means)
    columns, cells = _columns(analysis.cells, means), analysis.cells
    suite = next((a.measured_as["suite"] for a in arms if a.runs and "suite" in a.measured_as), "")
    name = f"suite {_words(suite)}" if suite else "no results yet"
    notes = _notes(arms, cells, analysis.notes if compared else [])
    if suite and (missing := missing_members(suite)):
        notes.append(f"The suite's paper also has {', '.join(missing)}; no set of them is known here.")
    return Group(name, reason, arms, columns, cells, notes)


def _means(tasks: Sequence[str]) -> dict[str, Sequence[str]]:
    """The complete groups of a wide table's tasks, which get a mean of their own: column -> members."""
    if len(tasks) <= FEW:
        return {}
    return {
        f"{MEAN} of {label}": members for label, members in columns_of_tables().items() if set(members) < set(tasks)
    }


def _columns(cells: Mapping[str, Mapping[str, Cell]], means: Mapping[str, Sequence[str]]) -> list[Column]:
    """The columns of a group: means first in a wide table, where single tasks are folded away."""
    there = list(dict.fromkeys(column for row in cells.values() for column in row))
    tasks = [column for column in there if column not in (*means, MEAN)]
    wide = len(tasks) > FEW
    groups = [
        Column(key, key.removeprefix(f"{MEAN} of "), f"plain mean of {len(m)}: {', '.join(map(_short, m))}", True)
        for key, m in means.items()
    ]
    metrics = {task: find_task(task).main_metric for task in tasks}
    about = f"plain mean of {', '.join(f'{_short(task)} ({metric})' for task, metric in metrics.items())}"
    mean = [Column(MEAN, f"mean of {len(tasks)}" if wide else "mean", about, True)] if MEAN in there else []
    singles = [Column(t, _short(t), f"{t}: {m}", not wide, find_task(t).chance) for t, m in metrics.items()]
    return [*groups, *mean, *singles] if wide else [*singles, *mean]


def _notes(arms: Sequence[Measured], cells: Mapping[str, Mapping[str, Cell]], verdicts: Sequence[str]) -> list[str]:
    """What a reader must know before reading the numbers."""
    percent = "Percent, mean over seeds; ± is half the 95 % interval over test samples."
    notes = [percent, *verdicts] if cells else []
    seen = {json.dumps([run.facts["samples_seen"], run.facts["batch_size"]]) for a in arms for run in a.runs}
    if any(run.facts.get("equal") == "flops" for a in arms for run in a.runs):
        notes.append("Arms that score candidates see fewer samples, at equal FLOPs of a run (train.budget=flops).")
    elif len(seen) > 1:
        notes.append("Not compute-matched: arms saw unequal numbers of samples, or in unequal batches.")
    for state in ("unfinished", "partly finished"):
        if some := [arm.named.name for arm in arms if arm.state == state]:
            notes.append(f"{state.capitalize()}: {', '.join(some)}.")
    return notes


def _short(task: str) -> str:
    return task.split("/")[-1]
