"""Evaluations in the middle of training: a callback that looks and changes nothing."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from training.account.horizon import Horizon
from training.account.metrics import Row, Write
from training.watching.watch import Watch
from training.watching.watched import Watched

EVALUATIONS = "evaluations.jsonl"


class Validation(Callback):
    """Measures the model at marks of samples seen, and at the end.

    Put it behind the callback that saves checkpoints, so that a signal need not wait for it. A run that is killed
    while it measures resumes at that very step, where `on_train_start` makes up for the row that is missing.

    Args:
        writers: Take each row; called on the first rank alone.
        past: The rows of an earlier try, up to where this one goes on; read on the first rank.
        check: Called on all ranks before each evaluation; raises where the run has diverged.

    Raises:
        ConfigError: An evaluator cannot measure this run.
    """

    def __init__(
        self,
        watch: Watch,
        run: Watched,
        horizon: Horizon,
        writers: Sequence[Write],
        past: Sequence[Row] = (),
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.run, self.horizon, self.writers, self.check = run, horizon, writers, check
        self.measures = [evaluator.open(run) for evaluator in watch.evaluators]
        self.every_steps = watch.every_samples and horizon.steps_for(watch.every_samples)
        # The first rank's, or the others would measure where it does not.
        self.done = set(run.ranks.gather([row["samples_seen"] for row in past])[0])

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step > 0:
            self.on_train_batch_end(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Measure, if it is time to."""
        step = trainer.global_step
        is_mark = self.every_steps is not None and step % self.every_steps == 0
        samples = step * self.horizon.batch_size
        if not self.measures or samples in self.done or not (is_mark or step == self.horizon.steps):
            return
        self.check()
        began = time.perf_counter()
        values: dict[str, float] = {}
        with observing(self.run.model, self.run.device):
            for measure in self.measures:
                values |= measure()
        seconds = time.perf_counter() - began
        self.done.add(samples)
        row = {"samples_seen": samples, "step": step, **values, "seconds": round(seconds, 3)}
        if self.run.ranks.is_first:
            for write in self.writers:
                write(row)


@contextmanager
def observing(model: Any, device: str) -> Iterator[None]:
    """Evaluation mode in full float32, without gradients; afterwards all is as it was.

    As it was: each submodule's mode, the generators of torch, numpy and Python, autocast, TF32.
    """
    modes = [(part, part.training) for part in model.modules()]
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    drawn = np.random.get_state(), random.getstate()  # noqa: NPY002
    kind = torch.device(device).type
    model.eval()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        own = torch.random.fork_rng([] if kind == "cpu" else [device])
        with own, torch.no_grad(), torch.autocast(kind, enabled=False):
            yield
    finally:
        for part, is_training in modes:
            part.training = is_training
        np.random.set_state(drawn[0])  # noqa: NPY002
        random.setstate(drawn[1])
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
