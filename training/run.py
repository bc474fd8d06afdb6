"""One run from a subset to a checkpoint: the parts of training, put together."""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from dbp.captioning.texts import WITHOUT
from dbp.data.captions import Captions
from dbp.device import pick_device
from dbp.encoders.openclip import LoadedClip
from dbp.engine.part_jobs import open_job
from dbp.engine.progress import progress
from dbp.engine.stage import parameters
from dbp.engine.work import Work
from dbp.errors import ConfigError
from training.account.cost import CountFlops, Gauge, at_any_length, forward_flops, hardware_flops
from training.account.counts import tally_of
from training.account.horizon import Budget, Horizon
from training.account.metrics import METRICS, Row, Write, metrics_file, read_metrics
from training.account.price import Rates, affordable
from training.account.recorder import Recorder
from training.config import resolve_precision
from training.feed.data import Pairs, make_loader, side
from training.feed.mixture import MixedOrder, mixed_horizon
from training.feed.order import Batches, Order
from training.feed.streaming import StreamedBatches, StreamedPool
from training.feed.subset import Subset
from training.feed.weights import weights_of
from training.online.base import ByRow, Choose
from training.online.feed import CandidatePairs, ChosenPairs
from training.online.jest import Jest
from training.online.reference import Reference
from training.resume.checkpoint import save_checkpoint
from training.resume.preemption import Guard
from training.resume.ranks import Ranks
from training.resume.resumable import Checkpoints
from training.settings import Logging, Objective, Speed, TrainSettings
from training.step.choosing import Choosing
from training.step.fit import fit, fresh_model
from training.step.module import Contrastive
from training.step.recompute import recompute_blocks
from training.step.smaller import smaller
from training.step.trimming import can_trim
from training.watching.validation import EVALUATIONS, Validation
from training.watching.watched import Watched

log = logging.getLogger("dbp")

IN_FLIGHT = 4  # batches that a worker may have begun, where train.prefetch says nothing


