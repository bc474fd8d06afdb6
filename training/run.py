"""One run from a subset to a checkpoint: the parts of training, put together."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dbp.data.captions import Captions
from dbp.device import pick_device
from dbp.encoders.openclip import LoadedClip
from dbp.engine.part_jobs import open_job
from dbp.engine.progress import progress
from dbp.engine.stage import parameters
from dbp.engine.work import Work
from dbp.errors import ConfigError
from training.account.cost import CountFlops, Gauge, at_any_length, hardware_flops
from training.account.counts import tally_of
from training.account.horizon import Horizon
from training.account.metrics import METRICS, Row, Write, metrics_file, read_metrics
from training.account.recorder import Recorder
from training.config import resolve_precision
from training.feed.assemble import Feed, image_size, make_feed
from training.feed.data import PairData
from training.feed.subset import Subset
from training.resume.checkpoint import save_checkpoint
from training.resume.preemption import Guard
from training.resume.ranks import Ranks
from training.resume.resumable import Checkpoints
from training.settings import TrainSettings
from training.step.fit import fit, fresh_model
from training.step.module import Contrastive
from training.step.recompute import recompute_blocks
from training.step.trimming import can_trim
from training.watching.validation import EVALUATIONS, Validation
from training.watching.watched import Watched

log = logging.getLogger("dbp")


def follow(ranks: Ranks) -> None:
    """Take part in what the first rank trains, until it says that nothing is left."""
    while job := ranks.hear()["train"]:
        stage, work, inputs = open_job(Path(job))
        assert isinstance(stage, TrainSettings)
        pool, keep = inputs["pool"], inputs["keep"]
        train(stage, work, Subset(pool, keep), ranks, inputs.get("refined"))


class Prepared(NamedTuple):
    """A run that is ready to begin.

    Args:
        feed: What it is fed with.
        loaded: The model with its tokenizer and config.
        module: The model's training step.
        device: Of this rank.
        precision: `fp32` or `bf16`.
        flops: Of one pair, as the model needs them; none where they cannot be counted.
        hardware_flops: Of one pair by the length of its caption, with what is computed twice.
    """

    feed: Feed
    loaded: LoadedClip
    module: Contrastive
    device: str
    precision: str
    flops: int | None
    hardware_flops: CountFlops


def prepare(stage: TrainSettings, subset: Subset, ranks: Ranks) -> Prepared:
    """Everything that a run needs before its first step, but for what it writes.

    Raises:
        ConfigError: The budget, the batch or the model does not fit the subset or the ranks.
    """
    feed = make_feed(stage, subset)
    feed.batches(0, ranks.rank, ranks.size)  # refuses a batch that the ranks cannot share
    device = device_of(stage.device, ranks)
    precision = resolve_precision(stage.precision, stage.device)
    loaded = fresh_model(stage.model, stage.seed)
    model, sees = loaded.model, loaded.model.visual.preprocess_cfg
    check_norms(model, stage.chunk_size, ranks, device)
    size = image_size(model)
    flops = hardware_flops(model, size)(model.context_length)
    recompute_blocks(model, stage.recompute)
    share = stage.batch_size // ranks.size
    in_chunks = stage.chunk_size is not None and stage.chunk_size < share
    hardware = hardware_flops(model, size, grad_cache=in_chunks)
    trims = stage.trim_captions and not stage.compile and can_trim(model)
    if trims:
        hardware = at_any_length(hardware, model.context_length)
    elif flops is not None:
        hardware(model.context_length)  # counted now, and not while the clock runs
    if stage.channels_last:
        import torch

        model.to(memory_format=torch.channels_last)
    if stage.compile:
        model.compile()
    module = Contrastive(
        model, stage.optimiser, feed.horizon, stage.seed, sees["mean"], sees["std"],
        stage.chunk_size, trims=trims, average_steps=average_steps(stage, feed.horizon),
    )  # fmt: skip
    return Prepared(feed, loaded, module, device, precision, flops, hardware)


def train(
    stage: TrainSettings, work: Work, subset: Subset, ranks: Ranks, refined: Captions | None = None
) -> dict[str, Any]:
    """Train one model as one of several ranks; the first one writes what the run leaves.

    Args:
        stage: The parameters.
        work: `shared` keeps checkpoints and metrics through a kill; all ranks see it.
        subset: What is trained on.
        ranks: This process among all.
        refined: Captions that the captioner wrote, where it did.

    Returns:
        The counts of the run, on the first rank those of all.

    Raises:
        ConfigError: The budget, the batch or the model does not fit the subset or the ranks.
        Diverged: The loss is not finite.
        Preempted: A signal came; the run goes on when it is started again.
    """
    run = prepare(stage, subset, ranks)
    feed, loaded, horizon = run.feed, run.loaded, run.feed.horizon
    identity = {
        "key": work.key, "model": loaded.name, "batch_size": horizon.batch_size,
        "samples_seen": horizon.samples_seen, "seed": stage.seed,
    }  # fmt: skip
    checkpoints = Checkpoints(work.shared, identity, stage.keep_checkpoints)
    with ExitStack() as stack:
        stack.enter_context(ranks.together(run.device))
        last, done = checkpoints.latest() if ranks.is_first else (None, 0)
        if last:
            log.info("train: going on after step %s of %s", f"{done:,}", f"{horizon.steps:,}")
        (resume, *_) = ranks.gather(last and str(last))
        data = PairData(
            feed.pairs(loaded, work.shared, ranks, refined), feed.batches, stage.num_workers,
            pin_memory=run.device != "cpu", prefetch=stage.prefetch,
        )  # fmt: skip
        recorder, validation = stack.enter_context(recording(stage, work, run, ranks, done * horizon.batch_size))
        every = stage.checkpoint_every_samples
        guard = Guard(
            horizon, checkpoints, ranks, every and horizon.steps_for(every),
            stage.checkpoint_every_minutes,
        )  # fmt: skip
        # In this order: checkpoints hold the counts, no signal waits for an evaluation, and the clock
        # sees what all of them took.
        callbacks = [recorder, guard, *validation, recorder.clock]
        resume = resume and Path(resume)
        fit(run.module, data, callbacks, guard, work.folder, run.device, run.precision, resume)
    if not ranks.is_first:
        return {}
    if run.module.last is not None:
        run.module.last.apply()
    for name in (METRICS, EVALUATIONS):
        if (work.shared / name).exists():
            shutil.copy2(work.shared / name, work.folder / name)
    return {
        "digest": save_checkpoint(work.folder, loaded.model, loaded.name, loaded.config, int(horizon.passes)),
        "model": loaded.name,
        "precision": run.precision,
        "device": run.device,
        "held_out": feed.held_out,
        **recorder.counts(),
    }


def average_steps(stage: TrainSettings, horizon: Horizon) -> int:
    """The last steps whose weights are averaged, rounded up to whole steps; 0 for none.

    Raises:
        ConfigError: It asks for more samples than the run sees.
    """
    asked = stage.average_last_samples
    if asked is not None and asked > horizon.samples_seen:
        raise ConfigError(
            f"train.average_last_samples={asked:,} is more than the {horizon.samples_seen:,} samples that the "
            "run sees. Lower it, or set it to null for the last weights."
        )
    return 0 if asked is None else -(-asked // horizon.batch_size)


@contextmanager
def recording(
    stage: TrainSettings, work: Work, run: Prepared, ranks: Ranks, samples_seen: int
) -> Iterator[tuple[Recorder, list[Validation]]]:
    """What writes down a run, and measures it on the way, while the block runs.

    Args:
        stage: The parameters.
        work: The rows lie in its `shared` until the run is complete.
        run: What is recorded.
        ranks: This process among all; the first one writes.
        samples_seen: Where the run begins: later rows of an earlier try are cut off.
    """
    feed, loaded, horizon = run.feed, run.loaded, run.feed.horizon
    pool = feed.subset.pool
    writers: list[Write] = []
    watchers: list[Write] = []
    marks: list[Row] = []
    with ExitStack() as stack:
        if ranks.is_first:
            past, marks = (read_metrics(work.shared / name, samples_seen) for name in (METRICS, EVALUATIONS))
            told = sorted([*past, *marks], key=lambda row: row["step"])
            mirrors = [
                stack.enter_context(logger.open(work.folder, work.key, parameters(stage), told))
                for logger in stage.loggers
            ]
            writers = [stack.enter_context(metrics_file(work.shared / METRICS, past)), *mirrors]
            if stage.watch is not None and stage.watch.evaluators:
                measured = metrics_file(work.shared / EVALUATIONS, marks)
                watchers = [stack.enter_context(measured), *mirrors]
        recorder = Recorder(
            horizon,
            horizon.steps_for(stage.log_every_samples),
            writers,
            stack.enter_context(progress("train", horizon.samples_seen, "pairs")),
            tally_of(feed.subset, horizon.batch_size, ranks, stage.count_twins),
            Gauge(run.device, run.precision),
            folder=work.shared,
            uids=pool.uids,
            most_substitutes=stage.most_substitutes,
            flops=run.flops,
            hardware_flops=run.hardware_flops,
        )
        if stage.watch is None:
            yield recorder, []
            return
        watched = Watched(
            loaded.model, loaded.preprocess, loaded.tokenizer, run.device, pool, stage.held_out,
            work.shared, ranks,
        )  # fmt: skip
        yield (
            recorder,
            [Validation(stage.watch, watched, horizon, watchers, marks, recorder.settle)],
        )


def device_of(device: str, ranks: Ranks) -> str:
    """The device of one rank: `cpu`, `cuda`, or `cuda:N` with a GPU for each rank of a machine."""
    picked = pick_device(device)
    if ranks.size == 1 or not picked.startswith("cuda"):
        return picked
    import torch

    if picked != "cuda":
        raise ConfigError(
            f"train.device={device} with {ranks.size} processes would put them all on one GPU. Set "
            "train.device=auto: each takes the GPU of its local rank."
        )
    # A scheduler may show each process its own GPU alone, or all of them to each.
    return f"cuda:{ranks.local_rank % torch.cuda.device_count()}"


def check_norms(model: Any, chunk_size: int | None, ranks: Ranks, device: str) -> None:
    """Refuse to cut a batch where its statistics are part of the model.

    Raises:
        ConfigError: Batch normalisation would see a part of the batch.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    if not any(isinstance(part, _BatchNorm) for part in model.modules()):
        return
    if chunk_size is not None:
        raise ConfigError(
            f"train.chunk_size={chunk_size:,}: {type(model).__name__} normalises over the batch, so a "
            "part of it gives other features. Set train.chunk_size=null, or train a ViT."
        )
    if ranks.size > 1 and not device.startswith("cuda"):
        raise ConfigError(
            f"{ranks.size} processes on the CPU: {type(model).__name__} normalises over the batch, "
            "which torch can share between GPUs alone. Train in one process, or train a ViT."
        )
