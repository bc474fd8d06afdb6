"""A score that the pool's metadata holds already."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.stage import Stage
from dbp.engine.work import Work
from dbp.pools.datacomp import score_column


@dataclass(frozen=True)
class ColumnScore(Stage):
    """A numeric column of the pool, in float32; missing where it is null or not a number.

    Args:
        column: Its name, such as `clip_l14_similarity_score` of a DataComp pool.
        higher_is_better: Whether the best rows have the highest values.
    """

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    makes: ClassVar[type] = Scores

    column: str
    higher_is_better: bool = True

    def run(self, work: Work, pool: Pool) -> dict[str, Any]:
        values = score_column(pool, self.column, "score.column")
        Scores(values, label=self.column, higher_is_better=self.higher_is_better).save(work.folder)
        missing = int(np.isnan(values).sum())
        return {"rows": len(values) - missing, "without score": missing}
