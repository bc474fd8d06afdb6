"""The checkpoints that a run resumes from: whole or not there, checked before they are trusted.

    .partial/train-KEY/checkpoint-000000051200.ckpt    what Lightning saves: weights, moments, counts
    .partial/train-KEY/checkpoint-000000051200.json    its step, size, sha256 and run

A checkpoint without a record that fits it is skipped with a warning; the run falls back to the one before.
"""

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from dbp.engine.disk import replace_json, sync_folder
from dbp.errors import ConfigError

log = logging.getLogger("dbp")


class Disk(CheckpointIO):
    """Lightning's way to the disk; a failure is kept, not raised: the other ranks wait in a barrier."""

    def __init__(self) -> None:
        self.problem: Exception | None = None

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        self.problem = None
        try:
            torch.save(checkpoint, path)
        except (OSError, RuntimeError) as problem:  # torch's zip writer raises the second
            self.problem = problem

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=True)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


@dataclass
class Checkpoints:
    """Writes and finds the checkpoints of one run."""

    folder: Path  # where they lie; nothing else writes there
    run: dict[str, Any]  # what must be equal for a checkpoint to be of this run: its key, model and budget
    keep: int  # how many of the last ones stay
    disk: Disk = field(default_factory=Disk)

    def save(self, trainer: Any, samples: int, is_first: bool) -> bool:
        """Save the state of a run after so many samples; all ranks call it, the first one writes.

        A file that cannot be written leaves those before it as they are.

        Returns:
            Whether it is on disk; the first rank knows.
        """
        path = self.folder / f"checkpoint-{samples:012d}.ckpt"
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            if is_first:
                self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(beside)
            if problem := self.disk.problem:
                raise OSError(str(problem).partition("\n")[0])
            if is_first:
                self._commit(beside, path, trainer.global_step, samples)
        except OSError as problem:
            log.warning(
                "%s could not be written (%s). Training goes on; a resume would start from the "
                "checkpoint before. Free space on that disk.",
                path,
                problem.strerror or problem,
            )
            return False
        finally:
            if is_first:
                with suppress(OSError):
                    beside.unlink(missing_ok=True)
        return True

    def _commit(self, beside: Path, path: Path, step: int, samples: int) -> None:
        with open(beside, "rb") as handle:
            os.fsync(handle.fileno())
        record = {"step": step, "samples_seen": samples, "run": self.run} | _measure(beside)
        replace_json(path.with_suffix(".json"), record)
        beside.rename(path)
        sync_folder(self.folder)
        for old in self._all()[self.keep :]:
            old.with_suffix(".json").unlink(missing_ok=True)
            old.unlink(missing_ok=True)

    def _all(self) -> list[Path]:
        """From the last to the first."""
        return sorted(self.folder.glob("checkpoint-*.ckpt"), reverse=True)

    def latest(self) -> tuple[Path | None, int]:
        """The last sound checkpoint and its step; none and 0 where there is none.

        Raises:
            ConfigError: A checkpoint of another run lies here.
        """
        for path in self._all():
            try:
                record = json.loads(path.with_suffix(".json").read_text())
                step, other, size = int(record["step"]), record["run"], f"{record['bytes']:,}"
                is_sound = _measure(path) == {k: record[k] for k in ("bytes", "sha256")}
                problem = f"it has {path.stat().st_size:,} bytes, or others than the {size} that were written"
            except (OSError, ValueError, KeyError, TypeError) as error:
                step, other, is_sound, problem = 0, {}, False, f"its record cannot be read ({error})"
            if not is_sound:
                log.warning("%s is damaged: %s. The one before it is tried.", path, problem)
                continue
            if other != self.run:
                named = [name for name in self.run if other.get(name) != self.run[name]]
                differs = ", ".join(f"{n} {other.get(n)!r}, here {self.run[n]!r}" for n in named)
                raise ConfigError(
                    f"{path} is of another run: {differs}. Training does not go on from it. Remove "
                    f"it, or move it away; {self.folder} holds checkpoints of this run alone."
                )
            return path, step
        return None, 0


def _measure(path: Path) -> dict[str, Any]:
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
