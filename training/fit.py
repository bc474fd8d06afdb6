"""Lightning's trainer as this project uses it: one process, no files of its own, no chatter."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dbp.encoders.openclip import LoadedClip, load_openclip
from dbp.errors import ConfigError, WorldError
from dbp.progress import progress
from dbp.work import Work
from training.config import Model
from training.data import PairData
from training.metrics import Logger, metrics_file, read_metrics
from training.module import Contrastive
from training.recorder import Recorder
from training.resume import LastCheckpoint, resume_point

log = logging.getLogger("dbp")


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
    module: Contrastive,
    data: PairData,
    work: Work,
    device: str,
    precision: str,
    loggers: tuple[Logger, ...],
    settings: dict[str, Any],
    log_every_samples: int,
    checkpoint_every_samples: int | None,
) -> Recorder:
    """Make all steps of a run, from where an earlier try of it stopped.

    Args:
        module: The model and its training step.
        data: Batches as a function of the step.
        work: `shared` keeps `last.ckpt` and `metrics.jsonl` through a kill.
        device: `cpu`, `cuda` or `cuda:N`.
        precision: `fp32`, or `bf16` for autocast over fp32 weights.
        loggers: Mirrors of the metrics.
        settings: The run's parameters, for the loggers.
        log_every_samples: Pairs between two rows of metrics.
        checkpoint_every_samples: Pairs between two checkpoints; none for no checkpoint.

    Returns:
        What the run counted.

    Raises:
        Diverged: The loss is not finite.
        WorldError: Lightning stopped before the last step.
    """
    horizon = module.horizon
    last, done = resume_point(work.shared / "last.ckpt")
    if last:
        log.info("train: going on after step %s of %s", f"{done:,}", f"{horizon.steps:,}")
    past = read_metrics(work.shared / "metrics.jsonl", done * horizon.batch_size)
    every = checkpoint_every_samples and horizon.steps_for(checkpoint_every_samples)
    with ExitStack() as stack:
        writers = [stack.enter_context(metrics_file(work.shared / "metrics.jsonl", past))]
        for logger in loggers:
            opened = logger.open(work.folder, work.key, settings, past)
            writers.append(stack.enter_context(opened))
        bar = stack.enter_context(progress("train", horizon.samples_seen, "pairs"))
        recorder = Recorder(horizon, horizon.steps_for(log_every_samples), writers, bar)
        saver = LastCheckpoint(work.shared / "last.ckpt", every, horizon.steps)
        stack.enter_context(quiet())
        # What a model draws is seeded for each step; afterwards torch's state is as it was.
        stack.enter_context(torch.random.fork_rng([] if device == "cpu" else [device]))
        trainer = make_trainer(work.folder, horizon.steps, device, precision, [recorder, saver])
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, data, ckpt_path=last, weights_only=True)
        except SIGTERMException:  # a SystemExit too: the scheduler's wish, at the end of a step
            raise
        except SystemExit as stopped:  # Lightning's answer to Ctrl-C, which it switches off
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from stopped
    if trainer.global_step != horizon.steps:
        raise WorldError(
            f"training stopped after step {trainer.global_step:,} of {horizon.steps:,}. Run again: "
            "it goes on from its last checkpoint."
        )
    return recorder


def make_trainer(
    folder: Path, steps: int, device: str, precision: str, callbacks: list[Any]
) -> Trainer:
    """A trainer that makes exactly so many steps and leaves everything else to us.

    Accumulating gradients is no setting: with a contrastive loss it changes the objective.

    Args:
        folder: Where Lightning would put files; it is never the working directory.
        steps: Optimiser steps in all, those before a resume included.
        device: `cpu`, `cuda` or `cuda:N`.
        precision: `fp32`, or `bf16` for autocast over fp32 weights.
        callbacks: Ours.
    """
    _, _, number = device.partition(":")
    return Trainer(
        accelerator="gpu" if device.startswith("cuda") else device,
        devices=[int(number)] if number else 1,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=folder,
        callbacks=callbacks,
        # Inside a SLURM job Lightning would requeue, and resume other runs' files, by itself.
        plugins=[LightningEnvironment()],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )


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
