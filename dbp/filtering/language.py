"""Filters on what a caption says: its language, and whether it names an object of ImageNet.

Both need data that is not ours to ship: a language model, WordNet, a list of ids. A person brings it as a
file or installs a package; what is missing is named before any caption is read. A caption costs one call
of that package, 10 to 50 microseconds.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, DbpError, MissingError, WorldError, nearest
from dbp.filtering.packages import NLTK, PACKAGES, package, package_lacks
from dbp.narrowing import Narrowing

BLOCK = 1 << 16  # captions held at once
DETECTORS = ("column:NAME", "fasttext:FILE", "cld3", "langid")
NO_IDS = (
    "filter.ids is not set: the text-based filter needs a file of ImageNet-21k ids, such as n02084071, one a line."
)


@dataclass(frozen=True)
class Language(Narrowing):
    """Keep captions in one language.

    Args:
        by: Who says so: `column:NAME` of the pool's metadata; `fasttext:FILE`, with fastText's model for
            language identification (`lid.176.bin` or `.ftz`); `cld3`; or `langid`.
        language: Its code, as that source writes it.

    Source: DataComp's filters keep English by fastText; LAION-2B's by cld3.
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")

    by: str
    language: str = "en"

    def __post_init__(self) -> None:
        kind, _, rest = self.by.partition(":")
        known = {option.partition(":")[0]: ":" in option for option in DETECTORS}
        if kind not in known:
            raise ConfigError(f"by={self.by!r}: {nearest(kind, DETECTORS)}")
        require(bool(rest) == known[kind], "by", self.by, f"one of {', '.join(DETECTORS)}")

    def unread(self) -> set[str]:
        return {"by"}  # a model's path is no matter; identity says which model

    def identity(self) -> dict[str, Any]:
        kind, _, rest = self.by.partition(":")
        return {"by": kind, "model": file_digest(rest, "language=fasttext") if kind == "fasttext" else rest}

    def lacks(self, inputs: Any) -> Iterator[MissingError]:
        """The package that tells languages, if it is not installed."""
        kind = self.by.partition(":")[0]
        if kind in PACKAGES:
            yield from package_lacks(*PACKAGES[kind])

    def decide(self, rows: KeepList, pool: Pool) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        keep = over_captions(rows, pool, self._says(pool))
        why = f"caption not in language {self.language}"
        kept = rows.within("filter", keep, why, f"caption in language {self.language}")
        return kept, {why: rows.num_kept - kept.num_kept}

    def _says(self, pool: Pool) -> Callable[[np.ndarray], Bool[np.ndarray, " m"]]:
        kind, _, rest = self.by.partition(":")
        if kind == "column":
            if rest not in pool.index.names:
                raise ConfigError(
                    f"language=column:{rest}: the pool has no such column. "
                    f"{nearest(rest, pool.index.names)} Of a DataComp pool, pool.columns=[{rest}] carries it."
                )
            return lambda rows: np.asarray(pool.column(rest, rows) == self.language)
        detect = {"fasttext": _fasttext, "cld3": _cld3, "langid": _langid}[kind](rest)
        return lambda rows: np.array([detect(c) == self.language for c in pool.captions(rows)], bool)


def over_captions(
    rows: KeepList, pool: Pool, says: Callable[[np.ndarray], Bool[np.ndarray, " m"]]
) -> Bool[np.ndarray, " n"]:
    """What a rule says of rows that are still there, over all rows of the pool, a block at a time."""
    keep = np.zeros(pool.num_rows, bool)
    for start in range(0, rows.num_kept, BLOCK):
        block = rows.rows[start : start + BLOCK]
        keep[block] = says(block)
    return keep


def _fasttext(model: str) -> Callable[[str], str]:
    fasttext = package(*PACKAGES["fasttext"])
    try:
        inner = fasttext.load_model(model).f
    except ValueError as error:
        raise WorldError(f"{model} is no model of fastText ({error}). Fetch lid.176.bin.") from error

    def detect(caption: str) -> str:
        # What the package's own `predict` calls; that one fails beside numpy 2. A newline ends the text.
        found = inner.predict(caption.replace("\n", " ") + "\n", 1, 0.0, "strict")
        return found[0][1].removeprefix("__label__") if found else ""

    return detect


