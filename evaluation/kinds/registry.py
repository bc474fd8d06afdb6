"""The kinds of tasks by name. A new kind is one module with a `Kind`, and its name here or its path in a YAML."""

import importlib
from pathlib import Path

from dbp.errors import ConfigError, nearest
from evaluation.kinds.base import Kind
from evaluation.kinds.caption_choice import CaptionChoice
from evaluation.kinds.classification import Classification
from evaluation.kinds.fairness import DollarStreet, Faces, GeoDE
from evaluation.kinds.multilabel import MultiLabel
from evaluation.kinds.retrieval import Retrieval
from evaluation.kinds.wilds import Camelyon17, FMoW, IWildCam
from evaluation.kinds.winogavil import Winogavil
from evaluation.sets.built import open_built
from evaluation.sets.data import EvaluationSet, open_set
from evaluation.tasks import Task

KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (
        Classification, Retrieval, Winogavil, MultiLabel, IWildCam, Camelyon17, FMoW, DollarStreet, GeoDE, Faces,
        CaptionChoice,
    )
}  # fmt: skip


def open_task(task: Task, folder: Path) -> EvaluationSet:
    """The set of a task in a folder, as `find_set` gives it.

    Raises:
        ConfigError: clip_benchmark has no such language or split, or is not installed.
        EvaluationDataError: It is damaged, or of another kind.
    """
    if task.is_built and task.built is not None:
        return open_built(folder, task.built, task.kind)
    if task.split != "test" and task.hub is None:
        return open_set(folder, kind=task.kind, split=task.split, **task.given)
    return find_kind(task.kind).open(folder, **task.given)


def find_kind(name: str, setting: str = "kind") -> type[Kind]:
    """A kind by its name, or by the dotted path of a class of the user.

    Raises:
        ConfigError: There is no such kind.
    """
    if name in KINDS:
        return KINDS[name]
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{setting}={name!r}: {nearest(name, KINDS)} Or the dotted path of a Kind ({error})."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Kind)):
        raise ConfigError(f"{setting}={name!r} is not a Kind (evaluation/kinds/base.py).")
    return found
