"""Which entries each caption holds, found for all entries in one pass over the caption.

Aho and Corasick 1975: one automaton for all entries, whose time for a caption does not depend on how many
there are. 500,000 entries take about 200 MB and 2 seconds to build, once in each process.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64

from dbp.data.column import Column
from dbp.data.entries import Entries
from dbp.data.keep_list import KeepList
from dbp.data.matches import Matches
from dbp.data.pool import Pool
from dbp.engine.parts import Parted
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError, WorldError
from dbp.metadata.rules import Rule, caption_text, entry_text

ROWS = 65_536  # rows of a part: seconds of work, a few MB
CAPTIONS = 4096  # captions held at once
OTHER = "other"  # the list for captions of languages that have none, and of no language


class Finder:
    """All entries as one automaton."""

    def __init__(self, entries: Entries, rule: Rule) -> None:
        import ahocorasick

        self.rule: Rule = rule
        self._automaton: Any = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for number, entry in enumerate(entries.texts):
            text = entry_text(entry, rule)
            if text is not None and text not in self._automaton:  # the first of entries that are equal when folded
                self._automaton.add_word(text, number)
        self._is_empty = len(self._automaton) == 0
        self._automaton.make_automaton()

    def find(self, caption: str) -> list[int]:
        """The numbers of the entries that a caption holds, ascending, each once."""
        if self._is_empty:
            return []
        found = self._automaton.iter(caption_text(caption, self.rule))
        return sorted({number for _, number in found})


def lists_of(language: Column, lists: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """The list of each row, by its place; -1 where none is of its language, and there is no list `other`.

    Raises:
        ConfigError: The column holds numbers.
    """
    if language.codes is None:
        raise ConfigError("select.language is a column of numbers, and languages are texts. Name one of texts.")
    places = {name: place for place, name in enumerate(lists)}
    other = places.get(OTHER, -1)
    found = [places.get(text, other) for text in language.texts]
    return np.array([*found, other], np.int64)[language.codes]  # the last is for rows without a value


class Finders:
    """The automata of some entries: one, or one for each language, built when a caption of it comes."""

    _last: ClassVar[tuple[tuple[str, Rule], "Finders"] | None] = None  # what this process used last

    def __init__(self, entries: Entries, rule: Rule) -> None:
        self._entries = entries
        self._rule: Rule = rule
        self._places = list(entries.lists.values()) or [(0, len(entries))]
        self._made: dict[int, Finder] = {}

    @classmethod
    def of(cls, entries: Entries, rule: Rule) -> "Finders":
        """Those of some entries, built once in a process."""
        key = (entries.digest, rule)
        if cls._last is None or cls._last[0] != key:
            cls._last = (key, cls(entries, rule))
        return cls._last[1]

    def find(self, caption: str, number: int) -> list[int]:
        """The entries of a list that a caption holds, ascending, each once; none where there is no list (-1)."""
        if number < 0:
            return []
        start = self._places[number][0]
        return [start + found for found in self._of(number).find(caption)]

    def about(self) -> tuple[int, int]:
        """Entries that no caption can hold, and entries that are equal to an earlier one of their list."""
        num_impossible = num_equal = 0
        for start, stop in self._places:
            texts = [entry_text(entry, self._rule) for entry in self._entries.texts[start:stop]]
            num_impossible += (impossible := texts.count(None))
            num_equal += len(texts) - impossible - len({*texts} - {None})
        return num_impossible, num_equal

    def _of(self, number: int) -> Finder:
        if number not in self._made:
            start, stop = self._places[number]
            self._made[number] = Finder(Entries(self._entries.texts[start:stop]), self._rule)
        return self._made[number]


@dataclass(frozen=True)
class Matching(Parted):
    """Find the entries that each valid row's caption holds.

    Args:
        rule: `reference`: case and spacing as MetaCLIP published them; `unspaced`: as MetaCLIP 2 did, the same, but
            an entry's end that is of a script without blanks, or a mark, may lie within a run of letters;
            `folded`: letters in any case, marks do not keep a word from being found.

        by_language: Look for the entries of the list of each caption's language, which a column names.

    Source: Xu et al. 2024, section 3.2; for `unspaced` and `by_language` the code of MetaCLIP 2, which asks a model
        for the language of a caption.
    """

    name: ClassVar[str] = "match"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool", "entries", "language")
    makes: ClassVar[type] = Matches
    unit: ClassVar[str] = "blocks of captions"
    keeps_parts: ClassVar[bool] = True

    rule: Rule
    by_language: bool = False

    def unneeded(self) -> set[str]:
        return set() if self.by_language else {"language"}

    def parts(self, pool: Pool, **inputs: Any) -> list[Part]:
        """Runs of rows."""
        count = -(-pool.num_rows // ROWS)
        return [Part(f"part-{number:07d}", number) for number in range(count)]

    def make(  # type: ignore[override]
        self,
        part: Part,
        folder: Path,
        /,
        rows: KeepList,
        pool: Pool,
        entries: Entries,
        language: Column | None = None,
    ) -> dict[str, Any]:
        start, stop = part.number * ROWS, min((part.number + 1) * ROWS, pool.num_rows)
        own = start + np.flatnonzero(rows.mask[start:stop])
        sizes = np.zeros(stop - start, np.int64)
        numbers = array("I")
        names = list(entries.lists)
        lists = np.zeros(stop - start, np.int64) if language is None else lists_of(language, names)[start:stop]
        finders = Finders.of(entries, self.rule)
        for first in range(0, len(own), CAPTIONS):
            block = own[first : first + CAPTIONS]
            for row, caption in zip(block - start, pool.captions(block), strict=True):
                found = finders.find(caption, int(lists[row]))
                numbers.extend(found)
                sizes[row] = len(found)
        np.save(folder / "ends.npy", np.concatenate([[0], np.cumsum(sizes)]))
        np.save(folder / "numbers.npy", np.array(numbers, np.uint32))
        return {"rows": len(own), "matched": int(np.count_nonzero(sizes)), "matches": len(numbers)}

    def finish(  # type: ignore[override]
        self,
        work: Work,
        counts: Mapping[str, dict[str, Any]],
        rows: KeepList,
        pool: Pool,
        entries: Entries,
        language: Column | None = None,
    ) -> dict[str, Any]:
        totals = np.zeros(len(entries), np.int64)
        for name in counts:
            numbers = np.load(work.shared / name / "numbers.npy", mmap_mode="r")
            totals += np.bincount(numbers, minlength=len(entries))
        np.save(work.folder / "counts.npy", totals)
        entries.save(work.folder)
        matched = sum(found["matched"] for found in counts.values())
        if not matched:
            raise WorldError(
                f"none of the {rows.num_kept:,} captions holds one of the {len(entries):,} entries, such as "
                f"{entries.texts[0]!r} (rule {self.rule}). Give entries in the captions' language "
                "(select.metadata), set select.rule=folded, or take them from the captions "
                "(select=metaclip_glyphs)."
            )
        about = Finders.of(entries, self.rule).about()
        without = {}
        if language is not None:
            has_list = lists_of(language, list(entries.lists)) >= 0
            without = {"no list of their language": int(np.count_nonzero(rows.mask & ~has_list))}
        return {
            "rows": rows.num_kept,
            "matched": matched,
            "no entry matches": rows.num_kept - matched,
            "matches": int(totals.sum()),
            "entries": len(entries),
            "entries without a match": int(np.count_nonzero(totals == 0)),
            "entries that no caption can hold": about[0],
            "entries equal when folded": about[1],
            **without,
        }
