"""What a run measures of its model on the way: settings.

Training never imports evaluation: an evaluator is a dataclass that the config names by `_target_`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from dbp.config import require
from dbp.engine.stage import runtime
from dbp.errors import ConfigError
from training.feed.subset import held_out_rows
from training.watching.watched import Measure, Watched


@dataclass(frozen=True)
class Evaluator(ABC):
    """Measures a model without changing it. All ranks call it together, and all get the numbers."""

    @abstractmethod
    def titles(self) -> list[str]:
        """What the names of its numbers begin with, before a slash."""

    @abstractmethod
    def open(self, run: Watched) -> Measure:
        """Prepare once, before the first step, so that what is wrong stops the run at its start.

        Returns:
            A function that measures the model as it is when called: in evaluation mode, without
            gradients and autocast. Its numbers are the same for any number of ranks and workers.
        """


@dataclass(frozen=True)
class Watch:
    """When a run is measured, and by what. It never changes the weights."""

    every_samples: int | None  # pairs between two evaluations, rounded up to whole steps; null for the end alone
    evaluators: tuple[Evaluator, ...]  # what measures; none for no evaluation at all

    def __post_init__(self) -> None:
        every = self.every_samples
        require(every is None or every > 0, "every_samples", every, "above 0, or null for the end alone")
        titles = [title for evaluator in self.evaluators for title in evaluator.titles()]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise ConfigError(
                f"evaluators={[type(e).__name__ for e in self.evaluators]}: {twice[0]} would be "
                "measured twice under one name. Name each task in one evaluator."
            )


@dataclass(frozen=True)
class HeldOut(Evaluator):
    """The contrastive loss, and recall at 1 both ways, on pairs of the pool that no arm trains on.

    Both depend on how many pairs compete, so `batch_size` is fixed, whatever the run's own batch.
    """

    batch_size: int  # pairs in one batch; each is a candidate for all others
    num_samples: int  # most pairs to measure on; whole batches of them are taken
    num_workers: int = runtime(0)  # processes that decode

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "batch_size", self.batch_size, "at least 2, for negatives")
        must = f"at least batch_size={self.batch_size}"
        require(self.num_samples >= self.batch_size, "num_samples", self.num_samples, must)
        require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")

    def titles(self) -> list[str]:
        return ["held_out"]

    def open(self, run: Watched) -> Measure:
        """Choose the rows and fix the batches.

        Raises:
            ConfigError: Nothing is held out, or less than one batch.
        """
        from training.watching.held_out import HeldOutLoss

        if run.held_out == 0:
            raise ConfigError(
                "train.held_out=0, and a HeldOut evaluator of train.watch has no pairs to measure "
                "on. Set train.held_out to a small share such as 0.01, or take the evaluator out."
            )
        rows = held_out_rows(run.pool, run.held_out)[: self.num_samples]
        rows = rows[: len(rows) // self.batch_size * self.batch_size]
        if len(rows) == 0:
            raise ConfigError(
                f"train.held_out={run.held_out:g} of {run.pool.num_rows:,} rows is less than one "
                f"batch of {self.batch_size:,} for the held-out loss. Raise train.held_out, or "
                "lower batch_size of its evaluator."
            )
        return HeldOutLoss(run, rows.reshape(-1, self.batch_size), self.num_workers)
