"""Stages that let fewer rows through: rows in, fewer rows out, with a reason for each row that went."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from dbp.data.keep_list import KeepList
from dbp.engine.progress import log
from dbp.engine.stage import Stage
from dbp.engine.work import Work

SUSPICIOUS = 0.5  # share of rows left by dedup below which it is called out


@dataclass(frozen=True)
class Narrowing(Stage):
    """Dedup, filter and select are stages of this kind."""

    makes: ClassVar[type] = KeepList
    if_few_stay: ClassVar[str] = (  # what dedup says when it removes more than half
        "pools rarely hold so many copies, but a weak encoder finds unlike images alike. Lower dedup.epsilon or "
        "choose another encoder.dedup; `dbp report` shows pairs"
    )

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
        is_asked_for = self.at_most(before) < before
        if self.name == "dedup" and not is_asked_for and kept.num_kept < SUSPICIOUS * before:
            log.warning(
                "dedup removed %s of %s rows; %s.", f"{before - kept.num_kept:,}", f"{before:,}", self.if_few_stay
            )
        return {"rows": before, "kept": kept.num_kept, "keep list": kept.digest, **counts}


@dataclass(frozen=True)
class PassAll(Narrowing):
    """Let every row pass."""

    needs: ClassVar[tuple[str, ...]] = ("rows",)

    def decide(self, rows: KeepList) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        return rows, {}