def follow(ranks: Ranks) -> None:
    """Take part in what the first rank trains, until it says that nothing is left."""
    while job := ranks.hear()["train"]:
        stage, work, inputs = open_job(Path(job))
        assert isinstance(stage, TrainSettings)
        subset = Subset.of(inputs.pop("pool"), inputs.pop("keep"), inputs.pop("column", None))
        train(stage, work, subset, ranks, inputs.pop("refined", None), inputs)


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to begin."""

    objective: Objective
    speed: Speed
    ranks: Ranks
    subset: Subset  # what is trained on; its pool may fetch shards
    held_out: int  # kept rows that are left out, for the loss on what no arm trains on
    order: Order  # the stream of samples
    horizon: Horizon
    loaded: LoadedClip
    module: Contrastive
    device: str  # of this rank
    precision: str  # `fp32` or `bf16`
    flops: int | None  # of one pair, as the model needs them; none where they cannot be counted
    hardware_flops: CountFlops  # of one pair by the length of its caption, with what is computed twice
    rates: Rates | None = None  # what choosing costs; none where nothing is chosen
    choose: Choose | None = None  # where batches are chosen before they are decoded
    reference: Reference | None = None  # where the learner scores
    tags: Mapping[str, Any] = field(default_factory=dict)  # counts of what is chosen by

    def pairs(self, folder: Path, refined: Captions | None = None) -> Pairs:
        """The samples, read and decoded for the model; all ranks call it.

        Args:
            folder: All ranks see it; refined captions are kept there until the run is complete.
            refined: What the captioner wrote, where it did.
        """
        asked, pool = self.objective, self.subset.pool
        captions = asked.captions and asked.captions.open(pool, folder, asked.seed, self.ranks, refined)
        size = side(self.loaded.model.visual.preprocess_cfg["size"])
        return Pairs(
            self.subset, asked.augmentation, size, self.loaded.tokenizer, asked.seed, self.speed.cache, captions
        )

    def loader(self, pairs: Pairs, start_step: int = 0) -> DataLoader:
        """The batches of this rank from a step on."""
        speed, streaming, pool = self.speed, self.objective.streaming, self.subset.pool
        run = self.order, self.horizon, start_step, self.ranks.rank, self.ranks.size, self.choose is not None
        batches = Batches(*run)
        if streaming is not None and isinstance(pool, StreamedPool):
            in_flight = max(1, speed.num_workers) * (speed.prefetch or IN_FLIGHT)
            batches = StreamedBatches(*run, pool=pool, num_fetchers=streaming.num_fetchers, in_flight=in_flight)
        return make_loader(self.fed(pairs), batches, speed.num_workers, self.device != "cpu", speed.prefetch)

    def fed(self, pairs: Pairs) -> Any:
        """What answers slices of the stream: pairs, or what is chosen among them."""
        if self.choose is not None:
            return ChosenPairs(pairs, self.choose, self.ranks.rank, self.ranks.size)
        return pairs if self.reference is None else CandidatePairs(pairs, self.reference)


def lay_out(objective: Objective, budget: Budget, subset: Subset) -> tuple[Subset, Order, Horizon]:
    """What is not held out, the stream of samples and the length of a run.

    Raises:
        ConfigError: Budget, batch, weights or cache do not fit what is kept.
    """
    subset, _ = subset.split(objective.held_out)
    streaming, mixture, windows = objective.streaming, objective.mixture, None
    if streaming is not None:
        windows = streaming.windows(subset.pool, subset.rows, objective.seed)
        subset = subset.within(streaming.open(subset.pool, subset.rows))
    weights = subset.weights
    candidates = None if objective.online is None else objective.online.candidates(budget.batch_size)
    if mixture is not None:
        own = weights_of(mixture, subset.pool, subset.rows, subset.column)
        weights = own if weights is None else own * weights
    if weights is None:
        return subset, Order(subset.keys, objective.seed, windows), budget.horizon(len(subset), candidates)
    source = "keep list" if mixture is None else "mixture" if subset.weights is None else "both"
    order = MixedOrder(subset.keys, objective.seed, weights, windows, source)
    return subset, order, mixed_horizon(order, budget, candidates)


def prepare(
    settings: TrainSettings, subset: Subset, ranks: Ranks, beside: Mapping[str, Any] | None = None
) -> Prepared:
    """Everything that a run needs before its first step, but for what it writes.

    Args:
        beside: What an online method reads.

    Raises:
        ConfigError: The budget, the batch or the model does not fit the subset or the ranks.
    """
    fed, order, horizon = lay_out(settings, settings, subset)
    Batches(order, horizon, 0, ranks.rank, ranks.size)  # refuses a batch that the ranks cannot share
    how, reference = settings.online, (beside or {}).get("reference")
    choose, tags = None, {}
    if isinstance(how, ByRow):
        choose, tags = how.chooser(fed, settings.seed, settings.batch_size, beside or {})
    device = device_of(settings.device, ranks)
    precision = resolve_precision(settings.precision, settings.device)
    loaded = fresh_model(settings.model, settings.seed)
    model, sees = loaded.model, loaded.model.visual.preprocess_cfg
    check_norms(model, settings.chunk_size, ranks, device)
    size = side(sees["size"])
    flops = hardware_flops(model, size)(model.context_length)
    rates, scoring = None, None
    if how is not None:
        small = getattr(how, "score_size", None)
        count = forward_flops(model, size) if small is None else forward_flops(smaller(model, small), small)
        rates = Rates(flops, count(model.context_length) if how.scores else 0, count)
    if isinstance(how, Jest):
        assert isinstance(reference, Reference), "bound to it"
        if settings.captions is not None and settings.captions.rule != "original":
            log.warning(
                "online=jest: the reference has seen the pool's own captions, and the learner scores those of "
                "caption.rule=%s: what it calls learnable is partly the difference of captions",
                settings.captions.rule,
            )
        if settings.budget == "flops":
            assert rates is not None
            budget = affordable(settings, how.candidates(settings.batch_size), rates, reference.flops, how.runs)
            fed, order, horizon = lay_out(settings, budget, subset)
        scoring = Choosing(how, reference.scale, settings.batch_size, settings.seed, settings.score_batch)
    recompute_blocks(model, settings.recompute)
    share = settings.batch_size // ranks.size
    hardware = hardware_flops(model, size, grad_cache=(settings.chunk_size or share) < share)
    trims = settings.trim_captions and not settings.compile and can_trim(model)
    if trims:
        hardware = at_any_length(hardware, model.context_length)
        if scoring is not None and rates is not None:
            rates = replace(rates, count_scoring=at_any_length(rates.count_scoring, model.context_length))
    elif flops is not None:
        hardware(model.context_length)  # counted now, and not while the clock runs
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    if settings.compile:
        model.compile()
    averaged = settings.average_last_samples or 0
    if averaged > horizon.samples_seen:
        raise ConfigError(
            f"train.average_last_samples={averaged:,} is more than the {horizon.samples_seen:,} samples that the "
            "run sees. Lower it, or set it to null for the last weights."
        )
    module = Contrastive(
        model, settings.optimiser, horizon, settings.seed, sees["mean"], sees["std"], settings.chunk_size, trims,
        average_steps=averaged and horizon.steps_for(averaged), choosing=scoring,
    )  # fmt: skip
    return Prepared(
        settings, settings, ranks, fed, len(subset) - len(fed), order, horizon, loaded, module, device, precision,
        flops, hardware, rates, choose, reference, tags,
    )  # fmt: skip


def train(
    settings: TrainSettings, work: Work, subset: Subset, ranks: Ranks, refined: Captions | None = None,
    beside: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train one model as one of several ranks; the first one writes what the run leaves.

    Args:
        work: `shared` keeps checkpoints and metrics through a kill; all ranks see it.
        refined: Captions that the captioner wrote, where it did.
        beside: What an online method reads: tags, or the vectors of a reference.

    Returns:
        The counts of the run, on the first rank those of all.

    Raises:
        ConfigError: The budget, the batch or the model does not fit the subset or the ranks.
        Diverged: The loss is not finite.
        Preempted: A signal came; the run goes on when it is started again.
    """
    run = prepare(settings, subset, ranks, beside)
    loaded, horizon = run.loaded, run.horizon
    identity = {
        "key": work.key, "model": loaded.name, "batch_size": horizon.batch_size,
        "samples_seen": horizon.samples_seen, "seed": settings.seed,
    }  # fmt: skip
    checkpoints = Checkpoints(work.shared, identity, settings.keep_checkpoints)
    with ExitStack() as stack:
        stack.enter_context(ranks.together(run.device))
        resume, done = ranks.gather(checkpoints.latest() if ranks.is_first else None)[0]
        if done and ranks.is_first:
            log.info("train: going on after step %s of %s", f"{done:,}", f"{horizon.steps:,}")
        pairs = run.pairs(work.shared, refined)
        loader = run.loader(pairs, done)
        about = pairs.captions.about(run.subset.rows) if pairs.captions and ranks.is_first else {}
        if alone := about.get(WITHOUT):
            total = f"{alone:,} of {len(run.subset):,}"
            log.info("captions: %s kept rows have no other caption and keep their original", total)
        named = parameters(settings) if ranks.is_first and settings.loggers else {}
        recorder, validation = stack.enter_context(recording(run, settings, work, named, done * horizon.batch_size))
        guard = Guard(
            horizon, checkpoints, ranks, settings.checkpoint_every_samples, settings.checkpoint_every_minutes
        )
        # In this order: checkpoints hold the counts, no signal waits for an evaluation, and the clock
        # sees what all of them took.
        callbacks = [recorder, guard, *validation, recorder.clock]
        fit(run.module, loader, callbacks, guard, work.folder, run.device, run.precision, resume)
    if not ranks.is_first:
        return {}
    if run.module.last is not None:
        run.module.last.apply()
    if not (work.shared / METRICS).exists():
        log.warning("%s was removed while the run trained: its metrics are lost, its weights are not", work.shared)
    for name in (METRICS, EVALUATIONS):
        if (work.shared / name).exists():
            shutil.copy2(work.shared / name, work.folder / name)
    return {
        "digest": save_checkpoint(work.folder, loaded.model, loaded.name, loaded.config, int(horizon.passes)),
        "model": loaded.name,
        "precision": run.precision,
        "device": run.device,
        "held_out": run.held_out,
        **run.order.about(),
        **about,
        **run.tags,
        **recorder.counts(),
    }


