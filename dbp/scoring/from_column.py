"""A score that is a column of numbers."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dbp.data.column import Column
from dbp.data.scores import Scores
from dbp.engine.stage import Stage
from dbp.engine.work import Work
from dbp.errors import ConfigError
from dbp.offers import ReadsColumn


@dataclass(frozen=True)
class FromColumn(ReadsColumn, Stage):
    """The numbers of a column, in float32; missing where the column is.

    Args:
        column: Its name, of `columns`.
        higher_is_better: Whether the best rows have the highest values.
    """

    name: ClassVar[str] = "score"
    needs: ClassVar[tuple[str, ...]] = ("columns",)
    makes: ClassVar[type] = Scores

    column: str
    higher_is_better: bool = True

    def run(self, work: Work, columns: Column) -> dict[str, Any]:
        if columns.numbers is None:
            raise ConfigError(
                f"score.column={self.column} is a column of texts, such as {columns.texts[0]!r}, and a score is a "
                "number. Name a column of numbers."
            )
        values = columns.numbers.astype(np.float32)
        Scores(values, label=self.column, higher_is_better=self.higher_is_better).save(work.folder)
        missing = int(np.isnan(values).sum())
        return {"rows": len(values) - missing, "without score": missing}
