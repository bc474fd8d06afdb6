"""When a caption holds an entry: as MetaCLIP or MetaCLIP 2 says it, or after folding.

Under all rules a caption and an entry become texts with a blank at each end, and the entry must be a part of the
caption; so it matches whole words. MetaCLIP 2's rule leaves the blank out where the entry begins or ends with a
character of a script without blanks between words.
"""

import re
import string
import unicodedata
from functools import cache
from typing import Literal

Rule = Literal["reference", "unspaced", "folded"]

SPACED = ",.;:?!`"  # the marks that MetaCLIP puts blanks around
# Scripts that are written without blanks between words: each character stands alone.
UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
# What MetaCLIP 2 takes for such scripts: Han, Thai, Lao, Tibetan, Burmese, Khmer (no kana, no hangul), and marks.
OPEN = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u2ff0-\u2fff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002ebef"
    + re.escape(string.punctuation)
    + "，。、；：？！“”‘’（）【】《》〈〉「」『』～—]"
)
INVISIBLE = re.compile("[\u00ad\u200c-\u200f\u2060\ufeff]")
PLAIN = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]")  # words and marks of ASCII, many times faster
NEVER = re.compile(rf"[^ ][{SPACED}]|[{SPACED}][^ ]|[{SPACED}] [{SPACED}]|[\t\n\r]")


def spaced(text: str) -> str:
    """A caption under the reference rule: case as it stands, blanks around seven marks and both ends.

    Source: MetaCLIP's published matching. Other marks, and runs of blanks, stay as they are.
    """
    for mark in SPACED:
        if mark in text:
            text = text.replace(mark, f" {mark} ")
    for blank in "\t\n\r":
        if blank in text:
            text = text.replace(blank, " ")
    return f" {text} "


def folded(text: str) -> str:
    """A text under the folded rule: case folded, each punctuation mark a word of its own, single blanks.

    Equal letters in other encodings become one (NFKC), curly apostrophes straight; control characters part
    words. So "U.S." is found in "(u.s.)", and a word in quotes is that word. A character of a script
    without blanks between words is a word of its own.
    """
    if text.isascii():
        return f" {' '.join(PLAIN.findall(text.lower()))} "
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = unicodedata.normalize("NFKC", plain).replace("\u2019", "'")
    return f" {' '.join(_words().findall(INVISIBLE.sub('', plain)))} "


@cache
def _words() -> re.Pattern[str]:
    marks = "".join(re.escape(chr(c)) for c in range(0x300, 0x1F000) if unicodedata.category(chr(c))[0] == "M")
    word = rf"(?:[^\W_{UNSPACED}]|[{marks}])+"  # an accent or a vowel sign is no end of a word
    return re.compile(rf"[{UNSPACED}]|{word}|_|[^\w\s\x00-\x1f\x7f-\x9f]")


def caption_text(text: str, rule: Rule) -> str:
    """A caption as entries are looked for in it."""
    return folded(text) if rule == "folded" else spaced(text)


def entry_text(entry: str, rule: Rule) -> str | None:
    """An entry as it is looked for; None where no caption can hold it."""
    if rule != "folded":
        # In a spaced caption each of the seven marks stands between blanks.
        if NEVER.search(entry) or not entry:
            return None
        is_open = [rule == "unspaced" and OPEN.match(end) is not None for end in (entry[0], entry[-1])]
        return f"{'' if is_open[0] else ' '}{entry}{'' if is_open[1] else ' '}"
    text = folded(entry)
    return text if text.strip() else None
