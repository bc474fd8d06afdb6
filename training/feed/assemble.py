"""What a run is fed with: which pairs, in which order, from where. Put together from its settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.data.captions import Captions
from training.account.horizon import Horizon, plan_horizon, whole_steps
from training.feed.data import Pairs
from training.feed.mixture import MixedOrder, mixed_horizon
from training.feed.order import Batches, Order
from training.feed.streaming import StreamedBatches, StreamedPool
from training.feed.subset import Subset
from training.resume.ranks import Ranks
from training.settings import TrainSettings
from training.watching.watched import is_held_out

IN_FLIGHT = 4  # batches that a worker may have begun, where train.prefetch says nothing


@dataclass(frozen=True)
class Feed:
    """The pairs of a run and the length of its stream.

    Args:
        subset: What is trained on; its pool may fetch shards.
        held_out: Kept rows that are left out, for the loss on what no arm trains on.
        order: The stream of samples.
        horizon: The length of the run.
        stage: The settings.
    """

    subset: Subset
    held_out: int
    order: Order
    horizon: Horizon
    stage: TrainSettings

    def batches(self, start_step: int, rank: int, world: int) -> Batches:
        """The batches of one rank from a step on."""
        pool, streaming = self.subset.pool, self.stage.streaming
        if streaming is None or not isinstance(pool, StreamedPool):
            return Batches(self.order, self.horizon, start_step, rank, world)
        return StreamedBatches(
            self.order, self.horizon, start_step, rank, world, pool=pool,
            num_fetchers=streaming.num_fetchers,
            in_flight=max(1, self.stage.num_workers) * (self.stage.prefetch or IN_FLIGHT),
        )  # fmt: skip

    def pairs(self, loaded: Any, folder: Path, ranks: Ranks, refined: Captions | None = None) -> Pairs:
        """The samples, read and decoded for a model.

        Args:
            loaded: The model with its tokenizer.
            folder: All ranks see it; refined captions are kept there until the run is complete.
            ranks: The processes that train together; all of them call this.
            refined: What the captioner wrote, where it did.
        """
        stage, pool = self.stage, self.subset.pool
        captions = stage.captions and stage.captions.open(pool, folder, stage.seed, ranks, refined)
        return Pairs(
            self.subset, stage.augmentation, image_size(loaded.model), loaded.tokenizer, stage.seed,
            stage.cache, captions,
        )  # fmt: skip


def make_feed(stage: TrainSettings, subset: Subset) -> Feed:
    """Lay out the stream of a run.

    Args:
        stage: The settings.
        subset: The pool seen through the keep list.

    Raises:
        ConfigError: Budget, batch, weights or cache do not fit what is kept.
    """
    kept = len(subset)
    if stage.held_out:
        rows = subset.rows[~is_held_out(subset.pool.uid_hashes[subset.rows], stage.held_out)]
        subset = subset.of(rows)
    windows = None
    if stage.streaming is not None:
        windows = stage.streaming.windows(subset.pool, subset.rows, stage.seed)
        opened = stage.streaming.open(subset.pool, subset.rows)
        subset = subset.within(opened)
    if stage.mixture is None:
        order = Order(subset.keys, stage.seed, windows)
        horizon = plan_horizon(len(subset), stage.batch_size, stage.samples_seen, stage.epochs, stage.round_budget)
        return Feed(subset, kept - len(subset), order, horizon, stage)
    weights = stage.mixture.weights(subset.pool, subset.rows)
    mixed = MixedOrder(subset.keys, stage.seed, weights, windows)
    steps = stage.samples_seen and whole_steps(stage.samples_seen, stage.batch_size, stage.round_budget)
    horizon = mixed_horizon(mixed, stage.batch_size, steps, stage.epochs)
    return Feed(subset, kept - len(subset), mixed, horizon, stage)


def image_size(model: Any) -> int:
    """The side of the pictures that a model of open_clip is trained on, in pixels."""
    size = model.visual.preprocess_cfg["size"]
    return size if isinstance(size, int) else size[0]
