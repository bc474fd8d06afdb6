"""What a run writes down while it trains, and when it must stop.

The device is read only when a row is due or a checkpoint is written; between, a step costs the host some 0.4 µs a
pair. On several ranks all of them settle their counts at the same steps, over the CPU, and the first one writes.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from dbp.engine.disk import write_json
from dbp.engine.progress import Progress
from dbp.engine.provenance import peak_memory
from training.account.cost import CountFlops, Gauge
from training.account.counts import Tally, Uids, Window
from training.account.horizon import Horizon
from training.account.metrics import Row, Write
from training.account.price import Price, Rates
from training.step.module import Contrastive, Diverged

HOUR, KWH = 3600.0, 3.6e6  # in seconds, in joules
KEPT = ("wait_seconds", "aside_seconds", "joules", "loss_steps")  # in checkpoints, as they are
KEPT += ("hardware_flops", "peak_device_bytes", "peak_host_bytes")


@dataclass(eq=False)
class Recorder(Callback):
    """Writes a row of metrics every so many steps, and stops a run that diverges or reads badly.

    Its state travels with the checkpoint, summed over ranks, so that sums go on after a resume on any
    number of them. Put `clock` last among the callbacks: what the others do between (checkpoints,
    evaluations) is then neither training nor waiting for data.
    """

    horizon: Horizon
    every_steps: int
    writers: list[Write]  # where rows go; called on the first rank only
    bar: Progress
    tally: Tally  # counts what is consumed; its ranks are those of the run
    gauge: Gauge
    folder: Path  # where the uids of a batch whose loss is NaN or infinite are saved
    uids: Uids
    most_substitutes: float  # share of the pairs that may be stood in for, in [0, 1]
    flops: int | None  # of one pair, both passes, at full context length; none where they cannot be counted
    count_flops: CountFlops  # operations for one pair by the length of its caption, with what is done twice
    rates: Rates | None = None  # of choosing among candidates; none where nothing is chosen

    def __post_init__(self) -> None:
        self.ranks = self.tally.ranks
        self.price = None if self.rates is None else Price(self.rates)
        self.hardware_flops: int | None = 0  # so far, of all devices; none where they cannot be counted
        # What runs between this callback and the last one is the time of others; also at the start of a resume,
        # which may make up for an evaluation.
        self.clock = LambdaCallback(on_train_start=self._set_aside, on_train_batch_end=self._set_aside)
        self.seconds = 0.0  # of training, over all tries
        self.device_seconds = 0.0  # the same for each device: tries may have had other numbers
        self.wait_seconds = 0.0  # of them, spent waiting for data: the mean over ranks
        self.aside_seconds = 0.0  # of them, spent by other callbacks at the end of steps
        self.joules: float | None = 0.0  # of all devices; none if one does not count
        self.peak_device_bytes: int | None = None  # of the device that held most
        self.peak_host_bytes = 0  # of the process that held most; loader workers are not in it
        self.flops_here: int | None = 0  # of this device, since the ranks settled
        self.loss_sum: Any = 0.0  # since the last row; stays on the device
        self.loss_steps = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; all ranks ask for it at the same step."""
        self.settle()
        tally = self.tally.state()
        return {
            "seconds": self._elapsed(),
            "device_seconds": self._device_seconds(),
            "loss_sum": float(self.loss_sum),
            **{name: getattr(self, name) for name in KEPT},
            **({} if self.price is None else {"price": self.price.total}),
            "tally": {**tally, "bits": torch.from_numpy(tally["bits"].copy())},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        tally = state_dict["tally"]
        self.tally.restore({**tally, "bits": tally["bits"].numpy().copy()})
        # A checkpoint of an earlier version does not say; what is not known stays so.
        self.hardware_flops = state_dict.get("hardware_flops")
        for name in state_dict.keys() - {"tally", "price"}:
            setattr(self, name, state_dict[name])
        if self.price is not None:
            self.price.total = dict(state_dict["price"])

    def on_train_start(self, trainer: Trainer, pl_module: Contrastive) -> None:  # type: ignore[override]
        self.module = pl_module
        self.gauge.begin()
        self.energy_read = self.gauge.energy and self.gauge.energy()
        self.began = self.step_ended = self.row_ended = time.perf_counter()
        self.row_step, self.row_wait = trainer.global_step, self.wait_seconds
        self.row_aside, self.row_flops = self.aside_seconds, self.hardware_flops
        self.bar.advance(trainer.global_step * self.horizon.batch_size)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.seconds, self.device_seconds = self._elapsed(), self._device_seconds()
        del self.began

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.wait_seconds += time.perf_counter() - self.step_ended

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Contrastive, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step  # steps done, this one included
        assert batch["rows"].device.type == "cpu", "reading rows must not wait for the device"
        self.tally.note(batch["rows"].numpy(), batch["undecodable"].numpy())
        work = [(self.count_flops, *one) for one in pl_module.multiplied(batch)]
        if self.price is not None:
            self.price.note(batch)
            work += [(self.price.rates.count_scoring, *one) for one in batch.get("scored_lengths", ())]
        for count, pairs, length in work:
            made = count(length)
            here = self.flops_here
            self.flops_here = None if made is None or here is None else here + made * pairs
        self.loss_sum = self.loss_sum + outputs["loss"].detach()
        self.loss_steps += 1
        is_due = step % self.every_steps == 0 or step == self.horizon.steps
        if is_due or self.tally.is_full or self._has_diverged_here():
            self.settle()
        if is_due:
            row = self._row(trainer, pl_module, step)
            for write in self.writers if self.ranks.is_first else ():
                write(row)
        self.bar.advance(self.horizon.batch_size)
        self.step_ended = time.perf_counter()

    def _set_aside(self, *_: Any) -> None:
        now = time.perf_counter()
        self.aside_seconds += now - self.step_ended
        self.step_ended = now

    def _has_diverged_here(self) -> bool:
        """Whether the loss is NaN or infinite: asked at each step where it costs nothing."""
        is_free = self.ranks.size == 1 and self.gauge.device == "cpu"
        return is_free and int(self.module.first_bad_step) >= 0

    def settle(self) -> None:
        """Bring counts and sums up to this step, over all ranks, and stop a run that went wrong.

        Does nothing where no step was made since the last time. All ranks call it at the same step.

        Raises:
            Diverged: The loss is not finite; the uids of the first such batch are saved.
            PoolError: Too many pictures cannot be decoded.
        """
        if self.tally.is_settled:
            return
        window = self.tally.settle()
        told = self.ranks.gather(
            {
                "loss_sum": float(self.loss_sum),
                "wait_seconds": self.wait_seconds,
                "joules": self._joules(),
                "flops": self.flops_here,
                "peak_device_bytes": self.gauge.peak_memory(),
                "peak_host_bytes": peak_memory(),
                "bad_step": int(self.module.first_bad_step),
                "price": {} if self.price is None else self.price.here,
            }
        )
        if self.price is not None:
            self.price.settle([t["price"] for t in told])
        # Means over ranks take the place of each rank's own, so that any number of them can go on.
        self.loss_sum = float(np.mean([t["loss_sum"] for t in told]))
        self.wait_seconds = float(np.mean([t["wait_seconds"] for t in told]))
        made = [self.hardware_flops, *(t["flops"] for t in told)]
        self.hardware_flops = None if None in made else sum(made)
        self.flops_here = None if self.hardware_flops is None else 0
        used = [self.joules, *(t["joules"] for t in told)]
        self.joules = None if None in used else math.fsum(used)
        held = [self.peak_device_bytes, *(t["peak_device_bytes"] for t in told)]
        self.peak_device_bytes = max((n for n in held if n is not None), default=None)
        self.peak_host_bytes = max(self.peak_host_bytes, *(t["peak_host_bytes"] for t in told))
        if bad := [t["bad_step"] for t in told if t["bad_step"] >= 0]:
            self._stop_diverged(min(bad), window)
        self.tally.check_substitutes(self.most_substitutes, self.uids)

    def _joules(self) -> float | None:
        """What this rank's device has used since it was asked last."""
        if self.gauge.energy is None or self.energy_read is None:
            return None
        before, self.energy_read = self.energy_read, self.gauge.energy()
        return self.energy_read - before

    def _stop_diverged(self, step: int, window: Window) -> None:
        rows = self.tally.rows[window.indices[step - window.first_step]]
        path = self.folder / "diverged.json"
        if self.ranks.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            about = {"step": step, "samples_seen": step * self.horizon.batch_size}
            write_json(path, {**about, "rows": rows.tolist(), "uids": self.uids(rows)})
        self.module.first_bad_step.fill_(step)  # another rank's loss may have been the first
        try:
            self.module.check_finite()
        except Diverged as problem:
            raise Diverged(f"{problem} The {len(rows):,} uids of its batch are in {path}.") from problem

    def _this_try(self) -> float:
        return time.perf_counter() - self.began if hasattr(self, "began") else 0.0

    def _elapsed(self) -> float:
        return self.seconds + self._this_try()

    def _device_seconds(self) -> float:
        return self.device_seconds + self._this_try() * self.ranks.size

    def _row(self, trainer: Trainer, module: Contrastive, step: int) -> Row:
        # Settling has read the loss, which waits for the device: the time is taken after it.
        now = time.perf_counter()
        spent = max(now - self.row_ended - (self.aside_seconds - self.row_aside), 1e-9)
        rate = (step - self.row_step) * self.horizon.batch_size / spent
        norm = float(module.gradient_norm)
        made = None
        if self.hardware_flops is not None and self.row_flops is not None:
            made = (self.hardware_flops - self.row_flops) / spent
        row = {
            "samples_seen": step * self.horizon.batch_size,
            "step": step,
            "passes": round(self.horizon.passes_in(step * self.horizon.batch_size), 4),
            "loss": float(self.loss_sum) / self.loss_steps,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "logit_scale": float(module.model.logit_scale.detach().exp()),
            "grad_norm": norm if math.isfinite(norm) else None,
            "samples_per_second": round(rate, 2),
            "samples_per_second_per_device": round(rate / self.ranks.size, 2),
            "data_wait_share": round((self.wait_seconds - self.row_wait) / spent, 4),
            "seconds": round(self._elapsed(), 3),
            "model_flops_per_second": self.flops and self.flops * rate,
            "hardware_flops_per_second": made,
            "mfu": self._share_of_peak(self.flops and self.flops * rate),
            "hfu": self._share_of_peak(made),
            **self._consumed(),
        }
        self.loss_sum, self.loss_steps = 0.0, 0
        self.row_ended, self.row_step, self.row_wait = now, step, self.wait_seconds
        self.row_aside, self.row_flops = self.aside_seconds, self.hardware_flops
        return row

    def _share_of_peak(self, per_second: float | None) -> float | None:
        if per_second is None or self.gauge.peak_flops is None:
            return None
        return round(per_second / (self.gauge.peak_flops * self.ranks.size), 4)

    def _consumed(self) -> dict[str, Any]:
        """Sums since the first step: what both the rows and the manifest say."""
        tally, seen = self.tally, self.tally.samples_seen
        hours = self._device_seconds() / HOUR if self.gauge.is_gpu else 0.0
        return {
            "unique_samples": tally.unique,
            "repeats": seen - tally.unique,
            "uid_duplicates_in_batch": tally.uid_duplicates,
            "group_duplicates_in_batch": tally.group_duplicates,
            "substitutes": tally.substitutes,
            "undecodable": len(tally.undecodable),
            "train_flops": self.flops and self.flops * seen,
            "hardware_flops": self.hardware_flops,
            "gpu_hours": round(hours, 6),
            "energy_kwh": None if self.joules is None else round(self.joules / KWH, 6),
            "peak_device_bytes": self.peak_device_bytes,
            "peak_host_bytes": self.peak_host_bytes,
            "consumed": tally.chain,
            **({} if self.price is None else self.price.counts(self.gauge.is_gpu)),
        }

    def counts(self) -> dict[str, Any]:
        """What the manifest says of a finished run; sums are over all ranks and all tries.

        Work that a kill threw away is in none of them.
        """
        return {
            "kept": self.horizon.num_kept,
            "samples_seen": self.tally.samples_seen,
            "steps": self.tally.steps,
            "batch_size": self.horizon.batch_size,
            "passes": round(self.horizon.passes, 4),
            "device_name": self.gauge.name,
            "num_devices": self.ranks.size,
            "train_seconds": round(self.seconds, 3),
            "data_wait_seconds": round(self.wait_seconds, 3),
            "aside_seconds": round(self.aside_seconds, 3),
            **self._consumed(),
        }
