"""The words that a captioner reads and writes: the tokens of CLIP's tokenizer that its captions use.

The last layer of a decoder costs as much as its vocabulary is large: 49,408 tokens for CLIP, about 1,600 of
which stand in the captions of the glyphs pool.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Int

PAD, BEGIN, END = 0, 1, 2  # numbers below those of words
FIRST = 3


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of CLIP's tokenizer, numbered anew behind pad, begin and end."""

    tokens: tuple[int, ...]  # CLIP's numbers, most frequent first
    length: int  # of a tokenised caption, begin and end included

    @property
    def size(self) -> int:
        return FIRST + len(self.tokens)

    @classmethod
    def of(cls, captions: Iterable[str], length: int, most: int | None) -> "Vocabulary":
        """The tokens of captions, `most` at most: most frequent first, of equal ones the lower number."""
        encode = _tokenizer().encode
        counts = Counter(token for caption in captions for token in encode(caption))
        ordered = sorted(counts, key=lambda token: (-counts[token], token))
        return cls(tuple(ordered[:most]), length)

    @cached_property
    def _numbers(self) -> dict[int, int]:
        return {token: number for number, token in enumerate(self.tokens, FIRST)}

    def __call__(self, captions: list[str]) -> Int[Any, "b l"]:
        """The captions as numbers: begin, words, end, pad. Of a caption that is too long the end is cut off,
        with the token that says that it ends; words that are no part of the vocabulary are left out.
        """
        import torch

        encode, numbers = _tokenizer().encode, self._numbers
        found = torch.zeros((len(captions), self.length), dtype=torch.long)
        for at, caption in enumerate(captions):
            words = [numbers[token] for token in encode(caption) if token in numbers]
            line = [BEGIN, *words, END][: self.length]
            found[at, : len(line)] = torch.tensor(line)
        return found

    def text(self, numbers: Sequence[int]) -> str:
        """The text of numbers up to the first end, in lower case, blanks as single spaces."""
        words = []
        for number in numbers:
            if number == END:
                break
            if number >= FIRST:
                words.append(self.tokens[number - FIRST])
        text = _tokenizer().decode(words).replace("\ufffd", " ")  # half a character
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())


_TOKENIZER: list[Any] = []


def _tokenizer() -> Any:
    if not _TOKENIZER:
        from open_clip.tokenizer import SimpleTokenizer

        _TOKENIZER.append(SimpleTokenizer())
    return _TOKENIZER[0]
