"""The stage that trains TL;DR's captioner, and its training step."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64

from dbp.captioning.captioner import Captioner, save_captioner
from dbp.captioning.codes import perplexity
from dbp.captioning.network import Network
from dbp.captioning.vocabulary import Vocabulary
from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.device import pick_device
from dbp.encoders.base import Encoder, Tower
from dbp.engine.progress import progress
from dbp.engine.stage import Stage, runtime
from dbp.engine.work import Work
from dbp.errors import ConfigError
from training.account.horizon import Budget, whole_steps
from training.config import Optimiser, Precision, resolve_precision
from training.feed.augmentation import Augmentation
from training.feed.subset import Subset

COUNTED = 1_000_000  # captions whose words make the vocabulary, at most
MEASURED = 4_096  # held-out pictures that the finished captioner is measured on, at most


@dataclass(frozen=True)
class TrainCaptioner(Stage):
    """Train a codebook and a decoder that caption the images of a pool through the codes.

    One device trains; a run that was cut short goes on from its last checkpoint.

    All other settings are those of `train`.
    """

    name: ClassVar[str] = "captioner"
    needs: ClassVar[tuple[str, ...]] = ("pool", "rows")
    makes: ClassVar[type] = Captioner
    home: ClassVar[str] = "runs"

    encoder: Encoder  # the image network, which stays as it is
    layer: int  # whose tokens become codes, from 0, or from the end
    network: Network  # sizes of what is trained
    vocabulary_size: int | None  # most words; null for all that occur
    batch_size: int
    samples_seen: int
    optimiser: Optimiser
    augmentation: Augmentation
    held_out: float  # share of the pool's uids that are left out, to measure on; in [0, 1)
    seed: int  # of the weights, the order, the codebook and the augmentation
    precision: Precision
    device: str = runtime("auto")
    num_workers: int = runtime(0)
    cache: bool = runtime(False)
    log_every_samples: int = runtime(100_000)
    checkpoint_every_samples: int | None = runtime(None)
    checkpoint_every_minutes: float | None = runtime(None)

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(0 <= self.held_out < 1, "held_out", self.held_out, "from 0 to below 1")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        most, every = self.vocabulary_size, self.log_every_samples
        require(most is None or most >= 1, "vocabulary_size", most, "at least 1, or null")
        require(every > 0, "log_every_samples", every, "above 0")
        whole_steps(self.samples_seen, self.batch_size)

    def identity(self) -> dict[str, Any]:
        return {"precision": resolve_precision(self.precision, self.device)}

    def run(self, work: Work, pool: Pool, rows: KeepList) -> dict[str, Any]:
        return train(self, work, Subset.of(pool, rows))


def train(stage: TrainCaptioner, work: Work, subset: Subset) -> dict[str, Any]:
    """Train one captioner and write it.

    Returns:
        The counts of the run: losses, codes used and their perplexity, on held-out images where there are any.

    Raises:
        ConfigError: The codebook, the budget or the network does not fit the pool.
        Diverged: The loss is not finite.
        Preempted: A signal came; the run goes on when it is started again.
    """
    from training.account.metrics import METRICS, metrics_file, read_metrics
    from training.captioning import CaptioningStep, Record
    from training.feed.data import Pairs, make_loader, side
    from training.feed.order import Batches, Order
    from training.resume.preemption import Guard
    from training.resume.ranks import Ranks
    from training.resume.resumable import Checkpoints
    from training.step.fit import fit

    used, held = subset.split(stage.held_out)
    if stage.network.num_codes > len(used):
        raise ConfigError(
            f"cannot learn captioner.network.num_codes={stage.network.num_codes:,} codes from {len(used):,} "
            "pictures: some would stand for none. Lower captioner.network.num_codes, or train on a larger pool."
        )
    horizon = Budget(batch_size=stage.batch_size, samples_seen=stage.samples_seen).horizon(len(used))
    device, precision = pick_device(stage.device), stage.identity()["precision"]
    words = Vocabulary.of(captions_of(used), stage.network.length, stage.vocabulary_size)
    if not words.tokens:
        raise ConfigError(
            f"cannot train a captioner: none of {len(used):,} rows has a word in its caption. Give a pool with "
            "captions (pool.caption names the field)."
        )
    tower = open_tower(stage.encoder, device)
    assert tower.sees is not None
    size = side(tower.sees["size"])
    module = CaptioningStep(
        stage.network, tower, stage.layer, size, words.size, stage.optimiser, horizon, stage.seed
    )
    identity = {"key": work.key, "samples_seen": horizon.samples_seen, "seed": stage.seed}
    checkpoints = Checkpoints(work.shared, identity, 1)
    last, done = checkpoints.latest()
    batches = Batches(Order(used.keys, stage.seed), horizon, done)
    pairs = Pairs(used, stage.augmentation, size, words, stage.seed, stage.cache)
    loader = make_loader(pairs, batches, stage.num_workers, device != "cpu")
    guard = Guard(horizon, checkpoints, Ranks(), stage.checkpoint_every_samples, stage.checkpoint_every_minutes)
    past = read_metrics(work.shared / METRICS, done * horizon.batch_size)
    with ExitStack() as stack:
        write = stack.enter_context(metrics_file(work.shared / METRICS, past))
        bar = stack.enter_context(progress("captioner", horizon.samples_seen, "pairs"))
        record = Record(horizon, horizon.steps_for(stage.log_every_samples), write, bar)
        fit(module, loader, [record, guard], guard, work.folder, device, precision, last, "captioner")
    (work.folder / METRICS).write_bytes((work.shared / METRICS).read_bytes())
    held_pairs = Pairs(held, stage.augmentation, size, words, stage.seed)
    measured = measure(module.to(device).eval(), held_pairs, device, stage.batch_size)
    digest = save_captioner(
        work.folder, module.network.state_dict(), stage.network, words, stage.encoder, stage.layer,
        module.num_tokens, module.token_width,
    )  # fmt: skip
    final = read_metrics(work.folder / METRICS)[-1]
    return {
        "rows": len(used),
        "held out": len(held),
        "samples_seen": horizon.samples_seen,
        "vocabulary": words.size,
        "codes": stage.network.num_codes,
        **{name: final[name] for name in ("caption_loss", "codes_used", "perplexity")},
        **measured,
        "digest": digest,
    }


def captions_of(subset: Subset) -> Iterator[str]:
    """The captions that the vocabulary is counted in: all, or a million by the order of their keys."""
    rows = subset.rows
    if len(rows) > COUNTED:
        rows = np.sort(rows[np.argpartition(subset.keys, COUNTED)[:COUNTED]])
    for start in range(0, len(rows), 4096):
        yield from subset.pool.captions(rows[start : start + 4096])


def open_tower(encoder: Encoder, device: str) -> Tower:
    """The image network on a device.

    Raises:
        ConfigError: It is no network whose tokens can be had.
    """
    here: Any = replace(encoder, device=device) if hasattr(encoder, "device") else encoder
    tower = None if encoder.reads else here.load()
    if tower is None or tower.tokens is None or tower.sees is None:
        raise ConfigError(
            f"captioner.encoder: {type(encoder).__name__} has no network whose tokens could become codes. Name "
            "one of open_clip or timm, such as captioner/encoder=openclip_b32."
        )
    return tower


def measure(module: Any, pairs: Any, device: str, batch_size: int) -> dict[str, Any]:
    """Loss, codes used and perplexity on images that were held out; nothing where none were."""
    import torch

    from training.feed.order import Slice

    count = min(len(pairs), MEASURED)
    if not count:
        return {}
    losses, times = 0.0, np.zeros(module.num_codes, np.int64)
    with torch.no_grad():
        for start in range(0, count, batch_size):
            indices: Int64[np.ndarray, " b"] = np.arange(start, min(start + batch_size, count))
            batch = pairs[Slice(0, np.zeros_like(indices), indices, np.zeros_like(indices))]
            loss, coded, _ = module.network(module.tokens(batch["images"].to(device)), batch["tokens"].to(device))
            losses += float(loss) * len(indices)
            times += np.bincount(coded.codes.cpu().numpy().ravel(), minlength=len(times))
    assert math.isfinite(losses)
    return {
        "held-out caption_loss": round(losses / count, 5),
        "held-out codes_used": int((times > 0).sum()),
        "held-out perplexity": round(perplexity(times), 2),
    }
