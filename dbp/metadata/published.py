"""MetaCLIP's own list: WordNet and Wikipedia in the order of its code."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dbp.engine.stage import runtime
from dbp.errors import ConfigError
from dbp.metadata.base import EntrySource, Joined, Numbers
from dbp.metadata.wikipedia import Pairs, Place, Titles, Words
from dbp.metadata.wordnet import WordNet


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
