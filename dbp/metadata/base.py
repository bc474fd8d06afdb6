"""What every source of entries is: texts in, a clean list out, with what went by reason."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from dbp.config import require
from dbp.data.entries import Entries, cleaned
from dbp.engine.stage import Stage, parameters
from dbp.engine.work import Work
from dbp.errors import WorldError


@dataclass(frozen=True)
class EntrySource(Stage):
    """Makes the list of entries; the same input gives the same list in the same order."""

    name: ClassVar[str] = "entries"
    makes: ClassVar[type] = Entries
    by_language: ClassVar[bool] = False  # whether it makes a list for each language

    @abstractmethod
    def texts(self, **inputs: Any) -> Iterable[str]:
        """Entries in their order; blank ones and repeated ones are taken out later."""

    def run(self, work: Work, **inputs: Any) -> dict[str, Any]:
        texts, went = cleaned(self.texts(**inputs))
        if not texts:
            said = ", ".join(f"{reason}: {count:,}" for reason, count in went.items())
            raise WorldError(
                f"no entry is left for MetaCLIP's metadata ({said or 'the source is empty'}). Give another "
                "source, or lower its thresholds (select.metadata)."
            )
        Entries(texts).save(work.folder)
        return {"entries": len(texts), **went}


@dataclass(frozen=True)
class Numbers(EntrySource):
    """Whole numbers in words of digits.

    Args:
        count: 0 to count - 1.

    Source: MetaCLIP's code adds "0" to "99"; the paper does not say so.
    """

    count: int

    def __post_init__(self) -> None:
        require(self.count >= 1, "count", self.count, "at least 1")

    def texts(self, **inputs: Any) -> Iterable[str]:
        return map(str, range(self.count))


@dataclass(frozen=True)
class Joined(EntrySource):
    """Several sources as one list: those of the first, then what the second adds, and so on."""

    @abstractmethod
    def sources_in_order(self) -> tuple[EntrySource, ...]:
        """The sources, first to last."""

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        """What any of the sources needs."""
        every = (name for source in self.sources_in_order() for name in source.needs)
        return tuple(dict.fromkeys(every))

    def identity(self) -> dict[str, Any]:
        return {
            "sources": [
                [type(source).__name__, source.version, parameters(source)] for source in self.sources_in_order()
            ]
        }

    def texts(self, **inputs: Any) -> Iterable[str]:
        for source in self.sources_in_order():
            yield from source.texts(**{name: inputs[name] for name in source.needs})


@dataclass(frozen=True)
class Combined(Joined):
    """Any sources as one list.

    Args:
        sources: First to last; each names its `_target_`.
    """

    sources: tuple[EntrySource, ...]

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "sources", list(self.sources), "a list of sources")

    def sources_in_order(self) -> tuple[EntrySource, ...]:
        return self.sources
