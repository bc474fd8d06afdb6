"""Compare two checkpoints on the same test samples: better, worse, or cannot tell.

    dbp compare FIRST SECOND     each a results.jsonl, a folder that holds one, or the key of a run of ours
    dbp compare FILE             the first checkpoint of a file against each of its others

A second file with several checkpoints is compared checkpoint by checkpoint. Differences are second - first.
Intervals come from resampled test samples; p-values from the exact sign test where the metric counts hits,
else from random exchanges of the two checkpoints' outcomes of each sample; both only see the noise of test
samples. p is adjusted (Holm) over all tasks of the table, and over its means. Tasks whose sets, protocols,
precisions or limits differ are refused with the reason; the others go on.

    protocol=corrected   or datacomp: which results to compare
    metrics=main         or all: each task's main metric, or every one
    seed=0               of resamples and exchanges
    concepts=auto        or true, false: per-class recall beside how many of the class's training pairs each
                         run kept, where both are keys; auto leaves out pools of more than a million rows
    json=FILE            writes everything
    paths.store=…        and paths.runs=…: where keys are looked up
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dbp.config import require
from dbp.engine.store import Entry, Store
from dbp.errors import ConfigError, StoreError
from dbp.verbs.show import read_arguments
from evaluation.metrics.zero_shot import check_protocol
from evaluation.report.concepts import concepts_of_runs
from evaluation.report.table import Table, aligned
from evaluation.results import Result, load_results, without_nan
from evaluation.statistics.arms import MIN_SEEDS
from evaluation.statistics.comparison import Paired, mean_pair, pair, why_not_comparable
from evaluation.statistics.significance import ALPHA, holm
from evaluation.suites import groups
from evaluation.tasks import find_task

SETTINGS = {
    "protocol": "corrected", "metrics": "main", "seed": "0", "concepts": "auto", "json": "",
    "paths.store": "./store", "paths.runs": "./runs",
}  # fmt: skip
CHOICES = {"metrics": ("main", "all"), "concepts": ("auto", "true", "false")}
HEADING = (
    "task",
    "metric",
    "first",
    "second",
    "difference",
    "95 % interval",
    "p (Holm)",
    "verdict",
)
FILE_NAME = "results.jsonl"


@dataclass(frozen=True)
class Evaluated:
    """One checkpoint's results under one protocol.

    Args:
        where: The file or key that a person named.
        results: Of one checkpoint.
        entry: The evaluation in the store, if a key named it.
    """

    where: str
    results: Sequence[Result]
    entry: Entry | None = None

    def __str__(self) -> str:
        one = self.results[0]
        seen = f", {one.samples_seen:,} samples seen" if one.samples_seen is not None else ""
        return f"{self.where}: checkpoint {(one.checkpoint or 'unsaved')[:12]}, {one.model}{seen}"


@dataclass(frozen=True)
class Row:
    """A metric of a task, or the mean of a group, of two checkpoints.

    Args:
        name: Of the task or group.
        metric: Or `mean of` how many of the group's tasks.
        paired: Both on the same samples.
        task: Its key; none for a group.
        adjusted_p: After Holm's correction.
    """

    name: str
    metric: str
    paired: Paired
    task: str | None = None
    adjusted_p: float = 1.0

    @property
    def verdict(self) -> str:
        """What may be said of the second checkpoint."""
        if self.adjusted_p > ALPHA:
            return "cannot tell"
        # Shares of harm are the only metrics of which less is better.
        is_up = (self.paired.difference > 0) != self.metric.startswith("toxicity_")
        return "better" if is_up else "worse"

    def cells(self) -> list[str]:
        """Of the table."""
        one, (low, high) = self.paired, self.paired.interval
        numbers = [
            f"{100 * one.first:.1f}",
            f"{100 * one.second:.1f}",
            f"{100 * one.difference:+.1f}",
        ]
        interval = f"[{100 * low:+.1f}, {100 * high:+.1f}]"
        return [self.name, self.metric, *numbers, interval, f"{self.adjusted_p:.2g}", self.verdict]

    def facts(self) -> dict[str, Any]:
        """Every number, in [0, 1], for JSON."""
        one = self.paired
        return {
            "task": self.task, "name": self.name, "metric": self.metric, "first": one.first,
            "second": one.second, "difference": one.difference, "interval": one.interval,
            "p": one.p, "adjusted_p": self.adjusted_p, "verdict": self.verdict,
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """One checkpoint against another: what was compared, and what could not be and why."""

    second: Evaluated
    rows: Sequence[Row]
    refused: Sequence[tuple[str, str]]


def main(verb: str, arguments: list[str]) -> int:
    """Run `dbp compare`; the exit status is 1 if nothing could be compared."""
    settings, words = read_arguments(arguments, tuple(SETTINGS))
    settings = SETTINGS | settings
    if len(words) not in (1, 2):
        raise ConfigError(f"dbp compare takes FIRST SECOND, or one file; given: {words}")
    check_protocol(settings["protocol"])
    require(settings["seed"].isdecimal(), "seed", settings["seed"], "a whole number")
    for name, values in CHOICES.items():
        require(settings[name] in values, name, settings[name], f"one of {', '.join(values)}")
    store = Store(settings["paths.store"], settings["paths.runs"])
    found = [find_checkpoints(store, word, settings["protocol"]) for word in words]
    first, others = found[0][0], found[1] if len(found) == 2 else found[0][1:]
    if not others or (len(found) == 2 and len(found[0]) > 1):
        names = ", ".join(str(one.results[0].checkpoint)[:12] for one in found[0])
        raise ConfigError(
            f"{words[0]} holds {len(found[0])} checkpoint(s): {names}. FIRST must hold one; a file "
            "that is given alone must hold two or more."
        )
    all_metrics = settings["metrics"] == "all"
    tests = sum(len(_metrics(one, all_metrics)) for one in first.results) * len(others)
    # The smallest p-value must stay visible when it is multiplied by the number of tests.
    asked = {"seed": int(settings["seed"]), "num_exchanges": max(1_999, 50 * tests - 1)}
    compared = [contrast(first, one, all_metrics=all_metrics, **asked) for one in others]
    print(f"first   {first}")
    print(f"protocol={settings['protocol']}; percent; differences are second - first")
    told = []
    for one in adjust(compared):
        told.append(tell(first, one))
        told[-1]["concepts"] = tell_concepts(store, first, one.second, settings["concepts"])
        print(f"\n{told[-1]['sentence']}")
    if settings["json"]:
        out = Path(settings["json"])
        about = {"first": str(first), "protocol": settings["protocol"], "alpha": ALPHA} | asked
        text = json.dumps(without_nan(about | {"comparisons": told}), indent=1, allow_nan=False)
        out.write_text(text + "\n")
        print(f"wrote {out}")
    return 0 if any(one.rows for one in compared) else 1


def find_checkpoints(store: Store, word: str, protocol: str) -> list[Evaluated]:
    """The checkpoints that a word names, each with its results under a protocol.

    Raises:
        ConfigError: The word is no file and no key of an evaluation, or nothing has that protocol.
        WorldError: The file is no results file.
    """
    entry, path = None, Path(word)
    if path.is_dir():
        path = path / FILE_NAME
    elif not path.is_file() and path.suffix != ".jsonl":
        entry = find_evaluation(store, word)
        path = entry.folder / FILE_NAME
    results = load_results(path)
    by_checkpoint: dict[tuple, list[Result]] = {}
    for result in (one for one in results if one.protocol == protocol):
        identity = (result.checkpoint, result.model, result.config_digest, result.samples_seen)
        by_checkpoint.setdefault(identity, []).append(result)
    if not by_checkpoint:
        there = ", ".join(sorted({one.protocol for one in results})) or "none"
        raise ConfigError(
            f"{word} has no result under protocol={protocol}; it has: {there}. "
            "Choose another protocol, or evaluate again."
        )
    return [Evaluated(word, found, entry) for found in by_checkpoint.values()]


def find_evaluation(store: Store, key: str) -> Entry:
    """The evaluation that a key names, of itself or of the run that was evaluated.

    Raises:
        ConfigError: The key names something else, or a run with no or several evaluations.
        StoreError: No artifact, or several, have this key.
    """
    try:
        entry = store.find(key)
    except StoreError as error:
        raise ConfigError(
            f"{key} is neither a results file, nor a folder with {FILE_NAME}, nor a key: {error}"
        ) from error
    if entry.stage == "evaluate":
        return entry
    own = [
        one
        for one in store.entries()
        if one.stage == "evaluate"
        and entry.key in {upstream["key"] for upstream in one.manifest["inputs"].values()}
    ]
    if len(own) != 1:
        keys = ", ".join(one.key for one in own) or "none"
        raise ConfigError(
            f"{key} is the artifact of stage {entry.stage}, with {len(own)} evaluations in the store "
            f"({keys}). Give the key of an evaluation; `dbp ls stage=evaluate` lists them."
        )
    return own[0]


def contrast(
    first: Evaluated, second: Evaluated, *, all_metrics: bool, seed: int, num_exchanges: int
) -> Comparison:
    """Compare two checkpoints on every task that both have, and on the means of those.

    Args:
        first: With one result or more of each task.
        second: The same.
        all_metrics: Whether to compare every metric, or each task's main one.
        seed: Of resamples and exchanges.
        num_exchanges: Of outcomes, for each p-value.
    """
    rows: list[Row] = []
    refused: list[tuple[str, str]] = []
    for key in dict.fromkeys(one.task for one in (*first.results, *second.results)):
        own, other = ([r for r in side.results if r.task == key] for side in (first, second))
        if not own or not other:
            refused.append((key, f"only the {'first' if own else 'second'} has it"))
            continue
        reasons = [(why_not_comparable(a, b), a, b) for a in own for b in other]
        # Of several that can be compared, the one on most samples.
        reason, a, b = min(reasons, key=lambda r: (r[0] is not None, -r[1].num_samples))
        if reason is not None:
            refused.append((key, reason))
            continue
        names = [name for name in _metrics(a, all_metrics) if b.metrics.get(name) is not None]
        if not names:
            refused.append((key, "it has no main metric; metrics=all compares its others"))
        for name in names:
            paired = pair(name, a, b, seed=seed, num_exchanges=num_exchanges)
            rows.append(Row(find_task(key).name, name, paired, key))
    return Comparison(second, [*rows, *_means(rows)], refused)


def _metrics(result: Result, all_metrics: bool) -> list[str]:
    """The metrics of a result that have a value: every one, or the main one."""
    main = find_task(result.task).main_metric
    return [
        name
        for name, value in result.metrics.items()
        if value is not None and (name == main or (all_metrics and not name.startswith("count_")))
    ]


def _means(rows: Sequence[Row]) -> list[Row]:
    """The group means of the tasks that were compared; their names say how many are missing."""
    main = {row.task: row.paired for row in rows if row.task and row.metric == find_task(row.task).main_metric}
    found = []
    for group, members in groups().items():
        own = [main[key] for key in members if key in main]
        if len(own) > 1:
            size = f"{len(own)} of {len(members)}"
            name = group if len(own) == len(members) else f"{group} (INCOMPLETE)"
            found.append(Row(name, f"mean of {size}", mean_pair(own)))
    return found


def adjust(compared: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p-values: all tasks of all comparisons together, and all group means together."""
    every = [row for one in compared for row in one.rows]
    adjusted = np.ones(len(every))
    for is_task in (True, False):
        at = [i for i, row in enumerate(every) if (row.task is not None) == is_task]
        adjusted[at] = holm(np.array([every[i].paired.p for i in at]))
    values = iter(adjusted.tolist())
    return [replace(one, rows=[replace(row, adjusted_p=next(values)) for row in one.rows]) for one in compared]


