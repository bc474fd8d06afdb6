"""MetaCLIP's metadata: the texts that captions are balanced over, in a fixed order.

Kept as `metadata.json`, a JSON list of texts, which is MetaCLIP's own format: an entry's number is its
place in the list. Lists of several languages stand there one after another; `languages.json` says where each begins
and ends.
"""

import hashlib
import json
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dbp.errors import StoreError

FILE = "metadata.json"
LISTS = "languages.json"
BLANK, MARK, DUPLICATE = "blank", "one punctuation mark", "duplicate"


@dataclass(frozen=True)
class Entries:
    """Texts, distinct within a language; none is blank, none is a single punctuation mark.

    Args:
        texts: Of all lists.
        lists: The places of each language's texts, from the first to the one behind the last, without a gap;
            empty where one list serves all captions.
    """

    texts: list[str]
    lists: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def digest(self) -> str:
        """Content identity: of the texts and their order."""
        lists = json.dumps(self.lists) if self.lists else ""
        return hashlib.sha256((json.dumps(self.texts) + lists).encode()).hexdigest()[:24]

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(self.texts, ensure_ascii=False) + "\n")
        if self.lists:
            (folder / LISTS).write_text(json.dumps(self.lists, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Entries":
        """Read `metadata.json` from a folder.

        Raises:
            StoreError: It is missing or damaged.
        """
        try:
            file = folder / LISTS
            lists = {name: (a, b) for name, (a, b) in json.loads(file.read_text()).items()} if file.exists() else {}
            return cls(json.loads((folder / FILE).read_text()), lists)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{folder} holds no whole list of entries: {error}. Remove the folder; it is built again."
            ) from error


def cleaned(texts: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """The usable entries among texts, each once, in their order; and how many went, by reason.

    White space around an entry is taken off. A single mark would match nearly every caption.

    Source: MetaCLIP drops empty entries and the single marks of ASCII; other marks are dropped here, too.
    """
    kept: dict[str, None] = {}
    went: Counter[str] = Counter()
    for text in texts:
        entry = text.strip()
        if not entry:
            went[BLANK] += 1
        elif len(entry) == 1 and is_mark(entry):
            went[MARK] += 1
        elif entry in kept:
            went[DUPLICATE] += 1
        else:
            kept[entry] = None
    return list(kept), dict(went)


def is_mark(character: str) -> bool:
    """Whether a character is a punctuation mark: of Unicode's class P, or one of ASCII's."""
    return character in string.punctuation or unicodedata.category(character)[0] == "P"
