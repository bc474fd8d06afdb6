"""What an evaluation found, as JSON lines with the outcome of every sample beside it.

A file holds one line for each checkpoint, task and protocol; saving a result again replaces its
line. Files are written beside and renamed, so a reader never sees half of one. One writer at a
time.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dbp.engine.disk import replacing
from dbp.errors import WorldError
from evaluation.tasks import departures, load_tasks, register

# What makes two results the same measurement.
IDENTITY = (
    "checkpoint", "model", "config_digest", "samples_seen", "task", "protocol", "precision", "limit", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One task of one checkpoint under one protocol.

    Args:
        task: Key of the task.
        protocol: `corrected` or `datacomp`.
        metrics: In [0, 1]; none where a metric has no value, as acc5 with four classes.
        intervals: 95 % bootstrap interval over test samples, of each metric that has a value.
        num_samples: Pictures that took part.
        limit: What `num_samples` was cut to, if it was; the numbers are then estimates.
        checkpoint: sha256 of the weights file; none for a model that was never saved.
        model: Name of the architecture.
        samples_seen: In training, if known.
        precision: `fp32` or `bf16`.
        versions: Of the libraries that the numbers may depend on.
        set_digest: Of names, templates, labels or captions, and picture bytes.
        seed: Of the bootstrap and of the choice under `limit`.
        config_digest: Of the model's config: the same weights under another are another model.
        index_digest: Of the files that the set lay in, with their times: what a rerun compares before
            it takes a result as done.
        set_counts: Of the whole set that it was measured on, by the names of `evaluation.tasks.FACTS`.
        own_task: The facts of a task of the user, so that tables need no config; none for others.
        outcomes: Per-sample outcomes by name; in memory and beside the file, not in its lines.
    """

    task: str
    protocol: str
    metrics: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]]
    num_samples: int
    limit: int | None
    checkpoint: str | None
    model: str
    samples_seen: int | None
    precision: str
    versions: Mapping[str, str]
    set_digest: str
    seed: int
    config_digest: str = ""
    index_digest: str = ""
    set_counts: Mapping[str, int] = field(default_factory=dict)
    own_task: Mapping[str, Any] | None = None
    outcomes: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def identity(self) -> str:
        """Sixteen hexadecimal digits that name this measurement."""
        values = [getattr(self, name) for name in IDENTITY]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]

    @property
    def departs(self) -> str:
        """Where the set has other numbers than the task, as `2,000 of 10,000 samples`; empty if nowhere."""
        task = load_tasks().get(self.task)
        # Results of earlier versions have no counts; without a limit all samples took part.
        counts = self.set_counts or ({"samples": self.num_samples} if self.limit is None else {})
        return departures(task, counts) if task else ""

    @property
    def part(self) -> str:
        """What sets it apart from a result on the task's whole set, in one clause; empty if nothing does."""
        return ", ".join(filter(None, ["estimate" if self.limit is not None else "", self.departs]))

    def line(self) -> str:
        """Write it as one line of JSON, without the outcomes."""
        left_out = {"outcomes", *(() if self.own_task else ("own_task",))}
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        # A NaN token is not JSON; it is written as null.
        return json.dumps(without_nan(values), allow_nan=False)


def not_whole(results: Iterable[Result]) -> list[str]:
    """The tasks whose sets have other numbers than they, as `CIFAR-10: 2,000 of 10,000 samples`, each once."""
    found = ((load_tasks()[one.task].name, said) for one in results if (said := one.departs))
    return list(dict.fromkeys(f"{name}: {said}" for name, said in found))


@dataclass(frozen=True)
class Failure:
    """A task that gave no result, and why."""

    task: str
    reason: str


def save_results(path: Path, results: Iterable[Result]) -> None:
    """Add results to a file, each in place of an older line of the same identity.

    Raises:
        WorldError: The file exists and is not ours.
    """
    kept = {r.identity: r for r in load_results(path, with_outcomes=False)} if path.exists() else {}
    for result in results:
        if result.outcomes:
            with replacing(outcomes_path(path, result)) as file:
                np.savez_compressed(file, **dict(result.outcomes))  # pyright: ignore
        kept[result.identity] = result
    text = "".join(result.line() + "\n" for result in kept.values())
    with replacing(path) as file:
        file.write(text.encode())


def load_results(path: Path, *, with_outcomes: bool = True) -> list[Result]:
    """Read the results of a file, with their outcomes where those are beside it.

    Raises:
        WorldError: The file is missing, or a line of it is no result.
    """
    results = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise WorldError(f"There is no results file {path}. Evaluate a checkpoint first.") from None
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            intervals = {name: (low, high) for name, (low, high) in values["intervals"].items()}
            result = Result(**(values | {"intervals": intervals}))
            register({result.task: result.own_task} if result.own_task else {}, of_results=True)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WorldError(
                f"Line {number} of {path} is not a result of ours ({error}). Move the file away, "
                "or remove the line and evaluate that task again."
            ) from error
        beside = outcomes_path(path, result)
        if with_outcomes and beside.exists():
            with np.load(beside, allow_pickle=False) as arrays:
                result = replace(result, outcomes=dict(arrays))
        results.append(result)
    return results


def outcomes_path(path: Path, result: Result) -> Path:
    """Name the file that holds the per-sample outcomes of a result."""
    task = result.task.replace("/", "-")
    name = f"{task}-{result.protocol}-{result.identity}.npz"
    return path.with_name(f"{path.stem}.outcomes") / name


def without_nan(value: object) -> object:
    """A value with null in place of every number that JSON cannot write."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
