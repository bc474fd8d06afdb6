"""Fields of the json that sort samples into a few groups: candidates for labels, and for tables by group."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MOST = 50  # different values of a field that sorts samples into groups
ENOUGH = 0.5  # share of the samples that have the field, at least
MENTIONED = 0.1  # share of the captions that hold the value, at least, for labels


@dataclass(frozen=True)
class Group:
    """A field of texts with few different values.

    Args:
        name: Of the field.
        sizes: Samples of each value.
        mentioned: Share of the samples with it whose caption holds its value; zero-shot classification goes by
            captions, so labels that no caption mentions cannot be learned.
    """

    name: str
    sizes: Counter[str]
    mentioned: float


def groups_of(samples: Iterable[tuple[str, dict[str, Any]]]) -> list[Group]:
    """The fields of this kind among samples' captions and json, by name."""
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    mentions: Counter[str] = Counter()
    total = 0
    many = set[str]()
    for caption, fields in samples:
        total += 1
        lower = caption.lower()
        for name, value in fields.items():  # json:a.b is the field b of a, so that a dot cannot stand in a name
            if name in many or "." in name or not isinstance(value, str) or not (text := value.strip()):
                continue
            sizes[name][text] += 1
            mentions[name] += text.lower() in lower
            if len(sizes[name]) > MOST:
                many.add(name)
                del sizes[name]
    return [
        Group(name, found, mentions[name] / found.total())
        for name, found in sorted(sizes.items())
        if len(found) > 1 and found.total() >= ENOUGH * total
    ]


def labels_among(groups: Iterable[Group]) -> Group | None:
    """The group that captions mention most; none where they mention none."""
    best = max(groups, key=lambda group: (group.mentioned, len(group.sizes), group.name), default=None)
    return best if best is not None and best.mentioned >= MENTIONED else None
