"""Training as a stage: a pool and a keep list in, a checkpoint out, at an exact budget."""

import shutil
from dataclasses import dataclass
from typing import Any, ClassVar

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.device import pick_device
from dbp.stage import Stage, parameters, runtime
from dbp.work import Work
from training.augmentation import Augmentation
from training.checkpoint import Checkpoint, save_checkpoint
from training.config import Model, Optimiser, Precision, resolve_precision
from training.horizon import check_budget_kind, plan_horizon, whole_steps
from training.metrics import Logger


@dataclass(frozen=True)
class Train(Stage):
    """Train a model on the pairs of a pool that a keep list keeps.

    Args:
        model: The architecture.
        batch_size: Pairs in one step, over all devices; each is a negative of all others.
        optimiser: AdamW and its schedule.
        augmentation: How pictures are brought to size and changed.
        seed: Of the weights, the order and the augmentation.
        precision: `fp32`, `bf16`, or `auto`: bf16 on a GPU that multiplies it, else fp32.
        samples_seen: The budget in pairs seen, a multiple of the batch; or
        epochs: the budget in passes over the kept set. Exactly one of the two.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        num_workers: Processes that decode; 0 decodes in the training process.
        cache: Keep fitted pictures and tokens in memory after their first use (small pools).
        loggers: Mirrors of the metrics.
        log_every_samples: Pairs between two rows of metrics; rounded up to whole steps.
        checkpoint_every_samples: Pairs between two checkpoints to resume from; null for none.
    """

    name: ClassVar[str] = "train"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("pool", "keep")
    makes: ClassVar[type] = Checkpoint
    home: ClassVar[str] = "runs"

    model: Model
    batch_size: int
    optimiser: Optimiser
    augmentation: Augmentation
    seed: int
    precision: Precision
    samples_seen: int | None = None
    epochs: float | None = None
    device: str = runtime("auto")
    num_workers: int = runtime(0)
    cache: bool = runtime(False)
    loggers: tuple[Logger, ...] = runtime(())
    log_every_samples: int = runtime(100_000)
    checkpoint_every_samples: int | None = runtime(None)

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2, for negatives")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")
        require(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "above 0")
        for name in ("log_every_samples", "checkpoint_every_samples"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "above 0")
        check_budget_kind(self.samples_seen, self.epochs)
        if self.samples_seen is not None:
            whole_steps(self.samples_seen, self.batch_size)

    def identity(self) -> dict[str, Any]:
        return {"precision": resolve_precision(self.precision, self.device)}

    def run(self, work: Work, pool: Pool, keep: KeepList) -> dict[str, Any]:
        from training.cost import flops_per_pair
        from training.data import PairData, Pairs
        from training.fit import fit, fresh_model
        from training.module import Contrastive
        from training.subset import Subset

        subset = Subset(pool, keep)
        horizon = plan_horizon(len(subset), self.batch_size, self.samples_seen, self.epochs)
        device, precision = pick_device(self.device), self.identity()["precision"]
        loaded = fresh_model(self.model, self.seed)
        sees = loaded.model.visual.preprocess_cfg
        size = sees["size"] if isinstance(sees["size"], int) else sees["size"][0]
        pairs = Pairs(subset, self.augmentation, size, loaded.tokenizer, self.seed, self.cache)
        flops = flops_per_pair(loaded.model, size, loaded.model.context_length)

        recorder = fit(
            Contrastive(
                loaded.model, self.optimiser, horizon, self.seed, sees["mean"], sees["std"]
            ),
            PairData(pairs, horizon, self.num_workers, pin_memory=device != "cpu"),
            work,
            device,
            precision,
            self.loggers,
            parameters(self),
            self.log_every_samples,
            self.checkpoint_every_samples,
        )

        digest = save_checkpoint(
            work.folder, loaded.model, loaded.name, loaded.config, int(horizon.passes)
        )
        shutil.copy2(work.shared / "metrics.jsonl", work.folder / "metrics.jsonl")
        return {
            "digest": digest,
            "model": loaded.name,
            "kept": horizon.num_kept,
            "samples_seen": horizon.samples_seen,
            "steps": horizon.steps,
            "batch_size": horizon.batch_size,
            "passes": round(horizon.passes, 4),
            "unique_samples": horizon.unique_samples,
            "substitutes": recorder.substitutes,
            "undecodable": len(recorder.undecodable),
            "precision": precision,
            "device": device,
            "train_seconds": round(recorder.seconds, 3),
            "data_wait_seconds": round(recorder.wait_seconds, 3),
            "train_flops": flops and flops * horizon.samples_seen,
        }
