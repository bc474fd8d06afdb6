"""Several filters as one: each sees what the one before it left, and gives its own reasons."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.engine.stage import Stage
from dbp.narrowing import Narrowing


@dataclass(frozen=True)
class Chain(Narrowing):
    """A filter that is made of others."""

    name: ClassVar[str] = "filter"

    @abstractmethod
    def steps(self) -> tuple[Any, ...]:
        """The filters, first to last."""

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """What any of the filters needs."""
        return tuple(dict.fromkeys(["rows", *(s.offered_as(n) for s in self.steps() for n in s.needs)]))

    def identity(self) -> dict[str, Any]:
        """Kinds and versions of the filters; what they read beside their fields."""
        said: dict[str, Any] = {"steps": [[type(s).__name__, s.version, _read(s)] for s in self.steps()]}
        reads = [[step.offered_as(need) for need in step.needs] for step in self.steps()]
        if reads != [list(step.needs) for step in self.steps()]:  # which step reads which score
            said["reads"] = reads
        return said

    def at_most(self, num_rows: int) -> int:
        """The most rows that can be left of so many."""
        for step in self.steps():
            num_rows = step.at_most(num_rows)
        return num_rows

    def decide(self, rows: KeepList, **inputs: Any) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        counts: dict[str, Any] = {}
        for step in self.steps():
            needed = {name: inputs[step.offered_as(name)] for name in step.needs if name != "rows"}
            rows, found = step.decide(rows=rows, **needed)
            for name, value in found.items():
                counts[name] = counts[name] + value if name in counts else value
        return rows, counts


def _read(step: Any) -> Any:
    return step.identity() if hasattr(step, "identity") else None


@dataclass(frozen=True)
class All(Chain):
    """Rows that pass every one of some filters.

    A fraction refers to the rows that reach its filter, so a filter by fraction stands first to refer to
    all of them.

    Args:
        filters: The filters, first to last; each names its `_target_`.
    """

    filters: tuple[Stage, ...]

    def __post_init__(self) -> None:
        require(len(self.filters) > 0, "filters", list(self.filters), "a list of filters")
        for number, step in enumerate(self.filters):
            kind = type(step).__name__
            is_filter = isinstance(step, Narrowing) and step.name == "filter"
            require(is_filter, f"filters[{number}]", kind, "a filter, as those in configs/filter")

    def steps(self) -> tuple[Any, ...]:
        return self.filters
