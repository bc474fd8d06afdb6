"""How well a captioner writes of glyphs, whose names are known, and how often it repairs a swapped caption."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dbp.pools.glyph_fonts import name_of
from dbp.pools.glyph_tasks import SCRIPTS, script

# What stands behind the name in the four phrasings of the pool's captions.
_BEHIND = re.compile(r"\s*(?:,|\(|\bin (?=dejavu|stix)).*")


def name_in(caption: str) -> str:
    """The glyph's name in a caption of the glyphs pool, in lower case, without its phrasing and face."""
    return _BEHIND.sub("", caption.lower().removeprefix("the ")).strip()


def same_name(one: str, other: str) -> bool:
    """Whether two names are equal but for blanks and hyphens, which a tokenizer may move."""
    bare = ["".join(c for c in text.lower() if c.isalnum()) for text in (one, other)]
    return bare[0] == bare[1] != ""


def script_in(caption: str) -> str | None:
    """The class of the script tasks that a caption names; None if it names none."""
    # As in the tokenizer's words, a hyphen stands alone.
    name = re.sub(r"\s*-\s*", "-", name_in(caption))
    return next((known for known, begins in SCRIPTS.items() if re.match(begins, f"{name} ")), None)


def script_quality(written: Sequence[str | None], characters: Sequence[int]) -> dict[str, Any]:
    """How often a written caption names the script of its picture.

    Args:
        written: A caption for each picture; None counts as wrong.
        characters: Code points; pictures of no script of the tasks are left out.

    Returns:
        Pictures, the share that is right, the mean over scripts, and chance: the share of a captioner that
        always names the most frequent script; 1 over the number of scripts for the mean.
    """
    pairs = [
        (wanted, script_in(text or ""))
        for text, character in zip(written, characters, strict=True)
        if (wanted := script(character)) is not None
    ]
    total = Counter(wanted for wanted, _ in pairs)
    right = Counter(wanted for wanted, found in pairs if wanted == found)
    n = max(len(pairs), 1)
    return {
        "pictures": len(pairs),
        "right": sum(right.values()) / n,
        "chance": max(total.values(), default=0) / n,
        "mean over scripts": sum(right[s] / total[s] for s in total) / max(len(total), 1),
        "chance of the mean": 1 / max(len(total), 1),
    }


def repairs(written: Sequence[str | None], originals: Sequence[str], truth: pa.Table) -> dict[str, Any]:
    """What refinement does to captions that were swapped, and to those that were not.

    Args:
        written: A caption for each row of the pool; None for rows that have none, which are left out.
        originals: The captions in the pool.
        truth: The pool's `truth.parquet`, in row order.

    Returns:
        For swapped rows: their number, and the shares whose written caption names the true glyph, its script
        (among rows with a script whose original names another), or the glyph of the swapped caption. For the
        others the share that names the true glyph.
    """
    characters = truth["character"].to_pylist()
    counts: Counter[str] = Counter()
    swaps = truth["caption_swapped"].to_pylist()
    for text, original, character, is_swapped in zip(written, originals, characters, swaps, strict=True):
        if text is None:
            continue
        named = name_in(text)
        is_true = same_name(named, name_of(character))
        if not is_swapped:
            counts["sound"] += 1
            counts["sound named"] += is_true
            continue
        counts["swapped"] += 1
        counts["repaired"] += is_true
        counts["parroted"] += same_name(named, name_in(original)) and not is_true
        wanted = script(character)
        if wanted is not None and script_in(original) != wanted:
            counts["wrong script"] += 1
            counts["script repaired"] += script_in(text) == wanted

    def share(part: str, whole: str) -> float:
        return counts[part] / counts[whole] if counts[whole] else float("nan")

    return {
        "swapped": counts["swapped"],
        "name repaired": share("repaired", "swapped"),
        "swapped caption repeated": share("parroted", "swapped"),
        "script wrong before": counts["wrong script"],
        "script repaired": share("script repaired", "wrong script"),
        "sound": counts["sound"],
        "sound captions named": share("sound named", "sound"),
    }
