"""When a run saves and when it leaves: at step boundaries, all ranks at the same one.

A signal only sets a flag. Saving in a signal handler would save between any two operations, with
other ranks at other places of the step.
"""

import logging
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch.distributed import all_reduce

from dbp.errors import WorldError
from training.account.horizon import Horizon
from training.resume.ranks import Ranks
from training.resume.resumable import Checkpoints
from training.resume.signals import SIGNALS

log = logging.getLogger("dbp")


class Preempted(WorldError):
    """The run was asked to leave; its checkpoint is saved."""

    is_agreed = True  # all ranks leave at the same step


@dataclass(eq=False)
class Guard(Callback):
    """Saves at sample marks and every so many minutes; saves and leaves when a signal came.

    With several ranks the wishes of each step are summed while the next one runs, so that all ranks
    act on them after the same step, and no step waits for them.
    """

    horizon: Horizon
    checkpoints: Checkpoints
    ranks: Ranks
    every_samples: int | None
    every_minutes: float | None

    def __post_init__(self) -> None:
        self.received: int | None = None  # the signal, once one came
        self.handlers: dict[int, Any] = {}
        self.saved_at = time.monotonic()
        self.pending: tuple[Any, Any] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take note of signals while the block runs, then give them back to who had them."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may; who runs training in another one handles signals
            return
        self.handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in self.handlers.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.received = number

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        step, minutes = trainer.global_step, (time.monotonic() - self.saved_at) / 60
        # The first rank's clock is that of all.
        is_late = self.ranks.is_first and minutes > (self.every_minutes or math.inf)
        leave, late = self._agree(self.received is not None, is_late)
        if step == self.horizon.steps:
            return  # nothing is left to resume
        marked = self.every_samples is not None and step % self.horizon.steps_for(self.every_samples) == 0
        if leave or late or marked:
            samples = step * self.horizon.batch_size
            is_saved = self.checkpoints.save(trainer, samples, self.ranks.is_first)
            self.saved_at = time.monotonic()
            if leave:
                self._leave(step, is_saved)

    def on_train_end(self, *_: Any) -> None:
        """Wait for the wishes that are on their way: all ranks have sent theirs."""
        if self.pending:
            self.pending[0].wait()
            self.pending = None

    def _agree(self, *wishes: bool) -> list[bool]:
        """Whether any rank wished so: now on a single rank, else a step ago."""
        if self.ranks.size == 1:
            return list(wishes)
        past, agreed = self.pending, [False] * len(wishes)
        if past:
            past[0].wait()
            agreed = (past[1] > 0).tolist()
        total = torch.from_numpy(np.array(wishes, np.int32))
        self.pending = all_reduce(total, async_op=True), total
        return agreed

    def _leave(self, step: int, is_saved: bool) -> None:
        self.on_train_end()
        # Whichever rank it came to: the first one asks for the requeue.
        number = next(n for n in self.ranks.gather(self.received) if n is not None)
        before: Any = self.handlers.get(number)
        how = "Run again: it goes on from there."
        if self.ranks.is_first and callable(before) and before is not signal.default_int_handler:
            before(number, None)  # submitit's: requeues the job, and may exit
        elif self.ranks.is_first and number in (signal.SIGUSR1, signal.SIGUSR2):
            # On TERM the scheduler has already decided what becomes of the job.
            how = requeue() or how
        state = "a checkpoint is saved" if is_saved else "NO checkpoint could be saved"
        raise Preempted(
            f"training left after step {step:,} of {self.horizon.steps:,} on {signal.Signals(number).name}; "
            f"{state} in {self.checkpoints.folder}. {how}"
        )


def requeue() -> str:
    """Ask SLURM to start this job again; what was done, or nothing outside of a job."""
    if (job := os.environ.get("SLURM_JOB_ID")) is None:
        return ""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"`scontrol requeue {job}` failed ({problem}): submit the job again."
    if done.returncode:
        return f"`scontrol requeue {job}` failed ({done.stderr.strip()}): submit the job again."
    return f"SLURM job {job} is requeued and goes on from there."
