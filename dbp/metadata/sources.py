"""Where entries come from: a given list, the pool's captions, WordNet, and MetaCLIP's own mixture."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from dbp.config import require
from dbp.data.entries import Entries, cleaned
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.paths import file_digest
from dbp.engine.progress import progress
from dbp.engine.stage import Node, runtime
from dbp.engine.work import Work
from dbp.errors import ConfigError, DbpError, WorldError
from dbp.exact.order import first, keyed_hash
from dbp.metadata.base import EntrySource, Joined, Numbers
from dbp.metadata.ngrams import NGrams
from dbp.metadata.wikipedia import Pairs, Place, Titles, Words

CAPTIONS = 4096  # held at once
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")


@dataclass(frozen=True)
class Given(EntrySource):
    """The entries of a file.

    Args:
        file: `.json` with a list of texts (`metadata.json`) or with entry -> count (`entry_counts_400m.json`,
            whose entries alone are used); any other file has one entry a line.
    """

    file: str | None = runtime(None)

    def identity(self) -> dict[str, Any]:
        return {"list": file_digest(self.file, "select.metadata.file")} if self.file else {}

    def texts(self, **inputs: Any) -> Iterable[str]:
        if not self.file:
            raise ConfigError(
                "select.metadata.file is not set. Name MetaCLIP's metadata.json or a file of one entry a "
                "line; or take entries from the pool's own captions: select=metaclip_glyphs."
            )
        if self.file.endswith(".json"):
            return read_json(self.file)
        return read_lines(self.file)


@dataclass(frozen=True)
class ByLanguage(EntrySource):
    """A list for each language: the files of a folder, each named by its language as the column writes it.

    The list `other` is for captions of languages that have none, and of no language; without it they hold no entry.

    Args:
        folder: With `en.json`, `de.txt` and so on, each as `Given` reads it; their content enters the key.

    Source: MetaCLIP 2 (arXiv 2507.22062) and its code, whose metadata is one such folder.
    """

    by_language: ClassVar[bool] = True

    folder: str | None = runtime(None)

    def files(self) -> dict[str, Path]:
        """The file of each language, in the order of their names.

        Raises:
            ConfigError: There is none, or there are two of one language.
        """
        found: dict[str, Path] = {}
        for file in sorted(Path(self.folder).glob("*")) if self.folder else ():
            if not file.is_file() or file.name.startswith("."):
                continue
            if file.stem in found:
                raise ConfigError(
                    f"select.metadata.folder={self.folder}: {found[file.stem].name} and {file.name} are both of "
                    f"language {file.stem!r}. Keep one."
                )
            found[file.stem] = file
        must = "a folder with a list for each language, such as en.json or en.txt"
        require(bool(found), "select.metadata.folder", self.folder, must)
        return found

    def lacks(self, inputs: Mapping[str, Node]) -> Iterator[DbpError]:
        """The folder, if it is not named."""
        if not self.folder:
            yield ConfigError(
                "select.metadata.folder is not set. Name a folder with a list of entries for each language, "
                "such as en.json and de.txt."
            )

    def identity(self) -> dict[str, Any]:
        files = self.files() if self.folder else {}
        said = "select.metadata.folder"
        return {"lists": {name: [f.suffix == ".json", file_digest(str(f), said)] for name, f in files.items()}}

    def texts(self, **inputs: Any) -> Iterable[str]:
        for file in self.files().values():
            yield from Given(str(file)).texts()

    def run(self, work: Work, **inputs: Any) -> dict[str, Any]:
        texts: list[str] = []
        lists: dict[str, tuple[int, int]] = {}
        gone: Counter[str] = Counter()
        for language, file in self.files().items():
            own, went = cleaned(Given(str(file)).texts())
            if not own:
                raise WorldError(f"select.metadata.folder: {file} holds no usable entry. Fill it, or remove it.")
            lists[language] = (len(texts), len(texts) + len(own))
            texts += own
            gone.update(went)
        Entries(texts, lists).save(work.folder)
        return {"entries": len(texts), "languages": len(lists), **gone}


def read_json(path: str) -> list[str]:
    """The texts of a JSON list, or the names of a JSON object, in their order.

    Raises:
        WorldError: It is something else; it names the place.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise WorldError(f"{path} cannot be read as JSON: {error}. It must hold a list of texts.") from error
    if isinstance(found, dict):
        return list(found)
    if not isinstance(found, list):
        raise WorldError(f"{path} holds {type(found).__name__}, no list of texts.")
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise WorldError(f"{path}: item {number:,} is {text!r}, no text. Put it in quotes.")
    return found