def _cld3(_: str) -> Callable[[str], str]:
    gcld3 = package(*PACKAGES["cld3"])
    finder = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)
    return lambda caption: finder.FindLanguage(text=caption).language


def _langid(_: str) -> Callable[[str], str]:
    langid = package(*PACKAGES["langid"])
    return lambda caption: langid.classify(caption)[0]


@dataclass(frozen=True)
class NamesObject(Narrowing):
    """Keep captions with a word whose first WordNet sense is an object of ImageNet-21k.

    Words are what white space divides, punctuation kept, in lower case.

    Args:
        ids: A text file of ImageNet-21k ids, `n` and eight digits at the start of each line.
        words: A text file of `word<TAB>offset of its first sense`; null asks the package nltk.

    Source: DataComp's text-based filter. The first sense is that of any part of speech, as there, so a verb's
        offset can meet a noun's by chance.
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")

    ids: str | None = runtime(None)
    words: str | None = runtime(None)

    def identity(self) -> dict[str, Any]:
        files = {"ids": self.ids, "words": self.words}
        return {name: path and file_digest(path, f"filter.{name}") for name, path in files.items()}

    def lacks(self, inputs: Any) -> Iterator[DbpError]:
        """The ids, if they are not named; nltk, if it is not installed."""
        if not self.ids:
            yield ConfigError(NO_IDS)
        if not self.words:
            yield from package_lacks(*NLTK)

    def decide(self, rows: KeepList, pool: Pool) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        if not self.ids:
            raise ConfigError(NO_IDS)
        is_object = _objects(read_ids(self.ids), _senses(self.words))

        def says(block: np.ndarray) -> Bool[np.ndarray, " m"]:
            captions = pool.captions(block)
            return np.array([any(map(is_object, c.lower().split())) for c in captions], bool)

        why = "caption names no object of ImageNet"
        kept = rows.within("filter", over_captions(rows, pool, says), why, "caption names an object of ImageNet")
        return kept, {why: rows.num_kept - kept.num_kept}


def read_ids(path: str) -> frozenset[int]:
    """The WordNet offsets in a file of ImageNet ids.

    Raises:
        WorldError: A line does not begin with an id; it names the line.
    """
    found = set()
    for number, line in _lines(path):
        if not re.fullmatch(r"n\d{8}", word := line.split()[0]):
            raise WorldError(f"{path}, line {number:,}: {word!r} is no ImageNet id, as n02084071 is.")
        found.add(int(word[1:]))
    return frozenset(found)


def _senses(path: str | None) -> Callable[[str], int | None]:
    """The offset of a word's first sense, or None."""
    if path is not None:
        table: dict[str, int] = {}
        for number, line in _lines(path):
            word, tab, offset = line.partition("\t")
            if not tab or not offset.strip().isdecimal():
                raise WorldError(f"{path}, line {number:,}: {line!r} is no word<TAB>offset.")
            table[word.lower()] = int(offset)
        return table.get
    wordnet: Any = package("nltk.corpus", "filter.words=null", "nltk").wordnet
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise ConfigError(
            "filter.words=null asks nltk, which has no WordNet here. Fetch it with "
            "`python -m nltk.downloader wordnet`, or give filter.words=FILE."
        ) from error

    def first(word: str) -> int | None:
        senses = wordnet.synsets(word)
        return senses[0].offset() if senses else None

    return first


def _objects(ids: frozenset[int], sense: Callable[[str], int | None]) -> Callable[[str], bool]:
    """Whether a word names an object; what was asked before is remembered, up to a bound."""
    known: dict[str, bool] = {}

    def is_object(word: str) -> bool:
        if word not in known:
            if len(known) > 2_000_000:
                known.clear()
            known[word] = sense(word) in ids
        return known[word]

    return is_object


def _lines(path: str) -> Iterator[tuple[int, str]]:
    with open(path, encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, 1):
            if line.strip():
                yield number, line.rstrip("\r\n")
