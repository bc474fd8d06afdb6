"""Evaluations in the middle of training: a callback that looks and changes nothing."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dbp.data.images import Undecodable
from training.horizon import Horizon
from training.loss import clip_loss
from training.metrics import Row, Write
from training.signals import ignore_signals
from training.watch import Watch, Watched

EVALUATIONS = "evaluations.jsonl"


class Validation(Callback):
    """Measures the model at marks of samples seen, and at the end.

    Put it behind the callback that saves checkpoints, so that a signal need not wait for it. A run
    that is killed while it measures resumes at that very step, where `on_train_start` makes up for
    the row that is missing.
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
        """Prepare the evaluators.

        Args:
            watch: When, and by what.
            run: What is watched.
            horizon: The run's length.
            writers: Take each row; called on the first rank alone.
            past: The rows of an earlier try, up to where this one goes on; read on the first rank.
            check: Called on all ranks before each evaluation; raises where the run has diverged.

        Raises:
            ConfigError: An evaluator cannot measure this run.
        """
        self.run, self.horizon, self.writers, self.check = run, horizon, writers, check
        self.measures = [evaluator.open(run) for evaluator in watch.evaluators]
        self.every_steps = watch.every_samples and horizon.steps_for(watch.every_samples)
        # The first rank's, or the others would measure where it does not.
        self.done = set(run.ranks.gather([row["samples_seen"] for row in past])[0])

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step > 0:
            self._measure_if_due(trainer)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._measure_if_due(trainer)

    def _measure_if_due(self, trainer: Trainer) -> None:
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
        with (
            torch.random.fork_rng([] if kind == "cpu" else [device]),
            torch.no_grad(),
            torch.autocast(kind, enabled=False),
        ):
            yield
    finally:
        for part, is_training in modes:
            part.training = is_training
        np.random.set_state(drawn[0])  # noqa: NPY002
        random.setstate(drawn[1])
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


class HeldOutLoss:
    """Loss and recall on fixed batches of held-out pairs, each batch computed whole on one rank.

    So the numbers do not depend on ranks or workers, to the last bit. Pictures come as evaluation
    prepares them, without augmentation. A pair that cannot be decoded is left out of its batch.
    """

    def __init__(self, run: Watched, batches: Int64[np.ndarray, "k b"], num_workers: int) -> None:
        self.run, self.batches, self.num_workers = run, batches, num_workers

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        ranks = self.run.ranks
        mine = range(ranks.rank, len(self.batches), ranks.size)
        loader = DataLoader(
            _Batches(self.run, self.batches),
            batch_size=None,
            sampler=mine,
            num_workers=min(self.num_workers, len(mine)),
            worker_init_fn=ignore_signals,
        )
        found = [
            (number, *self._measure(images, tokens))
            for number, (images, tokens) in zip(mine, loader, strict=True)
            if len(images)
        ]
        # In the order of the batches, since a sum of floats depends on its order.
        every = sorted(row for rows in ranks.gather(found) for row in rows)
        pairs = sum(row[1] for row in every)
        return {
            "held_out/loss": math.fsum(row[1] * row[2] for row in every) / max(pairs, 1),
            "held_out/image_to_text_recall@1": sum(row[3] for row in every) / max(pairs, 1),
            "held_out/text_to_image_recall@1": sum(row[4] for row in every) / max(pairs, 1),
            "held_out/pairs": pairs,
        }

    def _measure(self, images: Tensor, tokens: Tensor) -> tuple[int, float, int, int]:
        """Pairs, mean loss, and hits of pictures and of captions in a batch."""
        model, device = self.run.model, self.run.device
        pictures = model.encode_image(images.to(device), normalize=True).float()
        texts = model.encode_text(tokens.to(device), normalize=True).float()
        loss = clip_loss(pictures, texts, model.logit_scale.exp().float())
        logits = (pictures @ texts.T).cpu().numpy()
        return len(logits), float(loss), num_hits(logits), num_hits(logits.T)


def num_hits(scores: Float[np.ndarray, "b b"]) -> int:
    """Queries (rows) whose own item, of the same number, comes first; a tie goes to the earlier."""
    return int((scores.argmax(axis=1) == np.arange(len(scores))).sum())


class _Batches(Dataset):
    """Batches of held-out pairs by number."""

    def __init__(self, run: Watched, batches: Int[np.ndarray, "k b"]) -> None:
        self.pool, self.batches = run.pool, batches
        self.preprocess, self.tokenizer = run.preprocess, run.tokenizer

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        pictures, rows = [], []
        for row in self.batches[number].tolist():
            try:
                pictures.append(self.preprocess(self.pool.image(row)))
                rows.append(row)
            except Undecodable:
                continue
        if not rows:
            return torch.zeros(0), torch.zeros(0, dtype=torch.long)
        return torch.stack(pictures), self.tokenizer(self.pool.captions(np.array(rows)))
