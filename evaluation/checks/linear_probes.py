"""Linear probes on a suite: train pictures are encoded as test pictures are, then one probe a task.

    wds_<task>_test/train/nshards.txt, train/0.tar, …   beside test/, of the same layout
    wds_<task>_test/val/… (or validation/…)             else a fifth of each class of train is held out

Results are lines as of zero-shot tasks in a file of their own, `probe.jsonl`. Beside the metrics stand
`lp_penalty`, `lp_iterations` (1,000: L-BFGS was stopped before the optimum), and how many pictures the
penalty was chosen with: `count_train` and `count_validation`, or `count_held_out` where train was split.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.checks.logistic import MAX_ITERATIONS, Part, Probe, hold_out, probe
from evaluation.kinds.classification import Classification
from evaluation.results import Failure, Result, load_results, save_results
from evaluation.running.encode import Towers
from evaluation.running.prepare import Asked, Prepared, index_digest, prepare
from evaluation.running.runner import Encoding, SuiteRun, by_transform, same_work
from evaluation.sets.data import open_set
from evaluation.sets.folders import find_set
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.suites import resolve_suite
from evaluation.tasks import Task, find_task

TRAIN, VALIDATION = "train", ("val", "validation")
HELD_OUT = 0.2
FILE_NAME = "probe.jsonl"
# Blank names are classes, and ties go to the lower one.
PROTOCOL = "corrected"
HEADING = (
    "linear probe", "lp_acc1", "95 % interval", "lp_acc5", "lp_mean_per_class_recall", "penalty", "pictures",
    "train", "validation",
)  # fmt: skip


def probe_suite(
    towers: Sequence[Towers],
    suite: str | Sequence[str],
    root: Path,
    asked: Asked,
    encoding: Encoding,
    *,
    file: Path,
) -> list[Failure]:
    """Probe models on every classification task of a suite that has a train split; print a table each.

    Args:
        towers, suite, root, encoding: As of `evaluate_checkpoints`: of test pictures the vectors are the same.
        asked: Seed and limit; a limit cuts each split.
        file: Of the zero-shot results. Beside it stands `probe.jsonl`, saved as each task ends; what it
            has already and comes from the same files is not done again.

    Returns:
        The tasks that failed; a test set that is missing is left to the zero-shot evaluation to name.
    """
    failures: list[Failure] = []
    file = file.with_name(FILE_NAME)
    known = load_results(file) if file.exists() else []
    found: dict[int, list[Result]] = {i: [] for i in range(len(towers))}
    tasks, without = divide(resolve_suite(suite), root)
    for task, folder in tasks:
        try:
            parts = open_parts(task, folder, root, asked)
        except EvaluationDataError as error:
            failures.append(Failure(task.key, f"linear probe: {error}"))
            continue
        for numbers in by_transform(towers):
            run = SuiteRun([towers[i] for i in numbers], parts.every, asked, encoding)
            done = _probe_task(run, parts, known, failures)
            save_results(file, [result for result in done.values() if result not in known])
            for place, result in done.items():
                found[numbers[place]].append(result)
    for one in failures:
        print(f"failed: {find_task(one.task).name}: {one.reason}")
    for i, model in enumerate(towers):
        if found[i]:
            print_probes(found[i], model.label if len(towers) > 1 else "")
    if without:
        names = ", ".join(task.name for task in without)
        print(f"no linear probe, since there is no train split beside test: {names}")
    return failures


def divide(tasks: Sequence[Task], root: Path) -> tuple[list[tuple[Task, Path]], list[Task]]:
    """Part the classification tasks with a train split, each with its folder, from those without."""
    having: list[tuple[Task, Path]] = []
    without: list[Task] = []
    for task in tasks:
        if task.kind != "classification":
            continue
        try:
            folder = find_set(root, task)
        except EvaluationDataError:
            continue
        if (folder / TRAIN).is_dir() and not task.is_built:
            having.append((task, folder))
        else:
            without.append(task)
    return having, without


@dataclass(frozen=True)
class Parts:
    """The splits of one task, indexed, or what a limit leaves of them; none to validate: hold out of train."""

    test: Prepared
    train: Prepared
    validation: Prepared | None

    @property
    def every(self) -> list[Prepared]:
        """Test, train, and validation if there is one."""
        return [self.test, self.train, *([self.validation] if self.validation else [])]


def open_parts(task: Task, folder: Path, root: Path, asked: Asked) -> Parts:
    """Index the splits of a task and read their labels.

    Raises:
        EvaluationDataError: A split is damaged, a label is outside the names, or there are two
            validation splits.
    """
    failures: list[Failure] = []
    tests = prepare([task], root, asked, failures)
    if failures:
        raise EvaluationDataError(failures[0].reason)
    named = [split for split in VALIDATION if (folder / split).is_dir()]
    if len(named) > 1:
        raise EvaluationDataError(
            f"{folder} holds both {' and '.join(named)}, so it is open which of them the penalty is "
            "chosen on. Keep one."
        )
    train, *validation = [_open_split(task, folder, split, asked) for split in (TRAIN, *named)]
    return Parts(tests[0], train, validation[0] if validation else None)


def _open_split(task: Task, folder: Path, split: str, asked: Asked) -> Prepared:
    opened = open_set(folder, kind=task.kind, split=split, **task.given)
    scorer = Classification(opened, limit=asked.limit, seed=asked.seed)
    # Tars are named alike in every split, so the split is part of what names its vectors.
    digest = hashlib.sha256(f"{split} {index_digest(opened)}".encode()).hexdigest()
    return Prepared(replace(task, name=f"{task.name}, {split}"), opened, scorer, digest)


def _probe_task(run: SuiteRun, parts: Parts, known: Sequence[Result], failures: list[Failure]) -> dict[int, Result]:
    """The result of each model of a run, by its number; of those that fail, the reason."""
    done: dict[int, Result] = {}
    blanks = [_blank(run, parts, model) for model in run.towers]
    earlier = {same_work(one): one for one in known if one.outcomes}
    for i, blank in enumerate(blanks):
        if blank.checkpoint is not None and (same := earlier.get(same_work(blank))):
            done[i] = same
    lacking = [i for i in range(len(blanks)) if i not in done]
    run.lacking = [lacking for _ in parts.every]
    task = parts.test.task.key
    try:
        gathered = [one for _, one in sorted(run.encode_in_turn(), key=lambda found: found[0])]
        for one in gathered:
            one.require_whole()
    except EvaluationDataError as error:
        failures.append(Failure(task, f"linear probe: {error}"))
        return done
    digest = _digest(one.digest for one in gathered)
    for i in lacking:
        model = run.towers[i]
        try:
            fitted, counts = _fit(parts, [one.vectors(i) for one in gathered], run.asked, model.device)
        except EvaluationDataError as error:
            label = f"{model.label}: " if len(run.towers) > 1 else ""
            failures.append(Failure(task, f"linear probe: {label}{error}"))
            continue
        about = {"lp_penalty": fitted.penalty, "lp_iterations": float(fitted.fit.num_iterations)}
        done[i] = replace(
            blanks[i],
            metrics={**fitted.metrics, **about, **counts},
            intervals=fitted.intervals,
            outcomes=fitted.outcomes,
            set_digest=digest,
        )
    return dict(sorted(done.items()))


def _fit(
    parts: Parts, vectors: Sequence[np.ndarray], asked: Asked, device: str
) -> tuple[Probe, Mapping[str, float]]:
    """Probe one model; and how many pictures were in train and validation."""
    scorers: list[Any] = [part.scorer for part in parts.every]
    test, train, *validation = [Part(found, scorer.labels) for found, scorer in zip(vectors, scorers, strict=True)]
    name = "count_validation"
    if not validation:
        name = "count_held_out"
        is_held = hold_out(train.labels, HELD_OUT, np.random.default_rng(asked.seed))
        if not is_held.any():
            raise EvaluationDataError(
                f"{parts.train.set.folder / TRAIN} gives {len(train.labels):,} pictures, of no class "
                f"{round(1 / HELD_OUT)} or more, so that none can be held out to choose the penalty. Put "
                f"a {VALIDATION[0]} split beside it, or raise evaluate.limit if one is set."
            )
        validation = [Part(train.features[is_held], train.labels[is_held])]
        train = Part(train.features[~is_held], train.labels[~is_held])
    num_classes = len(parts.test.set.class_names)
    found = probe(train, validation[0], test, num_classes, seed=asked.seed, device=device)
    sizes = {"count_train": len(train.labels), name: len(validation[0].labels)}
    return found, {key: float(size) for key, size in sizes.items()}


def _blank(run: SuiteRun, parts: Parts, model: Towers) -> Result:
    """A result with all but what is measured; whatever a limit cuts makes it an estimate."""
    is_cut = any(one.scorer.num_samples < one.scorer.num_available for one in parts.every)
    return replace(
        run.blank(parts.test, model, PROTOCOL),
        limit=run.asked.limit if is_cut else None,
        index_digest=_digest(part.digest for part in parts.every),
    )


def _digest(digests: Any) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def print_probes(results: Sequence[Result], label: str = "") -> None:
    """Print the probes of one checkpoint as a table of their own."""
    from evaluation.report.table import Table, aligned

    print(f"\n{label + ': ' if label else ''}linear probe: never in one column with zero-shot numbers")
    print(aligned(Table("", HEADING, [_row(result) for result in results])))
    for result in results:
        if result.metrics["lp_iterations"] == MAX_ITERATIONS:
            print(
                f"{find_task(result.task).name}: L-BFGS was stopped after {MAX_ITERATIONS:,} iterations, "
                "before the optimum"
            )


def _row(result: Result) -> list[str]:
    low, high = result.intervals["lp_acc1"]
    names = ("lp_acc1", "lp_acc5", "lp_mean_per_class_recall")
    first, *others = ["-" if (v := result.metrics[n]) is None else f"{v:.3f}" for n in names]
    counts = {name: f"{value or 0:,.0f}" for name, value in result.metrics.items() if "count_" in name}
    return [
        find_task(result.task).name, first, f"[{low:.3f}, {high:.3f}]", *others,
        f"{result.metrics['lp_penalty']:.2g}",
        f"{result.num_samples:,}" + (f" ({result.part})" if result.part else ""),
        counts["count_train"],
        counts.get("count_validation") or f"{counts['count_held_out']} held out",
    ]  # fmt: skip
