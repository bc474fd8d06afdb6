"""What `dbp evaluate` needs before it begins: weights, and sets of the tasks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dbp.config import build
from dbp.encoders.weights import openclip_lacks
from dbp.engine.store import Store
from dbp.errors import ConfigError, DbpError
from dbp.planning.preflight import missing, refuse
from evaluation.sets.at_hand import sets_lack
from evaluation.stage import Sets, sets_node
from evaluation.tasks import Task
from training.config import Model


def require_at_hand(config: Any, store: Store, tasks: Sequence[Task], exports: bool) -> None:
    """Stop if weights, or the sets of all tasks, are not at hand; print what else is not right.

    Args:
        config: Of `dbp evaluate`.
        store: Holds the sets that are rendered.
        tasks: Those that are evaluated; one whose set is not at hand fails, and the others are evaluated.
        exports: Whether results are written for other tools, which take the tasks' own sets alone.

    Raises:
        DbpError: All that is missing.
    """
    found: list[DbpError] = []
    try:
        node = sets_node(config)
        found += missing(store, [node])[0]
        said = list(sets_lack(tasks, Path(node.stage.root))) if isinstance(node.stage, Sets) and not found else []
    except ConfigError as error:  # no folder is named
        found.append(error)
        said = []
    gone = [one for one in said if isinstance(one, DbpError)]
    found += gone if len(gone) == len(tasks) else []
    for note in [] if found else said:
        if exports and isinstance(note, str):
            found.append(ConfigError(f"{note}. Fetch it again, leave it out of suite, or leave export.… out."))
        else:
            print(f"note: {note}")
    model: Model = build(config.model, Model, "model")
    pretrained = config.pretrained if config.checkpoint is None else None
    refuse([*found, *openclip_lacks(model.name, pretrained, model.described())])
