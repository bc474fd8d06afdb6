"""The checkpoint that a run resumes from."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from training.module import Contrastive

log = logging.getLogger("dbp")


class LastCheckpoint(Callback):
    """Saves all that a run needs to go on, every so many steps, by renaming a finished file."""

    def __init__(self, path: Path, every_steps: int | None, last_step: int) -> None:
        self.path, self.every_steps, self.last_step = path, every_steps, last_step

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Contrastive, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every_steps and step % self.every_steps == 0 and step < self.last_step:
            pl_module.check_finite()
            replace_file(self.path, lambda beside: trainer.save_checkpoint(beside))


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place, bring it to disk, and rename it: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        with open(beside, "rb") as handle:
            os.fsync(handle.fileno())
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)


def resume_point(path: Path) -> tuple[Path | None, int]:
    """The checkpoint to go on from and its step; none and 0 where none can be read."""
    if not path.exists():
        return None, 0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return path, int(saved["global_step"])
    except Exception as problem:  # torch raises many kinds for a damaged file
        log.warning(
            "%s cannot be read (%s): training starts from the beginning",
            path,
            str(problem).partition("\n")[0],
        )
        return None, 0
