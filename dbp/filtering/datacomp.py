"""DataComp's filtering baselines (Gadre et al. 2023), as chains of single rules.

The rules that need data of others (a language model, WordNet, centroids) take it as files; the preset of
each filter says which. With `language: null` the language rule is left out.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.stage import runtime
from dbp.errors import ConfigError
from dbp.exact.order import first, score_keys
from dbp.filtering.combine import Chain
from dbp.filtering.language import Language, NamesObject
from dbp.filtering.near_targets import NearTargets
from dbp.filtering.rules import Rules
from dbp.filtering.threshold import by_score
from dbp.narrowing import Narrowing
from dbp.pools.datacomp import score_column


def _language(by: str | None) -> tuple[Language, ...]:
    try:
        return (Language(by),) if by else ()
    except ConfigError as error:  # it names its own field
        raise ConfigError(f"filter.language{str(error).removeprefix('by')}") from error


@dataclass(frozen=True)
class ScoreColumn(Narrowing):
    """Keep rows by a score in the pool's metadata: at least `minimum`, or the best `fraction`.

    Rows without a score go. Compared in float32, as the column is stored.

    Args:
        column: Such as `clip_l14_similarity_score` of a DataComp pool.
        minimum: The least score that stays; null when a fraction is given.
        fraction: Share of the rows that reach this filter: exactly floor(fraction * rows), ties by uid hash.
        reference: As DataComp's code counts: one row more, and all that tie with the last.

    Source: DataComp's clip_score filter.
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")

    column: str
    minimum: float | None
    fraction: float | None
    reference: bool = False

    def __post_init__(self) -> None:
        given = (self.minimum, self.fraction)
        require(given.count(None) == 1, "minimum", self.minimum, "given, or fraction, and not both")
        in_range = self.fraction is None or 0 < self.fraction <= 1
        require(in_range, "fraction", self.fraction, "above 0 and at most 1")

    def unread(self) -> set[str]:
        return {"reference"} if self.fraction is None else set()

    def at_most(self, num_rows: int) -> int:
        """The most rows that can be left of so many."""
        if self.fraction is None or self.reference:
            return num_rows
        return int(Decimal(str(self.fraction)) * num_rows)

    def decide(self, rows: KeepList, pool: Pool) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        scores = Scores(score_column(pool, self.column, "filter.column"), label=self.column)
        if self.minimum is not None or self.reference:
            limit = np.float32(
                self.minimum
                if self.minimum is not None
                else reference_limit(scores.values[rows.mask], self.fraction or 1)
            )
            with np.errstate(invalid="ignore"):
                return by_score(rows, scores.values >= limit, scores, float(limit))
        scored = rows.mask & ~np.isnan(scores.values)
        keep = first(score_keys(scores, pool.uid_hashes), scored, self.at_most(rows.num_kept))
        return by_score(rows, keep, scores, scores.worst(keep))


def reference_limit(values: Float32[np.ndarray, " n"], fraction: float) -> np.float32:
    """The score from which DataComp's code keeps a fraction: the n-th largest counted from 0, n = int(N f).

    Raises:
        ConfigError: There it would stop with an error (fraction 1), or keep nothing (a missing score comes
            to stand at the border).
    """
    number = int(len(values) * fraction)
    ordered = np.sort(-values)  # missing scores come last
    if number >= len(values) or np.isnan(ordered[number]):
        missing = int(np.isnan(values).sum())
        raise ConfigError(
            f"fraction={fraction}: DataComp's rule takes the score at place {number:,} of {len(values):,} as "
            f"its limit, and {missing:,} rows have no score, so it keeps nothing or fails. Set "
            "reference=false, or a lower fraction."
        )
    return np.float32(-ordered[number])


@dataclass(frozen=True)
class Basic(Chain):
    """DataComp's basic filter: caption length, picture size, and the language where a way to tell is given.

    Args:
        min_words: Words divided by white space, at least.
        min_characters: Characters of the caption, at least.
        min_side: Pixels of the shorter side of the original picture, at least.
        max_aspect_ratio: Longer side over shorter side, at most.
        language: Who tells English (see `Language`); null leaves the rule out.
    """

    version: ClassVar[int] = 1

    min_words: int
    min_characters: int
    min_side: int
    max_aspect_ratio: float
    language: str | None = runtime(None)

    def steps(self) -> tuple[Any, ...]:
        rules = Rules(self.min_words, self.min_characters, self.min_side, self.max_aspect_ratio)
        return (rules, *_language(self.language))


@dataclass(frozen=True)
class TextBased(Chain):
    """DataComp's text-based filter: English captions that name an object of ImageNet-21k.

    Args:
        language: Who tells English (see `Language`); null leaves the rule out.
        ids: File of ImageNet-21k ids (see `NamesObject`).
        words: File of words and their first sense; null asks nltk.
    """

    version: ClassVar[int] = 1

    language: str | None = runtime(None)
    ids: str | None = runtime(None)
    words: str | None = runtime(None)

    def steps(self) -> tuple[Any, ...]:
        return (*_language(self.language), NamesObject(self.ids, self.words))


@dataclass(frozen=True)
class Laion2B(Chain):
    """LAION-2B's filter: a B/32 CLIP score of at least `minimum`, and English.

    Args:
        column: The score in the pool's metadata.
        minimum: The least score that stays.
        language: Who tells English (see `Language`); null leaves the rule out.
    """

    version: ClassVar[int] = 1

    column: str
    minimum: float
    language: str | None = runtime(None)

    def steps(self) -> tuple[Any, ...]:
        return (ScoreColumn(self.column, self.minimum, None), *_language(self.language))


@dataclass(frozen=True)
class ImageBased(Chain):
    """DataComp's image-based filter: pictures whose cluster is the nearest of some ImageNet-1k picture.

    Args:
        min_words: Words of the caption, at least, as fastText counts them (see `Rules`). The basic filter of
            DataComp's code counts them by `str.split`.
        min_characters: Characters of the caption, at least.
        language: Who tells English (see `Language`); null leaves the rule out.
        centroids: `.npy` of shape (k, d): DataComp's centroids of the pool's L/14 image vectors.
        targets: `.npy` of shape (m, d): L/14 vectors of ImageNet-1k's training pictures.
    """

    version: ClassVar[int] = 2  # 2: words as fastText counts them

    min_words: int
    min_characters: int
    language: str | None = runtime(None)
    centroids: str | None = runtime(None)
    targets: str | None = runtime(None)

    def steps(self) -> tuple[Any, ...]:
        caption = Rules(self.min_words, self.min_characters, 0, 1e6, "fasttext")
        return (*_language(self.language), caption, NearTargets(self.centroids, self.targets))
