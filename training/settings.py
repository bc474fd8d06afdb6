"""The settings of a training run, in groups by who reads them; configs and keys know one flat list."""

from dataclasses import dataclass

from dbp.config import require
from dbp.engine.stage import runtime
from training.account.horizon import Budget
from training.account.metrics import Logger
from training.config import Model, Optimiser, Precision
from training.feed.augmentation import Augmentation
from training.feed.captions import CaptionMix
from training.feed.streaming import Streaming
from training.feed.weights import Mixture
from training.online.base import Online
from training.watching.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is learned, and from what.

    Args:
        model: The architecture.
        optimiser: AdamW and its schedule.
        augmentation: How images are brought to size and changed.
        seed: Of the weights, the order and the augmentation.
        precision: `fp32`, `bf16`, or `auto`: bf16 on a GPU that multiplies it, else fp32.
        held_out: Share of the pool's uids that no arm trains on, for the loss on them; in [0, 1).
        mixture: How often each kept sample stands in an epoch; null for once.
        captions: Refined captions mixed in; null for the pool's own.
        streaming: How shards come that lie elsewhere; null for shards on a disk.
        online: How each batch is chosen among more candidates; null for the stream as it comes.
        average_last_samples: The run ends in the mean of its weights over so many last samples, rounded up
            to whole steps; null for the last weights, as in the papers.
    """

    model: Model
    optimiser: Optimiser
    augmentation: Augmentation
    seed: int
    precision: Precision
    held_out: float = 0.0
    mixture: Mixture | None = None
    captions: CaptionMix | None = None
    streaming: Streaming | None = None
    online: Online | None = None
    average_last_samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Where it is computed and how fast.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`; with several ranks `auto` gives each its own GPU.
        num_workers: Processes that decode; 0 decodes in the training process.
        prefetch: Batches that each of them prepares ahead; null for up to four, within 4 GiB in all.
        cache: Keep fitted images and tokens in memory after their first use (small pools).
        chunk_size: Pairs of one device that go through the model at a time (GradCache): the same
            gradient with less memory, for one more forward; null for all at once.
        recompute: Share of the transformer blocks whose activations are computed again instead of
            saved, from 0 to 1.
        trim_captions: Cut captions behind the longest of their group, by length, in a batch: the same
            features and gradients but for last bits, for less arithmetic. Without effect under
            `compile`, where each length would be compiled anew, and on a text tower that is not causal.
        compile: Let torch compile the model: minutes at the start, faster steps on a GPU.
        score_batch: Candidates of one device that go through the learner at a time, where it scores them.
        channels_last: Keep convolutions' weights with the channels last: faster steps of a ResNet.
    """

    device: str = runtime("auto")
    num_workers: int = runtime(0)
    prefetch: int | None = runtime(None)
    cache: bool = runtime(False)
    chunk_size: int | None = runtime(None)
    recompute: float = runtime(0.0)
    trim_captions: bool = runtime(False)
    compile: bool = runtime(False)
    channels_last: bool = runtime(False)
    score_batch: int = runtime(1024)


@dataclass(frozen=True, kw_only=True)
class Resuming:
    """When a checkpoint to resume from is written."""

    checkpoint_every_samples: int | None = runtime(None)  # pairs between two of them; null for none
    checkpoint_every_minutes: float | None = runtime(None)  # minutes between two of them; null for none
    keep_checkpoints: int = runtime(2)  # how many of the last ones stay until the run is complete


@dataclass(frozen=True, kw_only=True)
class Logging:
    """What is written down and watched, and when a bad pool stops the run."""

    loggers: tuple[Logger, ...] = runtime(())  # mirrors of the metrics
    log_every_samples: int = runtime(100_000)  # pairs between two rows of metrics; rounded up to whole steps
    watch: Watch | None = runtime(None)  # what is measured on the way, and when; it changes no weight
    most_substitutes: float = runtime(0.01)  # above this share of images that cannot be decoded the run stops
    count_twins: bool = runtime(False)  # count pairs of equal content in a batch: 24 bytes, a sort of the kept rows


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Logging, Resuming, Speed, Budget, Objective):
    """How a model is trained: what is learned, for how long, and, of no effect on it, how fast."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2, for negatives")
        require(0 <= self.held_out < 1, "held_out", self.held_out, "from 0 to below 1")
        for name in ("seed", "num_workers"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("recompute", "most_substitutes"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "from 0 to 1")
        require(self.keep_checkpoints > 0, "keep_checkpoints", self.keep_checkpoints, "1 or more")
        for name in (
            "epochs", "log_every_samples", "checkpoint_every_samples", "checkpoint_every_minutes", "chunk_size",
            "prefetch", "average_last_samples", "score_batch",
        ):  # fmt: skip
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "above 0")
        self.check_budget()
        if self.online is not None:
            self.online.check(self.batch_size)

    @property
    def candidates(self) -> int | None:
        """Of each batch, where it is chosen among more."""
        return None if self.online is None else self.online.candidates(self.batch_size)

    def unread(self) -> set[str]:
        """Fields that do not matter beside the others: without scoring, equal samples are equal FLOPs."""
        return set() if self.online is not None and self.online.scores else {"budget"}
