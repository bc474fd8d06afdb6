"""Evaluated checkpoints by what the user names: a file of results, its folder, or the key of a run of ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dbp.engine.store import Entry, Store
from dbp.errors import ConfigError, StoreError
from evaluation.results import Result, load_results

FILE_NAME = "results.jsonl"


@dataclass(frozen=True)
class Evaluated:
    """One checkpoint's results under one protocol."""

    where: str  # the file or key that the user named
    results: Sequence[Result]  # of one checkpoint
    entry: Entry | None = None  # the evaluation in the store, if a key named it

    def __str__(self) -> str:
        one = self.results[0]
        seen = f", {one.samples_seen:,} samples seen" if one.samples_seen is not None else ""
        return f"{self.where}: checkpoint {(one.checkpoint or 'unsaved')[:12]}, {one.model}{seen}"


def find_checkpoints(store: Store, word: str, protocol: str) -> list[Evaluated]:
    """The checkpoints that a word names, each with its results under a protocol.

    Raises:
        ConfigError: The word is no file and no key of an evaluation, or nothing has that protocol.
        WorldError: The file is no results file.
    """
    entry, path = None, Path(word)
    if path.is_dir():
        path = path / FILE_NAME
    elif not path.is_file() and path.suffix != ".jsonl":
        entry = find_evaluation(store, word)
        path = entry.folder / FILE_NAME
    results = load_results(path)
    by_checkpoint: dict[tuple, list[Result]] = {}
    for result in (one for one in results if one.protocol == protocol):
        identity = (result.checkpoint, result.model, result.config_digest, result.samples_seen)
        by_checkpoint.setdefault(identity, []).append(result)
    if not by_checkpoint:
        there = ", ".join(sorted({one.protocol for one in results})) or "none"
        raise ConfigError(
            f"{word} has no result under protocol={protocol}; it has: {there}. "
            "Choose another protocol, or evaluate again."
        )
    return [Evaluated(word, found, entry) for found in by_checkpoint.values()]


def find_evaluation(store: Store, key: str) -> Entry:
    """The evaluation that a key names, of itself or of the run that was evaluated.

    Raises:
        ConfigError: The key names something else, or a run with no or several evaluations.
        StoreError: No artifact, or several, have this key.
    """
    try:
        entry = store.find(key)
    except StoreError as error:
        raise ConfigError(
            f"{key} is neither a results file, nor a folder with {FILE_NAME}, nor a key: {error}"
        ) from error
    if entry.stage == "evaluate":
        return entry
    own = [
        one
        for one in store.entries()
        if one.stage == "evaluate" and entry.key in (above["key"] for above in one.manifest["inputs"].values())
    ]
    if len(own) != 1:
        keys = ", ".join(one.key for one in own) or "none"
        raise ConfigError(
            f"{key} is the artifact of stage {entry.stage}, with {len(own)} evaluations in the store "
            f"({keys}). Give the key of an evaluation; `dbp ls stage=evaluate` lists them."
        )
    return own[0]