def tell(first: Evaluated, one: Comparison) -> dict[str, Any]:
    """Print one comparison as a table; return all of it, for JSON."""
    print(f"\nsecond  {one.second}")
    if one.rows:
        print(aligned(Table("", HEADING, [row.cells() for row in one.rows])))
    for key, reason in one.refused:
        print(f"not compared: {find_task(key).name}: {reason}")
    verdicts = [row.verdict for row in one.rows if row.task]
    better, worse, open_ = (verdicts.count(v) for v in ("better", "worse", "cannot tell"))
    differ = any(row.verdict != "cannot tell" for row in one.rows)
    sentence = (
        f"{one.second.where} against {first.where}: better in {better}, worse in {worse}, cannot tell in "
        f"{open_} of {len(verdicts)} tests of tasks. "
        + (
            "These two checkpoints differ; one seed: cannot tell about the methods "
            f"(that takes {MIN_SEEDS} seeds an arm, as `dbp sweep` compares them)."
            if differ
            else "These two checkpoints cannot be told apart."
        )
    )
    return {
        "second": str(one.second),
        "rows": [row.facts() for row in one.rows],
        "refused": [{"task": key, "reason": reason} for key, reason in one.refused],
        "sentence": sentence,
    }


def tell_concepts(store: Store, first: Evaluated, second: Evaluated, wanted: str) -> dict[str, Any]:
    """Print what pruning did to each task's classes, where both runs are in the store."""
    if wanted == "false" or first.entry is None or second.entry is None:
        if wanted == "true":
            raise ConfigError(
                "concepts=true needs the keys of two evaluations of ours: a results file does not say "
                "which pairs its checkpoint was trained on."
            )
        return {}
    sides = (first.results, second.results)
    try:
        found = concepts_of_runs(store, (first.entry, second.entry), sides, limited=wanted == "auto")
    except StoreError as error:
        if wanted == "true":
            raise
        print(f"no training pairs: {error}")
        return {}
    for key, concepts in found.items():
        print(f"{find_task(key).name}: {concepts.line()}")
    return {key: asdict(concepts) for key, concepts in found.items()}
