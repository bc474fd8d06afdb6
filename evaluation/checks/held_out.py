"""Samples of evaluation sets that were made from a pool: whether rows that train are among them.

`dbp sets` writes beside each set the uids of its samples. With a pool, its rows of these uids are found exactly, by
hash and then by name; nothing is decoded or encoded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Int

from dbp.data.pool import Pool
from dbp.engine.stage import rebuild
from dbp.engine.store import Store
from dbp.errors import ConfigError, StoreError
from dbp.formats.exchange import read_texts
from dbp.formats.uid_pairs import Names
from dbp.lineage import open_keep_list, open_pool_of
from evaluation.checks.near_copies import column_of, find_run, trained_rows
from evaluation.sets.drawn import UIDS_FILE
from evaluation.sets.folders import find_set
from evaluation.sets.tar_index import EvaluationDataError
from evaluation.tasks import Task, is_own

BLOCK = 1 << 20  # rows looked at together


def uid_files(tasks: Sequence[Task], root: Path) -> dict[str, Path]:
    """The lists of uids of the sets that were made from a pool, by the key of the task."""
    found = {}
    for task in filter(is_own, tasks):
        try:
            found[task.key] = find_set(root, task) / UIDS_FILE
        except EvaluationDataError:
            continue  # the evaluation says what is wrong with it
    return {key: file for key, file in found.items() if file.is_file()}


def rows_of(pool: Pool, file: Path, among: Bool[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """The rows, of some, whose uids are in a list; ascending."""
    names = Names.of(read_texts(file))
    found = [np.zeros(0, np.int64)]
    for start in range(0, pool.num_rows, BLOCK):
        block = np.flatnonzero(among[start : start + BLOCK]) + start
        found.append(block[names.find(pool.uid_hashes[block], pool.index.at("uid", block)) >= 0])
    return np.concatenate(found)


def require_held_out(pool: Pool, left: Bool[np.ndarray, " n"], files: Mapping[str, Path], said: str | None) -> None:
    """Refuse to train on samples of evaluation sets.

    Args:
        pool: What arms select from.
        left: The rows that they may select.
        files: As `uid_files` gives them.
        said: The setting `hold_out`.

    Raises:
        ConfigError: A sample of a set is among these rows.
    """
    for key, file in files.items():
        if count := len(rows_of(pool, file, left)):
            raise ConfigError(
                f"hold_out={said or 'null'}: {count:,} of the {_length(file):,} samples of the task {key} are rows "
                "of this pool that arms could train on. Give hold_out=FILE, the held_out.parquet that dbp sets "
                "wrote, or leave the task out."
            )


def warnings(store: Store, named: Sequence[str], tasks: Sequence[Task], root: Path) -> list[str]:
    """A line for each checkpoint and task where the run was trained on samples of the set.

    Checkpoints that are not of our runs, and runs whose keep list or index is gone, cannot be told.
    """
    files, lines = uid_files(tasks, root), list[str]()
    for name in named if files else ():
        try:
            run = find_run(store, name)
            _, keep = open_keep_list(store, run.manifest["inputs"]["keep"]["key"])
            pool, column = open_pool_of(store, run), column_of(store, run)
        except (ConfigError, StoreError):
            continue
        trained = trained_rows(rebuild(run.manifest["made_by"]), pool, keep, column)
        for key, file in files.items():
            if count := len(rows_of(pool, file, trained)):
                lines.append(
                    f"warning: run {run.key[:12]} was trained on {count:,} of the {_length(file):,} samples of "
                    f"{key}. Its result there is not one on unseen samples; train again with hold_out=FILE."
                )
    return lines


def _length(file: Path) -> int:
    return pq.read_metadata(file).num_rows
