"""What a job of a sweep will take by earlier runs of the same store, against the time that it is given.

A job that meets its limit goes back into the queue and goes on, so this is told and stops nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from dbp.engine.stage import Node, parameters
from dbp.engine.store import Store
from dbp.planning.amounts import seconds_text
from dbp.planning.outlook import Outlook
from evaluation.report.ledger import item_of
from slurm.cluster.launcher import Launcher
from slurm.plan import Point

ALIKE = ("model", "batch_size", "precision", "online")  # of trainings that take as long for a sample


def limit_notes(store: Store, points: Sequence[Point], launcher: Launcher) -> Iterator[str]:
    """The roles whose longest job takes longer than its limit; what has no earlier run is not counted."""
    outlook = Outlook(store)
    below = [node for point in points for node in point.nodes["select"].lineage()]
    shared = sum(_seconds_of_stage(outlook, node) for node in dict.fromkeys(below))
    arm = max((_seconds_of_training(outlook, point.nodes["train"]) for point in points), default=0.0)
    for role, seconds in (("shared", shared), ("arm", arm)):
        minutes = launcher.resources(role).minutes
        if seconds > 60 * minutes:
            yield (
                f"by earlier runs a job of role {role} takes {seconds_text(seconds)}, and launcher.{role}.minutes="
                f"{minutes} gives it {seconds_text(60.0 * minutes)}. It then goes back into the queue and on; "
                f"raise launcher.{role}.minutes to have it done at once."
            )


def _seconds_of_stage(outlook: Outlook, node: Node) -> float:
    """Of a stage that is to be built, by the seconds of a row in an earlier run of the same settings."""
    if outlook.store.entry(node) is not None or (found := outlook.experience(node)) is None:
        return 0.0
    sizes = outlook.sizes(node)
    return 0.0 if sizes is None else float(found[0]) * sizes.rows


def _seconds_of_training(outlook: Outlook, node: Node) -> float:
    """Of a training that is to be done, by the seconds of a sample in the longest earlier one of the same model."""
    stage: Any = node.stage
    if outlook.store.entry(node) is not None or not (samples := getattr(stage, "samples_seen", None)):
        return 0.0
    ours = parameters(stage)
    found = [
        (seen, item_of(made).seconds / seen)
        for entry in outlook.entries
        if (made := entry.manifest)["stage"] == stage.name
        and (seen := made["counts"].get("samples_seen"))
        and all(made["parameters"].get(name) == ours.get(name) for name in ALIKE)
    ]
    return samples * max(found)[1] if found else 0.0
