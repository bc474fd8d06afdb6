"""MetaCLIP's balancing over the matches of a pool, a block of rows at a time.

    p_e = t / max(c_e, t)                       an entry with more than t captions keeps about t of them
    P   = 1 - prod over its entries (1 - p_e)   a row's probability to be kept

A row is kept where u < P, u being a random number of its uid and the seed. So a row's fate depends on no
other row, and a larger t keeps all that a smaller one keeps. To keep exactly so many rows, t is raised until
so many are kept; it is then the row with the next worse luck that goes first. A t that was found so and is
given instead keeps the same rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt16, UInt64

from dbp.data.column import Column
from dbp.data.entries import Entries
from dbp.data.keep_list import KeepList
from dbp.data.matches import MatchedRows, Matches
from dbp.data.pool import Pool
from dbp.errors import ConfigError, nearest
from dbp.metadata.matching import lists_of

NO_LANGUAGE = "(none)"  # of rows without a value in the column
NO_LIST = "(no list)"  # of rows whose language has no list of entries
MOST_LANGUAGES = 1024  # that share one list; 8 bytes an entry and language stay in memory
FEW = 1 << 18  # undecided rows that are held in memory
Combine = Literal["independent", "sum"]


@dataclass(frozen=True)
class Languages:
    """The language of each row, as numbers, and their names."""

    of_row: UInt16[np.ndarray, " n"]
    names: tuple[str, ...]
    reference: int = 0

    @classmethod
    def of(
        cls,
        pool: Pool,
        num_rows: int,
        name: str | None,
        column: Column | None,
        reference: str,
        lists: Sequence[str],
    ) -> "Languages":
        """The languages that a column names; one for all rows where no column is asked for.

        Args:
            name: What `select.language` says.
            column: The column of this name; none for one that the pool's index holds.
            lists: The languages that have a list of entries; none where one list serves all.

        Raises:
            ConfigError: There is no such column, it holds numbers or too many texts, or no row is in the reference
                language.
        """
        if name is None:
            return cls(np.zeros(num_rows, np.uint16), ("",))
        column = column or _of_index(pool, name)
        at = lists_of(column, lists)
        if lists:
            names = (*lists, NO_LIST) if (at < 0).any() else tuple(lists)
            at[at < 0] = len(lists)
        else:
            assert column.codes is not None, "a column of texts"
            has_value = column.has_value
            names = column.texts if has_value.all() else (*column.texts, NO_LANGUAGE)
            at = np.where(has_value, column.codes, len(column.texts))
        if len(names) > MOST_LANGUAGES:
            raise ConfigError(
                f"select.language={name}: the column has {len(names):,} different values, such as {names[0]!r}, "
                f"and languages are {MOST_LANGUAGES:,} at most. Name a column of the captions' languages."
            )
        if reference not in names:
            raise ConfigError(
                f"select.reference_language={reference}: no row of the pool is in it. {nearest(reference, names)}"
            )
        return cls(at.astype(np.uint16), names, names.index(reference))

    def places(self, entries: Entries) -> list[slice]:
        """Where the counts of each language's entries stand among those of all."""
        if entries.lists:
            return [slice(*entries.lists.get(name, (0, 0))) for name in self.names]
        return [slice(n * len(entries), (n + 1) * len(entries)) for n in range(len(self.names))]

    def first(self, entries: Entries) -> Int64[np.ndarray, " l"]:
        """What is added to the number of an entry, for the place of its count in a language."""
        return np.arange(len(self.names), dtype=np.int64) * (0 if entries.lists else len(entries))


def _of_index(pool: Pool, name: str) -> Column:
    """A column of the pool's index."""
    if name not in pool.index.names:
        raise no_column(name, pool.index.names)
    try:
        codes, texts = pool.index.codes(name)
    except ValueError as error:
        raise ConfigError(
            f"select.language={name}: this column of the index cannot be read as languages: {error}. Name it under "
            f"columns, as in +columns.{name}=pool:{name}."
        ) from error
    known = [text for text in texts if text]
    table = np.array([known.index(text) if text else -1 for text in texts] or [-1], np.int32)
    return Column(codes=table[codes], texts=tuple(known))


def no_column(name: str, known: Sequence[str]) -> ConfigError:
    """The refusal of a language column that is not there."""
    near = f" {nearest(name, known)}" if known else ""
    return ConfigError(
        f"select.language={name}: the pool has no such column.{near} A column gets a name under "
        f"columns, as in +columns.{name}=json:{name}; of a DataComp pool, pool.columns=[{name}] carries it."
    )