@contextmanager
def recording(
    run: Prepared, logs: Logging, work: Work, named: dict[str, Any], samples_seen: int
) -> Iterator[tuple[Recorder, list[Validation]]]:
    """What writes down a run, and measures it on the way, while the block runs; the first rank writes.

    Args:
        work: The rows lie in its `shared` until the run is complete.
        named: The parameters of the run, for its loggers.
        samples_seen: Where the run begins: later rows of an earlier try are cut off.
    """
    loaded, horizon, ranks, pool = run.loaded, run.horizon, run.ranks, run.subset.pool
    writers: list[Write] = []
    watchers: list[Write] = []
    marks: list[Row] = []
    with ExitStack() as stack:
        if ranks.is_first:
            past, marks = (read_metrics(work.shared / name, samples_seen) for name in (METRICS, EVALUATIONS))
            told = sorted([*past, *marks], key=lambda row: row["step"])
            mirrors = [
                stack.enter_context(logger.open(work.folder, work.key, named, told)) for logger in logs.loggers
            ]
            writers = [stack.enter_context(metrics_file(work.shared / METRICS, past)), *mirrors]
            if logs.watch is not None and logs.watch.evaluators:
                watchers = [stack.enter_context(metrics_file(work.shared / EVALUATIONS, marks)), *mirrors]
        recorder = Recorder(
            horizon, horizon.steps_for(logs.log_every_samples), writers,
            stack.enter_context(progress("train", horizon.samples_seen, "pairs")),
            tally_of(run.subset, horizon.batch_size, ranks, logs.count_twins), Gauge(run.device, run.precision),
            work.shared, pool.uids, logs.most_substitutes, run.flops, run.hardware_flops, run.rates,
        )  # fmt: skip
        validation = []
        if logs.watch is not None:
            watched = Watched(
                loaded.model, loaded.preprocess, loaded.tokenizer, run.device, pool, run.objective.held_out,
                work.shared, ranks,
            )  # fmt: skip
            validation = [Validation(logs.watch, watched, horizon, watchers, marks, recorder.settle)]
        yield recorder, validation


def device_of(device: str, ranks: Ranks) -> str:
    """The device of one rank: `cpu`, `cuda`, or `cuda:N` with a GPU for each rank of a machine."""
    picked = pick_device(device)
    if ranks.size == 1 or not picked.startswith("cuda"):
        return picked
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
