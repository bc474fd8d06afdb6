"""Where the weights of a mixture come from: the source of a sample, a column, a score, or a list of uids."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from dbp.config import require
from dbp.data.column import Column
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, WorldError, nearest
from dbp.formats.by_uid import joined, parquet_batches
from dbp.offers import ReadsColumn


@dataclass(frozen=True)
class Mixture(ABC):
    """How often each kept sample stands in an epoch: its weight, from 0 to 65,535."""

    @abstractmethod
    def weights(self, pool: Pool, rows: Int[np.ndarray, " m"]) -> Float32[np.ndarray, " m"]:
        """The weights of kept rows."""


@dataclass(frozen=True)
class BySource(Mixture):
    """One weight for each source, that is for the shards whose path a pattern names.

    Args:
        sources: From a pattern of paths, such as `cc12m/*` or `*-cc12m-*.tar`, to a weight. The
            pattern may begin at any folder of the path; of several that fit, the first counts.
        otherwise: Weight where none fits; null refuses such a shard.
    """

    sources: dict[Any, Any]
    otherwise: float | None

    def __post_init__(self) -> None:
        require_weights("sources", self.sources)

    def weights(self, pool: Pool, rows: Int[np.ndarray, " m"]) -> Float32[np.ndarray, " m"]:
        """The weights of kept rows.

        Raises:
            ConfigError: A pattern fits no shard, or a shard fits no pattern.
        """
        patterns = [next((p for p in self.sources if _fits(shard, p)), None) for shard in pool.shards]
        if None in patterns and self.otherwise is None:
            raise ConfigError(
                f"mixture.sources: no pattern fits shard {pool.shards[patterns.index(None)]}. Add one, or give the "
                "weight of all other shards as mixture.otherwise."
            )
        if unused := [pattern for pattern in self.sources if pattern not in patterns]:
            raise ConfigError(
                f"mixture.sources: {unused[0]!r} decides for none of {len(pool.shards):,} "
                f"shards, such as {pool.shards[0]}. Correct it, or put it before a wider pattern."
            )
        of_shard = [self.otherwise if pattern is None else self.sources[pattern] for pattern in patterns]
        return np.array(of_shard, np.float32)[pool.column("shard")[rows]]


def require_weights(setting: str, weights: Mapping[Any, Any]) -> None:
    """Refuse weights that are not numbers, and names that YAML took for something else."""
    for name, weight in weights.items():
        must = "named by texts; put this name in quotes: YAML reads no, on and 01 as something else"
        require(isinstance(name, str), setting, name, must)
        ok = isinstance(weight, int | float) and not isinstance(weight, bool)
        require(ok, f"{setting}[{name}]", weight, "a number from 0 to 65,535")


@dataclass(frozen=True)
class ByColumn(ReadsColumn, Mixture):
    """One weight for each text of a column of the pool, such as a language.

    Args:
        column: Its name, of `columns`.
        values: From a text to a weight.
        otherwise: Weight of a text that is not named; null refuses such a row.
        without_value: Weight of a row without a value; null refuses such a row.
    """

    column: str
    values: dict[Any, Any]
    otherwise: float | None
    without_value: float | None

    def __post_init__(self) -> None:
        require(bool(self.column), "column", self.column, "a name of columns")
        require_weights("values", self.values)

    def check(self, column: Column) -> None:
        """Refuse a column that these weights are not for.

        Raises:
            ConfigError: It is one of numbers, or no row has a text that is named.
        """
        if column.codes is None:
            raise ConfigError(
                f"mixture.column={self.column} is a column of numbers, and mixture=by_column weighs texts. Make "
                "it a score (score=from_column) and take mixture=by_score."
            )
        known = frozenset(column.texts)
        if unknown := next((text for text in self.values if text not in known), None):
            raise ConfigError(
                f"mixture.values: no row has {unknown!r} in column {self.column}. {nearest(unknown, column.texts)}"
            )

    def weights(
        self, pool: Pool, rows: Int[np.ndarray, " m"], column: Column | None = None
    ) -> Float32[np.ndarray, " m"]:
        """The weights of kept rows.

        Raises:
            ConfigError: The column is one of numbers, no row has a text that is named, or a kept row has no weight.
        """
        assert column is not None, "bound with its column"
        self.check(column)
        assert column.codes is not None, "a column of texts"
        codes = np.asarray(column.codes)[rows]
        own = np.array([self.values.get(text, np.nan) for text in column.texts] + [np.nan])
        is_named = np.array([text in self.values for text in column.texts] + [False])
        cases = (
            (codes < 0, self.without_value, "no value", "without_value"),
            ((codes >= 0) & ~is_named[codes], self.otherwise, "another value", "otherwise"),
        )
        found = own[codes]
        for mask, weight, what, setting in cases:
            if mask.any() and weight is None:
                row = rows[mask][:1]
                such = "" if setting == "without_value" else f" {column.texts[codes[mask][0]]!r}"
                raise ConfigError(
                    f"mixture.values: {int(mask.sum()):,} of {len(rows):,} kept samples have {what}{such} in "
                    f"column {self.column}, such as {pool.uids(row)[0]!r}. Give their weight as mixture.{setting}; "
                    "0 leaves them out."
                )
            found[mask] = 0 if weight is None else weight
        return found.astype(np.float32)


def weights_of(
    mixture: Mixture, pool: Pool, rows: Int[np.ndarray, " m"], column: Column | None
) -> Float32[np.ndarray, " m"]:
    """The weights of kept rows, by the column that the mixture names, if it names one."""
    if isinstance(mixture, ByColumn):
        return mixture.weights(pool, rows, column)
    return mixture.weights(pool, rows)


def _fits(shard: str, pattern: str) -> bool:
    return fnmatchcase(shard, pattern) or fnmatchcase(shard, f"*/{pattern}")


@dataclass(frozen=True)
class ByScore(Mixture):
    """A weight that grows with a score: max(0, slope x score + offset)."""

    slope: float
    offset: float
    otherwise: float  # weight of a row without a score
    scores: str = runtime("")  # folder of the scores' artifact, as `dbp show` names it; its content enters the key

    def identity(self) -> dict[str, Any]:
        file = Path(self.scores) / "score.npy"
        must = "the folder of a scores artifact, with score.npy in it"
        require(file.is_file(), "mixture.scores", self.scores, must)
        return {"scores": file_digest(file, "mixture.scores")}

    def weights(self, pool: Pool, rows: Int[np.ndarray, " m"]) -> Float32[np.ndarray, " m"]:
        """The weights of kept rows.

        Raises:
            ConfigError: The scores are of another pool.
        """
        found = Scores.load(Path(self.scores))
        if len(found.values) != pool.num_rows:
            raise ConfigError(
                f"mixture.scores={self.scores!r} has {len(found.values):,} rows, and the pool "
                f"has {pool.num_rows:,}. Give scores that were made for this pool."
            )
        scores = found.of(rows)
        weights = np.maximum(np.float32(self.slope) * scores + np.float32(self.offset), 0)
        return np.where(np.isnan(scores), np.float32(self.otherwise), weights).astype(np.float32)


@dataclass(frozen=True)
class ByUid(Mixture):
    """A weight for each uid, from a Parquet file; read batch by batch."""

    column: str  # of the weights; the uids stand in `uid`
    otherwise: float | None  # weight of a kept sample that the file does not name; null refuses it
    file: str = runtime("")  # the Parquet file; its content enters the key

    def identity(self) -> dict[str, Any]:
        require(Path(self.file).is_file(), "mixture.file", self.file, "a Parquet file that is there")
        return {"file": file_digest(self.file, "mixture.file")}

    def weights(self, pool: Pool, rows: Int[np.ndarray, " m"]) -> Float32[np.ndarray, " m"]:
        """The weights of kept rows; samples that share a uid share its weight.

        Raises:
            ConfigError: A column is missing, or a kept sample is not named.
            WorldError: The file is no Parquet, or names a uid twice.
        """
        said = f"mixture.file={self.file}"
        batches = parquet_batches(self.file, "uid", self.column, "mixture.file")
        found, is_named, _ = joined(pool.uid_hashes[rows], batches, said)
        if (null := is_named & np.isnan(found)).any():
            raise WorldError(f"{said}: uid {pool.uids(rows[null][:1])[0]!r} has no weight. Give a number.")
        is_missing = np.isnan(found)
        if is_missing.any() and self.otherwise is None:
            row = rows[is_missing][:1]
            raise ConfigError(
                f"mixture.file={self.file} does not name {int(is_missing.sum()):,} of {len(rows):,} kept samples, "
                f"such as {pool.uids(row)[0]!r}. Name them, or give their weight as mixture.otherwise."
            )
        return np.where(is_missing, self.otherwise or 0, found).astype(np.float32)
