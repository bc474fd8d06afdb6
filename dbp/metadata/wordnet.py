"""Entries from WordNet's dictionary files, as they are distributed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dbp.engine.stage import runtime
from dbp.errors import ConfigError, WorldError
from dbp.formats.exchange import digest_of
from dbp.metadata.base import EntrySource

PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")


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
        return {"files": [digest_of(str(file), "select.metadata.folder") for file in files]}

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
