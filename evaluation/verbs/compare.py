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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dbp.config import require
from dbp.engine.store import Store
from dbp.errors import ConfigError, StoreError
from dbp.verbs.show import read_arguments
from evaluation.checkpoints import Evaluated, find_checkpoints
from evaluation.metrics.zero_shot import check_protocol
from evaluation.report.concepts import concepts_of_runs
from evaluation.report.table import Table, aligned
from evaluation.results import not_whole, without_nan
from evaluation.statistics.arms import MIN_SEEDS
from evaluation.statistics.contrast import Row, adjust, contrast, metrics_of
from evaluation.statistics.significance import ALPHA
from evaluation.tasks import find_task

SETTINGS = {
    "protocol": "corrected", "metrics": "main", "seed": "0", "concepts": "auto", "json": "",
    "paths.store": "./store", "paths.runs": "./runs",
}  # fmt: skip
CHOICES = {"metrics": ("main", "all"), "concepts": ("auto", "true", "false")}
HEADING = ("task", "metric", "first", "second", "difference", "95 % interval", "p (Holm)", "verdict")


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
    tests = sum(len(metrics_of(one, all_metrics)) for one in first.results) * len(others)
    # The smallest p-value must stay visible when it is multiplied by the number of tests.
    asked = {"seed": int(settings["seed"]), "num_exchanges": max(1_999, 50 * tests - 1)}
    compared = [contrast(first.results, one.results, all_metrics=all_metrics, **asked) for one in others]
    print(f"first   {first}")
    print(f"protocol={settings['protocol']}; percent; differences are second - first")
    told = []
    for second, rows, (_, refused) in zip(others, adjust([rows for rows, _ in compared]), compared, strict=True):
        told.append(tell(first, second, rows, refused))
        told[-1]["concepts"] = tell_concepts(store, first, second, settings["concepts"])
        print(f"\n{told[-1]['sentence']}")
    if settings["json"]:
        out = Path(settings["json"])
        about = {"first": str(first), "protocol": settings["protocol"], "alpha": ALPHA} | asked
        text = json.dumps(without_nan(about | {"comparisons": told}), indent=1, allow_nan=False)
        out.write_text(text + "\n")
        print(f"wrote {out}")
    return 0 if any(rows for rows, _ in compared) else 1


def tell(
    first: Evaluated, second: Evaluated, rows: Sequence[Row], refused: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Print one comparison as a table; return all of it, for JSON."""
    print(f"\nsecond  {second}")
    if rows:
        print(aligned(Table("", HEADING, [_cells(row) for row in rows])))
    for key, reason in refused:
        print(f"not compared: {find_task(key).name}: {reason}")
    for said in not_whole([*first.results, *second.results]):
        print(f"not on the task's own test set: {said}")
    verdicts = [row.verdict for row in rows if row.task]
    better, worse, open_ = (verdicts.count(v) for v in ("better", "worse", "cannot tell"))
    differ = any(row.verdict != "cannot tell" for row in rows)
    sentence = (
        f"{second.where} against {first.where}: better in {better}, worse in {worse}, cannot tell in "
        f"{open_} of {len(verdicts)} tests of tasks. "
        + (
            "These two checkpoints differ; one seed: cannot tell about the methods "
            f"(that takes {MIN_SEEDS} seeds an arm, as `dbp sweep` compares them)."
            if differ
            else "These two checkpoints cannot be told apart."
        )
    )
    return {
        "second": str(second),
        "rows": [row.facts() for row in rows],
        "refused": [{"task": key, "reason": reason} for key, reason in refused],
        "sentence": sentence,
    }


def _cells(row: Row) -> list[str]:
    one, (low, high) = row.paired, row.paired.interval
    values = [f"{100 * one.first:.1f}", f"{100 * one.second:.1f}", f"{100 * one.difference:+.1f}"]
    interval = f"[{100 * low:+.1f}, {100 * high:+.1f}]"
    return [row.name, row.metric, *values, interval, f"{row.adjusted_p:.2g}", row.verdict]


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
