"""Lightning's trainer as this project uses it: ranks from outside, no files of its own, no chatter."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from dbp.encoders.openclip import LoadedClip, load_openclip
from dbp.errors import ConfigError, WorldError
from training.config import Model
from training.resume.preemption import Guard
from training.resume.ranks import Ranks
from training.resume.resumable import Disk
from training.resume.workers import loading


def fresh_model(model: Model, seed: int) -> LoadedClip:
    """A model with random weights that depend on nothing but the seed.

    Made on the CPU, so that the device does not matter, and without touching torch's global state.

    Raises:
        ConfigError: The model is not one that the contrastive loss can train.
    """
    with torch.random.fork_rng(devices=[]), quiet():
        torch.default_generator.manual_seed(seed)
        loaded = load_openclip(model.name, config=model.described(), random_weights=True)
    size = loaded.model.visual.preprocess_cfg["size"]
    if "multimodal_cfg" in loaded.config or getattr(loaded.model, "logit_bias", None) is not None:
        raise ConfigError(
            f"model.name={loaded.name!r} has a captioning head or a logit bias, which the "
            "contrastive loss does not train. Choose a plain CLIP model."
        )
    if not isinstance(size, int) and len(set(size)) != 1:
        raise ConfigError(
            f"model.name={loaded.name!r} takes pictures of {size} pixels; training makes squares. "
            "Choose a model with one image size."
        )
    return loaded


def fit(
    module: LightningModule,
    loader: DataLoader,
    callbacks: list[Callback],
    guard: Guard,
    folder: Path,
    device: str,
    precision: str,
    resume: Path | None = None,
    settings: str = "train",
) -> None:
    """Make all steps of a run, from where an earlier try of it stopped.

    Args:
        loader: Its batches, from the step on that the checkpoint to go on from has made.
        callbacks: What looks on, the guard among them: behind what counts, so that its checkpoints hold the counts.
        settings: Where the user sets the workers of the loader.

    Raises:
        Diverged: The loss is not finite.
        Preempted: A signal came.
        WorldError: Lightning stopped before the last step.
    """
    steps, ranks = guard.horizon.steps, guard.ranks
    with ExitStack() as stack:
        stack.enter_context(quiet())
        # What a model draws is seeded for each step; afterwards torch's state is as it was.
        stack.enter_context(torch.random.fork_rng([] if device == "cpu" else [device]))
        stack.enter_context(guard.listening())
        more = " or train.prefetch" if settings == "train" else ""
        stack.enter_context(loading(f"{settings}.num_workers={loader.num_workers}{more}"))
        trainer = make_trainer(folder, steps, device, precision, callbacks, ranks, guard.checkpoints.disk)
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
        except SystemExit as stopped:  # Lightning's answer to Ctrl-C, which it switches off
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from stopped
    if trainer.global_step != steps:
        raise WorldError(
            f"training stopped after step {trainer.global_step:,} of {steps:,}. Run again: "
            "it goes on from its last checkpoint."
        )


class Outside(LightningEnvironment):
    """Ranks that a launcher started: each is a machine of one device to Lightning."""

    creates_processes_externally = True  # type: ignore[assignment]

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.set_world_size(ranks.size)
        self.set_global_rank(ranks.rank)

    def node_rank(self) -> int:
        return self.global_rank()

    def local_rank(self) -> int:
        return 0


def make_trainer(
    folder: Path,
    steps: int,
    device: str,
    precision: str,
    callbacks: list[Any],
    ranks: Ranks | None = None,
    disk: Disk | None = None,
) -> Trainer:
    """A trainer that makes exactly so many steps and leaves everything else to us.

    Accumulating gradients is no setting: with a contrastive loss it changes the objective.

    Args:
        folder: Where Lightning would put files; it is never the working directory.
        steps: Optimiser steps in all, those before a resume included.
        precision: `fp32`, or `bf16` for autocast over fp32 weights.
    """
    ranks = ranks or Ranks()
    _, _, number = device.partition(":")
    trainer = Trainer(
        accelerator="gpu" if device.startswith("cuda") else device,
        devices=[int(number)] if number else 1,
        num_nodes=ranks.size,
        # No buffer changes in a step, so none is sent around; gradients live in DDP's own buckets.
        strategy=DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if ranks.size > 1 else "auto",
        sync_batchnorm=ranks.size > 1 and device.startswith("cuda"),
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=folder,
        callbacks=callbacks,
        # Inside a SLURM job Lightning would requeue, and resume other runs' files, by itself.
        plugins=[Outside(ranks) if ranks.size > 1 else LightningEnvironment(), disk or Disk()],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    # Signals are the guard's. Lightning's own handler would send a tensor around in the middle of a
    # step, and make each step wait for a broadcast.
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's banners and open_clip's notes on random weights to themselves."""
    root = logging.getLogger()
    chatty = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels, handlers = [log.level for log in chatty], list(root.handlers)

    def is_ours(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    if not handlers:
        # open_clip logs through the root, which would install a handler for good.
        root.addHandler(logging.NullHandler())
    root.addFilter(is_ours)
    for log in chatty:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        root.removeFilter(is_ours)
        root.handlers[:] = handlers
        for log, level in zip(chatty, levels, strict=True):
            log.setLevel(level)
