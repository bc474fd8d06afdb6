"""What a run writes down while it trains, and when it must stop."""

import logging
import time
from typing import Any

from lightning.pytorch import Callback, Trainer

from dbp.progress import Progress
from training.horizon import Horizon
from training.metrics import Row, Write
from training.module import Contrastive

log = logging.getLogger("dbp")


class Recorder(Callback):
    """Writes a row of metrics every so many steps, and stops a run that diverges.

    Its state travels with the checkpoint, so that sums go on after a resume.
    """

    def __init__(
        self, horizon: Horizon, every_steps: int, writers: list[Write], bar: Progress
    ) -> None:
        self.horizon, self.every_steps, self.writers, self.bar = horizon, every_steps, writers, bar
        self.seconds = 0.0  # of training, over all tries
        self.wait_seconds = 0.0  # of them, spent waiting for data
        self.substitutes = 0
        self.undecodable: set[int] = set()
        self.loss_sum: Any = 0.0  # since the last row; stays on the device
        self.loss_steps = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self._elapsed(),
            "wait_seconds": self.wait_seconds,
            "substitutes": self.substitutes,
            "undecodable": sorted(self.undecodable),
            "loss_sum": float(self.loss_sum),
            "loss_steps": self.loss_steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, set(value) if name == "undecodable" else value)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.began = self.step_ended = self.row_ended = time.perf_counter()
        self.row_step, self.row_wait = trainer.global_step, self.wait_seconds
        self.bar.advance(trainer.global_step * self.horizon.batch_size)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self.wait_seconds += time.perf_counter() - self.step_ended

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Contrastive, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step  # steps done, this one included
        if len(failed := batch["undecodable"]):
            self._count(failed.tolist())
        self.loss_sum = self.loss_sum + outputs["loss"].detach()
        self.loss_steps += 1
        is_due = step % self.every_steps == 0 or step == self.horizon.steps
        if is_due or pl_module.device.type == "cpu":
            pl_module.check_finite()
        if is_due:
            row = self._row(trainer, pl_module, step)
            for write in self.writers:
                write(row)
        self.bar.advance(self.horizon.batch_size)
        self.step_ended = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.seconds = self._elapsed()
        del self.began

    def _elapsed(self) -> float:
        return self.seconds + (time.perf_counter() - self.began if hasattr(self, "began") else 0.0)

    def _count(self, rows: list[int]) -> None:
        if not self.undecodable:
            log.warning(
                "row %d of the pool cannot be decoded: the next kept sample stands in. All "
                "such rows are counted in the manifest.",
                rows[0],
            )
        self.substitutes += len(rows)
        self.undecodable.update(rows)

    def _row(self, trainer: Trainer, module: Contrastive, step: int) -> Row:
        # Reading the loss waits for the device, so the time is taken after it.
        loss = float(self.loss_sum) / self.loss_steps
        now = time.perf_counter()
        spent = max(now - self.row_ended, 1e-9)
        samples = (step - self.row_step) * self.horizon.batch_size
        row = {
            "samples_seen": step * self.horizon.batch_size,
            "step": step,
            "passes": round(step * self.horizon.batch_size / self.horizon.num_kept, 4),
            "loss": loss,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "logit_scale": float(module.model.logit_scale.detach().exp()),
            "samples_per_second": round(samples / spent, 2),
            "data_wait_share": round((self.wait_seconds - self.row_wait) / spent, 4),
            "seconds": round(self._elapsed(), 3),
        }
        self.loss_sum, self.loss_steps = 0.0, 0
        self.row_ended, self.row_step, self.row_wait = now, step, self.wait_seconds
        return row
