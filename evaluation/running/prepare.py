"""From the tasks of a suite to sets that are indexed and annotations that are read.

Everything wrong with a set's files stops its task here, before the first picture is decoded.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dbp.errors import ConfigError
from evaluation.kinds.base import Kind
from evaluation.kinds.registry import find_kind, open_task
from evaluation.metrics import zero_shot
from evaluation.results import Failure
from evaluation.sets.data import EvaluationSet
from evaluation.sets.folders import find_set
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.tasks import Task, is_own

# Of what is computed from a set's vectors: raise it when a number may change.
VERSION = 2


@dataclass(frozen=True)
class Asked:
    """What is measured, apart from models and sets.

    Args:
        protocols: `corrected`, `datacomp`, or both, from the same vectors.
        seed: Of the bootstrap, and of the choice of samples under `limit`.
        limit: Take so many samples of each task, chosen at random, for an estimate.
        max_templates: Take so many prompts of each class, for a rehearsal; only with `limit`, which
            marks the results as estimates.

    Raises:
        ConfigError: An unknown protocol, or a limit below 1.
    """

    protocols: Sequence[str] = zero_shot.PROTOCOLS
    seed: int = 0
    limit: int | None = None
    max_templates: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit} leaves no sample. Give 1 or more, or none for all.")
        if self.max_templates is not None and (self.max_templates < 1 or self.limit is None):
            raise ConfigError(
                f"max_templates={self.max_templates} is for rehearsals: give 1 or more, and a limit "
                "beside it, or none for all prompts."
            )
        for protocol in self.protocols:
            zero_shot.check_protocol(protocol)


@dataclass(frozen=True)
class Prepared:
    """A task whose set is indexed and whose annotations are read.

    `digest` is of the index: names, annotations, and where each picture lies in which files.
    """

    task: Task
    set: EvaluationSet
    scorer: Kind
    digest: str

    @property
    def name(self) -> str:
        """Of the chosen pictures, for what is kept of them."""
        chosen = hashlib.sha256(np.asarray(self.scorer.rows, np.int64).tobytes()).hexdigest()[:16]
        rows = "all" if len(self.scorer.rows) == len(self.set) else chosen
        return f"{self.task.key.replace('/', '-')}-{self.digest[:16]}-{rows}"

    @property
    def counts(self) -> dict[str, int]:
        """Of the whole set, by the names of `evaluation.tasks.FACTS`."""
        return counts_of(self.set.class_names, self.set.templates) | {"samples": self.scorer.num_available}

    def texts(self) -> list[str]:
        """What is encoded for it, under any protocol."""
        return [text for name in zero_shot.PROTOCOLS for text in self.scorer.texts(name)]


def prepare(tasks: Sequence[Task], root: Path, asked: Asked, failures: list[Failure]) -> list[Prepared]:
    """Index the sets of tasks under a root and read their annotations; what cannot be used goes to `failures`."""
    found: list[Prepared] = []
    for task in tasks:
        try:
            found.append(_ready(task, root, asked))
        except EvaluationDataError as error:
            failures.append(Failure(task.key, str(error)))
    return found


def counts_of(class_names: Sequence[str], templates: Sequence[str]) -> dict[str, int]:
    """The numbers of both text files, by the names of `evaluation.tasks.FACTS`; a set without them has none."""
    counts = {"class names": len(class_names), "templates": len(templates)}
    return {what: count for what, count in counts.items() if count}


def _ready(task: Task, root: Path, asked: Asked) -> Prepared:
    kind = find_kind(task.kind)
    opened = open_task(task, find_set(root, task))
    scorer = kind(opened, limit=asked.limit, seed=asked.seed, max_templates=asked.max_templates)
    ready = Prepared(task, opened, scorer, index_digest(opened, asked.max_templates, task.version))
    ready.texts()  # a template that takes no name stops the task here
    return ready


def _check_names(task: Task, opened: EvaluationSet) -> None:
    """Refuse a set of the user whose names or templates are not as its YAML file describes them."""
    if opened.class_names and task.num_classes not in (None, len(opened.class_names)):
        raise EvaluationDataError(
            f"num_classes={task.num_classes:,} in the YAML file of the task, and the set in {opened.folder} has "
            f"{len(opened.class_names):,} class names. Correct the file, or write the set again."
        )
    if without := [text for text in opened.templates if "{c}" not in text]:
        raise EvaluationDataError(
            f"the template {without[0]!r} of the set in {opened.folder} has no {{c}} where the name of the class "
            "goes. Correct it."
        )


def check_own(tasks: Sequence[Task], root: Path | None) -> None:
    """Refuse sets of the user that cannot be evaluated, before anything is trained or encoded for them.

    Args:
        tasks: Of a suite; those of the user are checked.
        root: Folder that holds the sets; none where it is rendered later.

    Raises:
        ConfigError: A set is missing, damaged, or not as its YAML file describes it.
    """
    for task in filter(is_own, tasks):
        if root is None and not Path(task.folder).is_absolute():
            raise ConfigError(
                f"tasks.{task.key}.folder={task.folder!r} lies under root, and root=glyphs holds the glyphs' sets "
                "alone. Give an absolute folder, or the root of your sets."
            )
        try:
            _check_names(task, _ready(task, root or Path(), Asked()).set)
        except EvaluationDataError as error:
            raise ConfigError(f"tasks.{task.key}: {error}") from error


def index_digest(evaluation_set: EvaluationSet, max_templates: int | None = None, version: int = 1) -> str:
    """Hash where each picture lies in which files, their sizes and times, and all annotations.

    What is kept of a set is found by this; it reads no picture. Moving a folder changes nothing.
    """
    digest = hashlib.sha256(repr((VERSION, max_templates, *([] if version == 1 else [version]))).encode())
    for lines in (evaluation_set.class_names, evaluation_set.templates):
        digest.update(repr(lines).encode())
    for shard in evaluation_set.shards:
        stat = shard.stat()
        digest.update(repr((shard.name, stat.st_size, stat.st_mtime_ns)).encode())
    digest.update(repr(evaluation_set.instances).encode())
    if evaluation_set.choices:
        digest.update(repr(evaluation_set.choices).encode())
    for sample in evaluation_set.samples:
        digest.update(repr(sample).encode())
    return digest.hexdigest()
