"""What a finished run leaves, sent to Weights & Biases: keep list and checkpoint, with their lineage.

It is taken from manifests after the run, so it is the same whichever process ended the run, and a run that was
finished before is published, too. The record is that of the run: its id is the run's key. What has been
published is marked below `paths.runs`, so that a second sweep sends nothing twice.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dbp.engine.disk import replace_json
from dbp.engine.stage import Node
from dbp.engine.store import Entry, Store
from dbp.lineage import lineage
from training.account.metrics import Wandb

OF_CHECKPOINT = ("weights.pt", "open_clip_config.json", "manifest.json")
TOLD = ("key", "stage", "parameters", "counts", "digest", "seconds", "commit", "versions", "created")


def recorders(loggers: Sequence[Any]) -> list[Wandb]:
    """The loggers of a run that send something."""
    return [one for one in loggers if isinstance(one, Wandb) and one.mode != "disabled"]


def publish_run(store: Store, node: Node) -> None:
    """Send the keep list and the checkpoint of a finished training, for each wandb logger that it has."""
    stage: Any = node.stage
    entry = store.entry(node)
    if entry is None:
        return
    for logger in recorders(stage.loggers):
        with once(store.runs, logger, f"run-{entry.key}") as is_new:
            if is_new:
                _send(store, entry, logger)


def _send(store: Store, entry: Entry, logger: Wandb) -> None:
    made = lineage(store, entry)
    keep = next((e for e in made if e.key == entry.manifest["inputs"]["keep"]["key"]), None)
    with logger.session(store.runs, entry.key) as run:
        run.config.update({"lineage": keys_of(made)}, allow_val_change=True)
        if keep is not None:
            files = sorted(path for path in keep.folder.iterdir() if path.is_file())
            chosen = artifact(f"keep-list-{keep.key}", "keep-list", keep, lineage(store, keep), files)
            # Without a network an artifact can be written, and not be marked as used: its key stands in the
            # metadata of what rests on it.
            (run.log_artifact if run.offline else run.use_artifact)(chosen)
        files = [entry.folder / name for name in OF_CHECKPOINT]
        run.log_artifact(artifact(f"checkpoint-{entry.key}", "model", entry, made, files))


def artifact(name: str, kind: str, entry: Entry, made: Sequence[Entry], files: Sequence[Path]) -> Any:
    """An artifact of ours as wandb's, with what it rests on."""
    import wandb

    told = {name: entry.manifest.get(name) for name in TOLD} | {"lineage": keys_of(made)}
    found = wandb.Artifact(name, type=kind, metadata=told)
    for file in files:
        found.add_file(str(file), policy="immutable", skip_cache=True)
    return found


def keys_of(made: Sequence[Entry]) -> list[dict[str, str]]:
    """Stage and key of each, inputs first."""
    return [{"stage": entry.stage, "key": entry.key} for entry in made]


@contextmanager
def once(runs: Path, logger: Wandb, name: str, digest: str = "") -> Iterator[bool]:
    """Say whether something is still to be sent, and remember it once the block has ended well."""
    mark = runs / "wandb" / "published" / f"{logger.project}-{logger.mode}" / f"{name}.json"
    sent = {"name": name, "digest": digest}
    is_new = not mark.exists() or json.loads(mark.read_text()) != sent
    yield is_new
    if is_new:
        replace_json(mark, sent)
