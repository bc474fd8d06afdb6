"""What can be known of a set before it is read: whether it is there, whole as its files say, and the task's own.

A tar costs one read of its first block here. Samples are counted when the set is read.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dbp.errors import MissingError
from dbp.formats.tar_headers import Damaged, Other, spans
from evaluation.kinds.base import Kind
from evaluation.kinds.registry import find_kind
from evaluation.sets.built import check_language
from evaluation.sets.data import NAMES_FILE, TEMPLATES_FILE, num_shards, read_lines
from evaluation.sets.folders import find_set, places, shown
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.tasks import Task, departures

WAY_OUT = (
    "Fetch sets that are missing or damaged, set root to the folder that holds them, or take them out of suite."
)


def sets_lack(tasks: Sequence[Task], root: Path) -> Iterator[MissingError | str]:
    """The sets of tasks that are not at hand; and those that are not the tasks' own, as a text."""
    for task in tasks:
        if problem := set_problem(task, root):
            yield MissingError(f"set of {task.name} ({task.key}): {problem.rstrip('.')}", WAY_OUT)
        elif said := set_departures(task, root):
            yield f"the set of {task.name} in {root} has {said}; its results are marked, and not exported"


def set_problem(task: Task, root: Path) -> str:
    """Why the set of a task cannot be evaluated, as far as that is known before it is read; empty if it may be.

    Raises:
        ConfigError: clip_benchmark has no such language of a data set of its own.
    """
    if task.is_built and task.built is not None:
        check_language(task.built)
        try:
            find_set(root, task)
        except EvaluationDataError as error:
            return str(error)
        return ""
    if not any(place.is_dir() for place in places(root, task)):
        return f"none of the folders {', '.join(shown(root, task))} is in {root}"
    try:
        folder = find_set(root, task)
        if _is_tars(task, folder):
            _check_tars(folder / task.split)
        _names_and_templates(task, folder)
    except (EvaluationDataError, OSError) as error:
        return str(error)
    return ""


def set_departures(task: Task, root: Path) -> str:
    """Where names, templates and tars of a set that is there are not the task's, in one clause; empty if nowhere.

    Tars that `nshards.txt` does not count are no part of the set, so that it may be a part of the task's.
    """
    found: list[str] = []
    if task.is_built:
        return ""
    try:
        folder = find_set(root, task)
        if _has_names(task):
            names, templates = _names_and_templates(task, folder)
            counts = {"class names": len(names), "templates": len(templates)}
            found += filter(None, [departures(task, counts)])
        if _is_tars(task, folder):
            counted, beside = num_shards(folder / task.split), len(list((folder / task.split).glob("[!.]*.tar")))
            found += [f"{counted} of {beside} tars in nshards.txt"] if counted < beside else []
    except (EvaluationDataError, OSError):
        return ""
    return ", ".join(found)


def _is_tars(task: Task, folder: Path) -> bool:
    """Whether a set must lie in tars: kinds that open other layouts, too, may have none."""
    is_plain = find_kind(task.kind).open.__func__ is Kind.open.__func__  # type: ignore[attr-defined]
    return is_plain or (folder / task.split / "nshards.txt").is_file()


def _has_names(task: Task) -> bool:
    return find_kind(task.kind).open.__func__ is Kind.open.__func__  # type: ignore[attr-defined]


def _names_and_templates(task: Task, folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the task's YAML file, else of the folder; of kinds that have none, none."""
    if not _has_names(task):
        return (), ()
    names, templates = task.class_names, task.templates
    return names or read_lines(folder / NAMES_FILE), templates or read_lines(folder / TEMPLATES_FILE)


def _check_tars(folder: Path) -> None:
    """Refuse tars that are not there, not tars, or damaged in their first header."""
    tars = [folder / f"{number}.tar" for number in range(num_shards(folder))]
    gone = [tar for tar in tars if not tar.is_file()]
    if gone:
        raise EvaluationDataError(f"{len(gone)} of {len(tars)} tars are missing, such as {gone[0]}")
    for tar in tars:
        handle = os.open(tar, os.O_RDONLY)
        try:
            next(spans(handle), None)
        except Damaged as error:
            kind = "is not a tar" if isinstance(error, Other) else "cannot be read as a tar"
            raise EvaluationDataError(f"{tar} {kind}: {error}") from error
        finally:
            os.close(handle)