def read_lines(path: str) -> list[str]:
    """The lines of a file.

    Raises:
        WorldError: It is no text in UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorldError(f"{path} cannot be read as text in UTF-8: {error}.") from error


@dataclass(frozen=True)
class FromCaptions(EntrySource):
    """Frequent words of the captions, then pairs of neighbours that belong together.

    Args:
        min_count: Occurrences of a word, at least.
        min_pair_count: Occurrences of a pair, at least.
        min_information: Pointwise mutual information of a pair, at least; in bits.
        sample: Captions that are counted, at most: those with the smallest hashes of their uid. Bounds the
            memory, 1 to 2 GB for 2 million captions of ten words.

    Source: MetaCLIP's two sources from Wikipedia (Xu et al. 2024, table 1), applied to captions; ours.
    """

    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")

    min_count: int
    min_pair_count: int
    min_information: float
    sample: int

    def __post_init__(self) -> None:
        for name in ("min_count", "min_pair_count", "sample"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")

    def texts(self, *, rows: KeepList, pool: Pool, **inputs: Any) -> Iterable[str]:  # type: ignore[override]
        chosen = np.flatnonzero(first(keyed_hash(pool.uid_hashes, 0), rows.mask, self.sample))
        counted = NGrams()
        with progress("entries", len(chosen), "captions") as bar:
            for start in range(0, len(chosen), CAPTIONS):
                block = chosen[start : start + CAPTIONS]
                counted.add(pool.captions(block))
                bar.advance(len(block))
        yield from counted.words(self.min_count)
        yield from counted.pairs(self.min_pair_count, self.min_information)


@dataclass(frozen=True)
class WordNet(EntrySource):
    """The names of synsets, in the order of `data.noun`, `data.verb`, `data.adj` and `data.adv`.

    Args:
        words: `names`: the first word of each synset, in lower case, up to its first dot, as published (so
            "U.S." becomes "u"); `all`: every word of every synset, in its own case.
        folder: The folder `dict` of WordNet.

    Source: Xu et al. 2024, table 1: 86,654 synsets. Version of WordNet not given there; the code takes NLTK's.
    """

    words: Literal["names", "all"]
    folder: str | None = runtime(None)

    def identity(self) -> dict[str, Any]:
        if not self.folder:
            return {}
        files = [Path(self.folder) / f"data.{part}" for part in PARTS_OF_SPEECH]
        return {"files": [file_digest(str(file), "select.metadata.folder") for file in files]}

    def texts(self, **inputs: Any) -> Iterable[str]:
        if not self.folder:
            raise ConfigError(
                "a source of entries reads WordNet and its folder is not set. Name the folder that holds "
                "data.noun, data.verb, data.adj and data.adv (select.metadata), or leave WordNet out."
            )
        for part in PARTS_OF_SPEECH:
            for words in synsets(Path(self.folder) / f"data.{part}"):
                own = words if self.words == "all" else [words[0].lower().split(".")[0]]
                yield from (word.replace("_", " ") for word in own)


def synsets(file: Path) -> Iterator[list[str]]:
    """The words of each synset of a data file, first word first.

    A line: offset, lexicographer file, kind, number of words in two hexadecimal digits, then each word with
    its number; an adjective may end with its place in parentheses. The licence's lines begin with blanks.

    Raises:
        WorldError: A line is not so; it names the line.
    """
    with open(file, encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if line.startswith("  ") or not line.strip():
                continue
            fields = line.split(" ")
            try:
                count = int(fields[3], 16)
                words = fields[4 : 4 + 2 * count : 2]
                if not count or len(words) < count or not fields[0].isdecimal():
                    raise ValueError("words are missing")
            except (ValueError, IndexError) as error:
                raise WorldError(
                    f"{file}, line {number:,} is no synset ({error}). It must be a data file of WordNet."
                ) from error
            yield [word.split("(")[0] for word in words]


@dataclass(frozen=True)
class Published(Joined):
    """Numbers, WordNet, and Wikipedia's words, pairs and titles; a source whose file is null is left out.

    Args:
        numbers: "0" to one below this; 0 for none.
        min_count: Of a word.
        min_information: Of a pair, in bits.
        min_views: Of a title.
        count: Where a line of counts has the number: `first` or `last`.
        wordnet: The folder `dict` of WordNet.
        words: File of words and counts.
        pairs: File of pairs and counts; needs `words`.
        text: Plain text that words and pairs are counted in, instead of both.
        titles: File of titles and views.

    Source: Xu et al. 2024, table 1; the order is that of their code.
    """

    numbers: int
    min_count: int
    min_information: float
    min_views: int
    count: Place = "last"
    wordnet: str | None = runtime(None)
    words: str | None = runtime(None)
    pairs: str | None = runtime(None)
    text: str | None = runtime(None)
    titles: str | None = runtime(None)

    def sources_in_order(self) -> tuple[EntrySource, ...]:
        found: list[EntrySource] = [Numbers(self.numbers)] if self.numbers else []
        if self.wordnet:
            found.append(WordNet("names", self.wordnet))
        if self.words or self.text:
            found.append(Words(self.min_count, self.count, self.words, self.text))
        if self.pairs or self.text:
            pairs = Pairs(self.min_information, 1, self.count, self.words, self.pairs, self.text)
            found.append(pairs)
        if self.titles:
            found.append(Titles(self.min_views, self.titles))
        return tuple(found)

    def texts(self, **inputs: Any) -> Iterable[str]:
        if not (self.wordnet or self.words or self.text or self.pairs or self.titles):
            raise ConfigError(
                "select.metadata names no source of entries. Give one or more of wordnet=FOLDER, words=FILE, "
                "pairs=FILE, text=FILE and titles=FILE below select.metadata; or use select=metaclip with a list "
                "that is made, or select=metaclip_glyphs with the pool's own captions."
            )
        return super().texts(**inputs)
