"""What a run says about itself, keyed by samples seen: JSON lines are the truth, the rest mirrors.

A resumed run cuts the file back to its checkpoint, so that no sample is counted twice.
"""

import csv
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from dbp.errors import MissingError

METRICS = "metrics.jsonl"
Row = dict[str, Any]
Write = Callable[[Row], None]


def read_metrics(path: Path, until: int | None = None) -> list[Row]:
    """The rows of a metrics file, up to a number of samples seen; a torn last line is left out."""
    rows: list[Row] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if until is None or row["samples_seen"] <= until:
            rows.append(row)
    return rows


@contextmanager
def metrics_file(path: Path, past: list[Row]) -> Iterator[Write]:
    """Append rows to a file that begins with what an earlier try left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside and renamed: a kill or a full disk here leaves the rows of the earlier try.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "w") as handle:

            def write(row: Row) -> None:
                handle.write(json.dumps(row) + "\n")
                handle.flush()

            for row in past:
                write(row)
            beside.rename(path)  # the open handle goes on writing to it
            yield write
    finally:
        beside.unlink(missing_ok=True)


@dataclass(frozen=True)
class Logger(ABC):
    """A mirror of the metrics for people and their tools."""

    @abstractmethod
    def open(
        self, folder: Path, key: str, settings: dict[str, Any], past: list[Row]
    ) -> AbstractContextManager[Write]:
        """Begin or go on with the record of a run.

        Args:
            folder: What is written here becomes part of the run's artifact.
            key: The run's key; a resumed run has the same one.
            past: Rows written before a resume.
        """


@dataclass(frozen=True)
class Csv(Logger):
    """`metrics.csv` beside the checkpoint."""

    @contextmanager
    def open(self, folder: Path, key: str, settings: dict[str, Any], past: list[Row]) -> Iterator[Write]:
        with open(folder / "metrics.csv", "w", newline="") as handle:
            rows: list[Row] = []
            names: list[str] = []

            def write(row: Row) -> None:
                rows.append(row)
                new = [name for name in row if name not in names]
                names.extend(new)
                writer = csv.DictWriter(handle, names)
                if new:  # rows of another kind, or of an older version: the table becomes wider
                    handle.seek(0)
                    handle.truncate()
                    writer.writeheader()
                writer.writerows(rows if new else [row])
                handle.flush()

            for row in past:
                write(row)
            yield write


@dataclass(frozen=True)
class Wandb(Logger):
    """Weights & Biases, also without a network (`wandb sync` sends it later)."""

    project: str  # wandb's project
    mode: Literal["online", "offline", "disabled"]  # `offline` writes files only, below the run's folder
    entity: str | None = None  # wandb's team; null for the user's own
    group: str | None = None  # name of the experiment, to gather its arms

    def lacks(self, inputs: Any) -> Iterator[MissingError]:
        """The package, if it is not installed."""
        if find_spec("wandb") is None:
            yield MissingError("package wandb, which logger=wandb needs", "Install it, or set logger=files.")

    @contextmanager
    def open(self, folder: Path, key: str, settings: dict[str, Any], past: list[Row]) -> Iterator[Write]:
        with self.session(folder, key, config=settings) as run:
            run.define_metric("*", step_metric="samples_seen")
            # A record that is resumed over a network has what an earlier try sent. One without a network
            # is a folder of its own, and that of the earlier try went with its process.
            for row in past:
                if row["step"] >= run.step:
                    run.log(row, step=row["step"])
            yield lambda row: run.log(row, step=row["step"])

    @contextmanager
    def session(self, folder: Path, key: str, **given: Any) -> Iterator[Any]:
        """Begin or go on with a record while the block runs.

        Args:
            key: The record's id. That of a run is the run's key, so a requeued job, and what is sent after
                the run, go on in the same record; wandb drops steps that it has seen.
        """
        import wandb

        # A child shares its parent's service, where a child that was killed leaves its run open: the next
        # try would be refused the id. So each process has its own.
        os.environ.pop("WANDB_SERVICE", None)
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group,
            mode=self.mode,
            id=key,
            resume="allow",
            dir=folder,
            settings=wandb.Settings(silent=True, console="off"),
            **given,
        )
        failed = 1
        try:
            yield run
            failed = 0
        finally:
            run.finish(exit_code=failed)
            if self.mode == "offline":
                # On a busy machine the service writes the file's end later; a manifest tells its size.
                wandb.teardown()
