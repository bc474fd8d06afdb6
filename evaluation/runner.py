"""Run tasks on models: read a set, encode it once, score it under each protocol."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dbp.errors import ConfigError, WorldError
from evaluation import retrieval, zero_shot
from evaluation.data import EvaluationSet, open_set, set_digest
from evaluation.encode import Towers, encode_pictures
from evaluation.measures import metric_intervals
from evaluation.results import Failure, Result
from evaluation.suites import resolve_suite
from evaluation.tar_index import EvaluationDataError
from evaluation.tasks import Task

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")

# The outcomes and metrics that one model's vectors of the chosen pictures give under a protocol.
Score = Callable[
    [Towers, Float[np.ndarray, "n d"], str], tuple[dict[str, np.ndarray], dict[str, float | None]]
]
# Runs before any picture is decoded, so that a wrong label stops at once.
Prepare = Callable[[EvaluationSet, list[int]], Score]

# As `dbp.progress.progress`: from (what, total, unit) to a block that shows its `advance` calls.
ShowProgress = Callable[[str, int, str], AbstractContextManager[Any]]


def evaluate_checkpoint(
    model: Any,
    preprocess: Callable[[Any], Any],
    tokenizer: Callable[[list[str]], Any],
    suite: str | Sequence[str],
    root: str | Path,
    *,
    device: str = "cpu",
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    limit: int | None = None,
    max_templates: int | None = None,
    progress: ShowProgress | None = None,
    precision: str = "fp32",
    protocols: Sequence[str] = ("corrected",),
    model_name: str = "",
    checkpoint: str | None = None,
    samples_seen: int | None = None,
    failures: list[Failure] | None = None,
    on_results: Callable[[list[Result]], object] = lambda results: None,
) -> list[Result]:
    """Evaluate one model on every task of a suite; a failed task does not stop the others.

    Args:
        model: An open_clip model; moved to the device, left in the mode that it came in.
        preprocess: The checkpoint's own, for evaluation.
        tokenizer: The checkpoint's own.
        suite: As `suites.resolve_suite` takes it.
        root: Folder that holds the sets, one folder each.
        device: As torch names it.
        batch_size: Pictures at a time. Runtime.
        num_workers: Processes that decode. Runtime.
        seed: Of the bootstrap, and of the choice of samples under `limit`.
        limit: Take so many samples of each task, chosen by chance, for an estimate.
        max_templates: Take so many prompts of each class, for a rehearsal; only with `limit`, which
            marks the results as estimates.
        progress: Shows the pictures of each task, as `dbp.progress.progress` does.
        precision: `fp32` or `bf16`.
        protocols: `corrected`, `datacomp`, or both from one pass.
        model_name: Name of the architecture, for the record.
        checkpoint: sha256 of the weights file, for the record.
        samples_seen: In training, for the record.
        failures: Filled with the tasks that failed.
        on_results: Called with the results of each task as it ends.

    Raises:
        ConfigError: An unknown suite, task, protocol or precision, or a limit below 1.
        WorldError: Tasks failed and no `failures` was given; after the others have ended.
    """
    tasks = resolve_suite(suite)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} leaves no sample. Give 1 or more, or none for all.")
    if max_templates is not None and (max_templates < 1 or limit is None):
        raise ConfigError(
            f"max_templates={max_templates} is for rehearsals: give 1 or more, and a limit beside it, "
            "or none for all prompts."
        )
    for protocol in protocols:
        zero_shot.check_protocol(protocol)
    towers = Towers(
        model.to(device), preprocess, tokenizer, model_name, checkpoint, samples_seen,
        device, precision, batch_size, num_workers=num_workers,
    )  # fmt: skip
    results: list[Result] = []
    failed = [] if failures is None else failures
    for task in tasks:
        try:
            found = run_task(
                [towers], task, Path(root), protocols=protocols, seed=seed, limit=limit,
                max_templates=max_templates, progress=progress,
            )  # fmt: skip
        except EvaluationDataError as error:
            failed.append(Failure(task.key, str(error)))
            continue
        on_results(found)
        results += found
    if failures is None and failed:
        reasons = "\n".join(f"  {failure.task}: {failure.reason}" for failure in failed)
        raise WorldError(f"{len(failed)} of {len(tasks)} tasks failed:\n{reasons}")
    return results


def run_task(
    towers: Sequence[Towers],
    task: Task,
    root: Path,
    *,
    protocols: Sequence[str],
    seed: int,
    limit: int | None = None,
    max_templates: int | None = None,
    progress: ShowProgress | None = None,
) -> list[Result]:
    """Evaluate models on one task, each picture decoded once for all of them.

    Args:
        towers: Models of one resolution and preprocess.
        task: What to evaluate.
        root: Folder of the sets.
        protocols: All from the same vectors.
        seed: Of the bootstrap, and of the choice of samples under `limit`.
        limit: Take only so many samples, chosen by chance; the numbers are then estimates.
        max_templates: Take only the first prompts of each class.
        progress: Shows how many pictures are done.

    Returns:
        One result for each model and protocol.

    Raises:
        EvaluationDataError: The set is missing or damaged, or the kind has no scorer yet.
    """
    if task.kind not in PREPARE:
        raise EvaluationDataError(
            f"Tasks of kind {task.kind} cannot be scored yet, only {', '.join(PREPARE)}. "
            f"Leave {task.key} out of the suite."
        )
    evaluation_set = open_set(root / task.folder, kind=task.kind)
    if max_templates is not None:
        evaluation_set = replace(evaluation_set, templates=evaluation_set.templates[:max_templates])
    rows = choose_rows(len(evaluation_set), limit, seed)
    score = PREPARE[task.kind](evaluation_set, rows)
    with nullcontext() if progress is None else progress(task.name, len(rows), "pictures") as bar:
        advance = bar.advance if bar is not None else lambda count: None
        encoded = encode_pictures(towers, evaluation_set, rows, advance)
    digest = set_digest(evaluation_set, rows, encoded.digests)
    results = []
    for model, features in zip(towers, encoded.features, strict=True):
        for protocol in protocols:
            outcomes, metrics = score(model, features, protocol)
            results.append(
                Result(
                    task=task.key,
                    protocol=protocol,
                    metrics=metrics,
                    intervals=metric_intervals(task, metrics, outcomes, seed=seed),
                    num_samples=len(rows),
                    limit=limit if len(rows) < len(evaluation_set) else None,
                    checkpoint=model.digest,
                    model=model.name,
                    samples_seen=model.samples_seen,
                    precision=model.precision,
                    versions=library_versions(),
                    set_digest=digest,
                    seed=seed,
                    outcomes=outcomes,
                )
            )
    return results


def choose_rows(num_rows: int, limit: int | None, seed: int) -> list[int]:
    """Choose `limit` rows by chance, in order; all of them without a limit.

    Chance, since sets are often sorted by class.
    """
    if limit is None or limit >= num_rows:
        return list(range(num_rows))
    generator = np.random.default_rng(seed)
    return sorted(generator.choice(num_rows, limit, replace=False).tolist())


def library_versions() -> dict[str, str]:
    """List the versions of the libraries that the numbers may depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _classification(evaluation_set: EvaluationSet, rows: list[int]) -> Score:
    labels = evaluation_set.labels()[rows]

    def score(
        towers: Towers, features: Float[np.ndarray, "n d"], protocol: str
    ) -> tuple[dict[str, np.ndarray], dict[str, float | None]]:
        names = zero_shot.kept_lines(evaluation_set.class_names, protocol)
        templates = zero_shot.kept_lines(evaluation_set.templates, protocol)
        classifier = zero_shot.build_classifier(names, templates, towers.encode_texts)
        logits = zero_shot.compute_logits(features, classifier)
        outcomes = zero_shot.outcomes(logits, labels, protocol)
        return outcomes, zero_shot.metrics(outcomes, len(names))

    return score


def _retrieval(evaluation_set: EvaluationSet, rows: list[int]) -> Score:
    captions = evaluation_set.captions()
    texts = [text for row in rows for text in captions[row]]
    owner = np.repeat(np.arange(len(rows)), [len(captions[row]) for row in rows])

    def score(
        towers: Towers, features: Float[np.ndarray, "n d"], protocol: str
    ) -> tuple[dict[str, np.ndarray], dict[str, float | None]]:
        zero_shot.check_protocol(protocol)
        outcomes = retrieval.outcomes(features, towers.encode_texts(texts), owner)
        return outcomes, retrieval.metrics(outcomes)

    return score


PREPARE: dict[str, Prepare] = {"classification": _classification, "retrieval": _retrieval}