@dataclass(frozen=True)
class Balance:
    """What balancing knows of a pool; 11 bytes a row and 16 an entry and language stay in memory.

    Where each language has a list of its own, an entry is of one language.

    Args:
        matches: The entries of each row.
        mask: Rows that may be kept.
        counts: Captions of each language that hold each entry, by `languages.places`.
        languages: Of the rows.
        hashes: Of the rows' uids.
        seed: Of the random numbers.
        combine: `independent`, or `sum`: min(1, sum of p_e).
    """

    matches: Matches
    mask: Bool[np.ndarray, " n"]
    counts: Int64[np.ndarray, " c"]
    languages: Languages
    hashes: UInt64[np.ndarray, " n"]
    seed: int
    combine: Combine

    @classmethod
    def over(
        cls,
        rows: KeepList,
        pool: Pool,
        matches: Matches,
        languages: Languages,
        of: Literal["pool", "rows"],
        seed: int,
        combine: Combine,
    ) -> "Balance":
        """Count the matches of the pool, or of the rows at hand, in each language.

        Raises:
            ConfigError: No row in the reference language holds an entry.
        """
        counts = matches.counts
        if of == "rows" or (len(languages.names) > 1 and not matches.entries.lists):
            # A row that is not valid has no match, so that all rows stand for the valid ones.
            among = rows.mask if of == "rows" else np.ones_like(rows.mask)
            counts = counted(matches, among, languages)
        if not counts[languages.places(matches.entries)[languages.reference]].any():
            name = languages.names[languages.reference]
            raise ConfigError(
                f"no row{f' in the reference language {name}' if name else ''} at hand holds one of the "
                f"{len(matches.entries):,} entries, so that no threshold can be set. Give other entries "
                "(select.metadata), select.counts=pool, or another select.reference_language."
            )
        return cls(matches, rows.mask, counts, languages, pool.uid_hashes, seed, combine)

    @property
    def by_language(self) -> list[Int64[np.ndarray, " e"]]:
        """The counts of each language."""
        return [self.counts[place] for place in self.languages.places(self.matches.entries)]

    # thresholds

    @cached_property
    def _tails(self) -> list[tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, " d"]]]:
        """For each language the distinct counts, and the share of matches of entries with at most that."""
        found = []
        for own in self.by_language:
            distinct, times = np.unique(own[own > 0], return_counts=True)
            mass = np.cumsum(distinct * times, dtype=np.float64)
            share = mass / mass[-1] if len(mass) else mass
            found.append((np.append(0.0, distinct), np.append(0.0, share)))
        return found

    def thresholds(self, threshold: float) -> Float64[np.ndarray, " l"]:
        """The threshold of each language: the one with the reference language's share of tail.

        Between two counts that occur, the share is taken to rise evenly, so that it has one inverse.

        Source: MetaCLIP's second version, which takes the count whose share is nearest.
        """
        found = np.full(len(self.languages.names), float(threshold))
        if len(found) > 1:
            at, shares = self._tails[self.languages.reference]
            share = np.interp(threshold, at, shares)
            for number, (own, own_shares) in enumerate(self._tails):
                if number != self.languages.reference:
                    found[number] = np.interp(share, own_shares, own) if len(own) > 1 else 1.0
        return found

    def tail_share(self, threshold: float) -> float:
        """The share of the reference language's matches on entries that are kept whole: c_e <= t."""
        own = self.by_language[self.languages.reference]
        return float(own[own <= threshold].sum() / max(int(own.sum()), 1))

    # rows

    def probabilities(self, threshold: float) -> Iterator[tuple[MatchedRows, Float64[np.ndarray, " r"]]]:
        """Each row's probability to be kept at a threshold, block by block."""
        from dbp.exact.balancing import keep_probabilities

        thresholds, is_sum = self.thresholds(threshold), self.combine == "sum"
        first = self.languages.first(self.matches.entries)
        for block in self.matches.blocks():
            found = np.empty(block.num_rows)
            language = self.languages.of_row[block.rows]
            keep_probabilities(block.ends, block.numbers, language, self.counts, first, thresholds, is_sum, found)
            yield block, found

    def lots(self, threshold: float) -> Iterator[tuple[slice, Float64[np.ndarray, " r"]]]:
        """Each row's u / P, block by block; infinite where it cannot be kept."""
        from dbp.exact.balancing import draw_lots

        seed = np.uint64(self.seed & 0xFFFFFFFFFFFFFFFF)
        for block, probability in self.probabilities(threshold):
            found = np.empty(block.num_rows)
            hashes, mask = self.hashes[block.rows], self.mask[block.rows]
            draw_lots(probability, hashes, seed, mask, found)
            yield block.rows, found

    @cached_property
    def num_matched(self) -> int:
        """Rows that may be kept and hold an entry."""
        found = 0
        for block in self.matches.blocks():
            has = np.asarray(block.ends[1:]) > np.asarray(block.ends[:-1])
            found += int(np.count_nonzero(has & self.mask[block.rows]))
        return found

    def num_kept(self, threshold: float) -> int:
        """Rows that chance keeps at a threshold."""
        return sum(int(np.count_nonzero(lots < 1)) for _, lots in self.lots(threshold))

    def expected(self, threshold: float) -> float:
        """The mean of `num_kept` over all seeds: the sum of the rows' probabilities."""
        return sum(float(found[self.mask[block.rows]].sum()) for block, found in self.probabilities(threshold))

    def kept(self, threshold: float) -> Bool[np.ndarray, " n"]:
        """The rows that chance keeps at a threshold."""
        keep = np.zeros(len(self.mask), bool)
        for rows, lots in self.lots(threshold):
            keep[rows] = lots < 1
        return keep

    def solve(self, budget: int) -> tuple[float, Bool[np.ndarray, " n"]]:
        """The threshold at which chance keeps exactly a budget of rows, and those rows.

        Steps by interpolation and by halving take turns; as soon as few rows are undecided, they alone are
        looked at. Where rows of one uid hash and equal entries come and go together, the lower rows stay.

        Args:
            budget: At least 1, at most `num_matched`.
        """
        low, below, high, above = 0.0, 0, self._largest, self.num_matched
        own, before, is_halving = self, 0, False
        while above > budget:
            if own is self and above - below <= FEW:
                own, before = self._undecided(low, high), below
            middle = low + (high - low) * (budget - below) / (above - below)
            if is_halving or not low < middle < high:
                middle = _between(low, high)
                if not low < middle < high:
                    return high, self._filled(low, high, budget)
            is_halving = not is_halving
            if (kept := before + own.num_kept(middle)) < budget:
                low, below = middle, kept
            else:
                high, above = middle, kept
        return high, self.kept(high)

    @property
    def _largest(self) -> float:
        """The least threshold that keeps every entry whole."""
        return float(max(int(self.by_language[self.languages.reference].max()), 1))

    def _undecided(self, low: float, high: float) -> "Balance":
        """The rows that a threshold keeps and a lower one does not, in memory."""
        rows = np.flatnonzero(self.kept(high) & ~self.kept(low))
        held = []
        for block in self.matches.blocks():
            first, last = np.searchsorted(rows, (block.rows.start, block.rows.stop))
            held += [block.of(int(row)) for row in rows[first:last]]
        ends = np.cumsum([0, *map(len, held)], dtype=np.int64)
        numbers = np.concatenate([np.zeros(0, np.int64), *held]).astype(np.uint32)
        return replace(
            self,
            matches=replace(self.matches, parts=[MatchedRows(0, ends, numbers)]),
            mask=np.ones(len(rows), bool),
            languages=replace(self.languages, of_row=self.languages.of_row[rows]),
            hashes=self.hashes[rows],
        )

    def _filled(self, low: float, high: float, budget: int) -> Bool[np.ndarray, " n"]:
        """What a threshold keeps, and so many of the rows that the next number would add."""
        keep, more = self.kept(low), self.kept(high)
        added = np.flatnonzero(more & ~keep)
        keep[added[: budget - int(np.count_nonzero(keep))]] = True
        return keep


def _between(low: float, high: float) -> float:
    """The middle of two thresholds: of their logarithms while they are far apart."""
    least = max(low, 1e-6)
    return math.sqrt(least * high) if high > 4 * least else (low + high) / 2


def counted(matches: Matches, mask: Bool[np.ndarray, " n"], languages: Languages) -> Int64[np.ndarray, " c"]:
    """How many rows of a mask hold each entry, by language."""
    from dbp.exact.balancing import count_matches

    first = languages.first(matches.entries)
    counts = np.zeros(int(first[-1]) + len(matches.entries), np.int64)
    for block in matches.blocks():
        language, own = languages.of_row[block.rows], mask[block.rows]
        count_matches(block.ends, block.numbers, language, own, first, counts)
    return counts
