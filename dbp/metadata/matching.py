"""Which entries each caption holds, found for all entries in one pass over the caption.

Aho and Corasick 1975: one automaton for all entries, whose time for a caption does not depend on how many
there are. 500,000 entries take about 200 MB and 2 seconds to build, once in each process.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dbp.data.entries import Entries
from dbp.data.keep_list import KeepList
from dbp.data.matches import Matches
from dbp.data.pool import Pool
from dbp.engine.parts import Parted
from dbp.engine.work import Part, Work
from dbp.errors import WorldError
from dbp.metadata.rules import Rule, caption_text, entry_text

ROWS = 65_536  # rows of a part: seconds of work, a few MB
CAPTIONS = 4096  # captions held at once


class Finder:
    """All entries as one automaton."""

    def __init__(self, entries: Entries, rule: Rule) -> None:
        import ahocorasick

        self.rule: Rule = rule
        self.num_impossible = self.num_equal = 0
        self._automaton: Any = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for number, entry in enumerate(entries.texts):
            text = entry_text(entry, rule)
            if text is None:
                self.num_impossible += 1
            elif text in self._automaton:  # the first of entries that are equal when folded
                self.num_equal += 1
            else:
                self._automaton.add_word(text, number)
        self._is_empty = len(self._automaton) == 0
        self._automaton.make_automaton()

    def find(self, caption: str) -> list[int]:
        """The numbers of the entries that a caption holds, ascending, each once."""
        if self._is_empty:
            return []
        found = self._automaton.iter(caption_text(caption, self.rule))
        return sorted({number for _, number in found})


_FINDER: dict[tuple[str, Rule], Finder] = {}  # the last one that this process used


def finder(entries: Entries, rule: Rule) -> Finder:
    """The automaton of some entries, built once in a process."""
    if (entries.digest, rule) not in _FINDER:
        _FINDER.clear()
        _FINDER[entries.digest, rule] = Finder(entries, rule)
    return _FINDER[entries.digest, rule]


@dataclass(frozen=True)
class Matching(Parted):
    """Find the entries that each valid row's caption holds.

    Args:
        rule: `reference`: case and spacing as MetaCLIP published them; `unspaced`: as MetaCLIP 2 did, the same, but
            an entry's end that is of a script without blanks, or a mark, may lie within a run of letters;
            `folded`: letters in any case, marks do not keep a word from being found.

    Source: Xu et al. 2024, section 3.2; for `unspaced` the code of MetaCLIP 2. Departure: one list of entries for
        captions of all languages, where theirs asks a model of languages for the list of each caption.
    """

    name: ClassVar[str] = "match"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool", "entries")
    makes: ClassVar[type] = Matches
    unit: ClassVar[str] = "blocks of captions"
    keeps_parts: ClassVar[bool] = True

    rule: Rule

    def parts(self, pool: Pool, **inputs: Any) -> list[Part]:
        """Runs of rows."""
        count = -(-pool.num_rows // ROWS)
        return [Part(f"part-{number:07d}", number) for number in range(count)]

    def make(  # type: ignore[override]
        self, part: Part, folder: Path, /, rows: KeepList, pool: Pool, entries: Entries
    ) -> dict[str, Any]:
        start, stop = part.number * ROWS, min((part.number + 1) * ROWS, pool.num_rows)
        own = start + np.flatnonzero(rows.mask[start:stop])
        sizes = np.zeros(stop - start, np.int64)
        find, numbers = finder(entries, self.rule).find, array("I")
        for first in range(0, len(own), CAPTIONS):
            block = own[first : first + CAPTIONS]
            for row, caption in zip(block - start, pool.captions(block), strict=True):
                found = find(caption)
                numbers.extend(found)
                sizes[row] = len(found)
        np.save(folder / "ends.npy", np.concatenate([[0], np.cumsum(sizes)]))
        np.save(folder / "numbers.npy", np.array(numbers, np.uint32))
        return {"rows": len(own), "matched": int(np.count_nonzero(sizes)), "matches": len(numbers)}

    def finish(  # type: ignore[override]
        self, work: Work, counts: Mapping[str, dict[str, Any]], rows: KeepList, pool: Pool, entries: Entries
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
        about = finder(entries, self.rule)
        return {
            "rows": rows.num_kept,
            "matched": matched,
            "no entry matches": rows.num_kept - matched,
            "matches": int(totals.sum()),
            "entries": len(entries),
            "entries without a match": int(np.count_nonzero(totals == 0)),
            "entries that no caption can hold": about.num_impossible,
            "entries equal when folded": about.num_equal,
        }
