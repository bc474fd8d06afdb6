"""Stages that let fewer rows through: rows in, fewer rows out, with a reason for each row that went."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from dbp.data.keep_list import KeepList
from dbp.engine.stage import Stage
from dbp.engine.work import Work


@dataclass(frozen=True)
class Narrowing(Stage):
    """Dedup, filter and select are stages of this kind."""

    makes: ClassVar[type] = KeepList

    @abstractmethod
    def decide(self, **inputs: Any) -> tuple[KeepList, dict[str, Any]]:
        """The keep list, with the values behind the decisions where it has them; and counts.

        A pure function of the inputs: `dbp why` calls it again to say what was compared with what.
        """

    def at_most(self, num_rows: int) -> int:
        """The most rows that can be left of so many, as far as the settings tell."""
        return num_rows

    def run(self, work: Work, **inputs: Any) -> dict[str, Any]:
        kept, counts = self.decide(**inputs)
        kept.save(work.folder)
        before = inputs["rows"].num_kept if "rows" in inputs else kept.num_pool_rows
        return {"rows": before, "kept": kept.num_kept, "keep list": kept.digest, **counts}


@dataclass(frozen=True)
class PassAll(Narrowing):
    """Let every row pass."""

    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def decide(self, rows: KeepList) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        return rows, {}
