"""Training as a stage: a pool and a keep list in, a checkpoint out, at an exact budget."""

from dataclasses import dataclass
from typing import Any, ClassVar

from dbp.data.captions import Captions
from dbp.data.column import Column
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.part_jobs import write_job
from dbp.engine.stage import Stage
from dbp.engine.work import Work
from training.config import resolve_precision
from training.feed.subset import Subset
from training.resume.checkpoint import Checkpoint
from training.resume.ranks import here
from training.settings import TrainSettings


@dataclass(frozen=True)
class Train(TrainSettings, Stage):
    """Train a model on the pairs of a pool that a keep list keeps; the settings are its parameters."""

    name: ClassVar[str] = "train"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("pool", "keep")
    takes: ClassVar[tuple[str, ...]] = ("refined", "column", "clusters", "columns", "matches", "reference")
    makes: ClassVar[type] = Checkpoint
    home: ClassVar[str] = "runs"

    def identity(self) -> dict[str, Any]:
        return {"precision": resolve_precision(self.precision, self.device)}

    def run(  # type: ignore[override]
        self,
        work: Work,
        pool: Pool,
        keep: KeepList,
        refined: Captions | None = None,
        column: Column | None = None,
        **beside: Any,
    ) -> dict[str, Any]:
        from training.run import train

        ranks = here()
        if ranks.size > 1:
            ranks.say({"train": str(write_job(work))})
        return train(self, work, Subset.of(pool, keep, column), ranks, refined, beside)
