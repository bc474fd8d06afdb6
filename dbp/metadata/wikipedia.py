"""Entries from Wikipedia: its frequent words, its pairs of words that belong together, its titles by views."""

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from dbp.config import require
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, WorldError
from dbp.metadata.base import EntrySource
from dbp.metadata.ngrams import NGrams, by_count, mutual_information

Place = Literal["first", "last"]


class _Read(EntrySource):
    """A source whose identity is the content of its `file` or its `text`."""

    def identity(self) -> dict[str, Any]:
        given = {name: getattr(self, name, None) for name in ("file", "text")}
        return {name: file_digest(path, name) for name, path in given.items() if path}


@dataclass(frozen=True)
class Words(_Read):
    """Words that occur often, from a file of counts or from text.

    Args:
        min_count: Occurrences, at least. The paper's text says more than 100, its code 100 at least.
        count: Where a line of counts has the number: `first` or `last`.
        file: Lines of a word and its count; or
        text: plain text, a paragraph a line. Both may be gzipped.

    Source: Xu et al. 2024, table 1: 251,465 words with a count of 100.
    """

    min_count: int
    count: Place = "last"
    file: str | None = runtime(None)
    text: str | None = runtime(None)

    def __post_init__(self) -> None:
        require(self.min_count >= 1, "min_count", self.min_count, "at least 1")

    def texts(self, **inputs: Any) -> Iterable[str]:
        if _counts_are_given(self.file, self.text, "the words of Wikipedia"):
            counts = read_counts(str(self.file), 1, self.count)
            return by_count((word[0], count) for word, count in counts if count >= self.min_count)
        return count_text(str(self.text)).words(self.min_count)


@dataclass(frozen=True)
class Pairs(_Read):
    """Pairs of neighbouring words that belong together, from files of counts or from text.

    Args:
        min_information: Pointwise mutual information, at least; log2(n_xy N / (n_x n_y)).
        min_count: Occurrences of a pair, at least.
        count: Where a line of counts has the number: `first` or `last`.
        words: Counts of words; needed beside `file`. Pairs with a word that it lacks are passed over.
        file: Lines of two words and their count; or
        text: plain text, a paragraph a line. Both may be gzipped.

    Source: Xu et al. 2024, table 1: 100,646 pairs with a mutual information of 30. In bits, and over a few
        billion words, that leaves pairs of words that hardly occur otherwise.
    """

    min_information: float
    min_count: int = 1
    count: Place = "last"
    words: str | None = runtime(None)
    file: str | None = runtime(None)
    text: str | None = runtime(None)

    def __post_init__(self) -> None:
        require(self.min_count >= 1, "min_count", self.min_count, "at least 1")

    def identity(self) -> dict[str, Any]:
        words = {"words": file_digest(self.words, "words")} if self.words and self.file else {}
        return super().identity() | words

    def texts(self, **inputs: Any) -> Iterable[str]:
        if not _counts_are_given(self.file, self.text, "the pairs of Wikipedia"):
            return count_text(str(self.text)).pairs(self.min_count, self.min_information)
        if not self.words:
            raise ConfigError(
                f"pairs are counted in {self.file} and the counts of their words are not given. Name "
                "the file of word counts: words=FILE."
            )
        return by_count(self._close())

    def _close(self) -> Iterator[tuple[str, int]]:
        known = Counter[str]()
        for word, count in read_counts(str(self.words), 1, self.count):
            known[word[0]] += count
        total = known.total()
        for (left, right), count in read_counts(str(self.file), 2, self.count):
            if count < self.min_count or not known[left] or not known[right]:
                continue
            close = mutual_information(count, known[left], known[right], total)
            if close >= self.min_information:
                yield f"{left} {right}", count


@dataclass(frozen=True)
class Titles(_Read):
    """Titles that were viewed often.

    Args:
        min_views: Views, at least. The paper says above 70, its code 70 at least.
        file: `.json` with title -> views, or lines of a title, a tab and its views; may be gzipped. Views
            of a title that stands there again are added up. Titles with a colon are left out, as there.

    Source: Xu et al. 2024, table 1: 61,235 titles, of 26 sampled days, hours of 50 views and more.
    """

    min_views: int
    file: str | None = runtime(None)

    def __post_init__(self) -> None:
        require(self.min_views >= 1, "min_views", self.min_views, "at least 1")

    def texts(self, **inputs: Any) -> Iterable[str]:
        if not self.file:
            raise ConfigError(
                "a source of entries reads titles with views and its file is not set. Name it "
                "(select.metadata), or leave the titles out."
            )
        views = Counter[str]()
        for title, count in _titles(self.file):
            if ":" not in title:
                views[title.replace("_", " ")] += count
        return by_count(item for item in views.items() if item[1] >= self.min_views)


def _titles(path: str) -> Iterator[tuple[str, int]]:
    if ".json" in Path(path).suffixes:
        with reading(path) as handle:
            try:
                found = json.load(handle)
                yield from ((title, int(views)) for title, views in found.items())
            except (ValueError, TypeError, AttributeError) as error:
                raise WorldError(f"{path} holds no JSON of title -> views: {error}.") from error
        return
    with reading(path) as handle:
        for number, line in enumerate(handle, 1):
            title, tab, views = line.rstrip("\r\n").rpartition("\t")
            if not tab or not views.strip().isdecimal():
                raise WorldError(f"{path}, line {number:,}: {line!r} is no title<TAB>views.")
            yield title, int(views)


def count_text(path: str) -> NGrams:
    """Words and pairs of a text, counted line by line; for texts whose distinct pairs fit in memory."""
    counted = NGrams()
    with reading(path) as handle:
        counted.add(handle)
    return counted


def read_counts(path: str, words: int, place: Place) -> Iterator[tuple[list[str], int]]:
    """Lines of one word or two and their count; lines without a word are passed over.

    Raises:
        WorldError: A line has no number there, or too many words; it names the line.
    """
    with reading(path) as handle:
        for number, line in enumerate(handle, 1):
            fields = line.split()
            said = fields.pop(0 if place == "first" else -1) if fields else "0"
            if not said.isdecimal() or len(fields) > words:
                raise WorldError(
                    f"{path}, line {number:,}: {line!r} is not {words} word{'s' * (words > 1)} and a count "
                    f"({place}). Set count=first or count=last (select.metadata)."
                )
            if len(fields) == words and int(said):
                yield fields, int(said)


@contextmanager
def reading(path: str) -> Iterator[IO[str]]:
    """A text file, gzipped or not.

    Raises:
        WorldError: It cannot be read.
    """
    opened: Any = gzip.open if path.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace") as handle:
            yield handle
    except (OSError, EOFError) as error:
        raise WorldError(f"{path} cannot be read: {error}. Fetch it again.") from error


def _counts_are_given(file: str | None, text: str | None, what: str) -> bool:
    if (file is None) == (text is None):
        raise ConfigError(
            f"a source of entries reads {what}: file={file}, text={text}. Give exactly one of the two "
            "(select.metadata), counts or plain text, or leave this source out."
        )
    return file is not None
