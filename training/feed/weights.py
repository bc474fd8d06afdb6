"""Where the weights of a mixture come from: the source of a sample, its score, or a list of uids."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int

from dbp.config import require
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, WorldError, nearest
from dbp.formats.uid_pairs import hashes_64, texts_of


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

    sources: dict[str, Any]
    otherwise: float | None

    def __post_init__(self) -> None:
        for pattern, weight in self.sources.items():
            ok = isinstance(weight, int | float) and not isinstance(weight, bool)
            require(ok, f"sources[{pattern}]", weight, "a number from 0 to 65,535")

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
        hashes = pool.uid_hashes[rows]
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        found = np.full(len(rows), np.nan, np.float32)
        seen = np.zeros(len(rows), bool)
        for uids, weights in self._batches():
            named = hashes_64(uids)
            first = np.searchsorted(ordered, named)
            last = np.searchsorted(ordered, named, side="right")
            inside = np.flatnonzero(last > first)
            at, counts = first[inside], (last - first)[inside]
            repeated = np.setdiff1d(np.arange(len(at)), np.unique(at, return_index=True)[1])
            if len(twice := np.r_[inside[seen[at]], inside[repeated]]):
                raise WorldError(
                    f"mixture.file={self.file}: uid {uids[int(twice[0])].as_py()!r} stands "
                    "there more than once. Name each uid once."
                )
            seen[at] = True
            places = np.repeat(at - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
            found[places] = np.repeat(weights[inside], counts)
            if len(null := inside[np.isnan(weights[inside])]):
                uid = uids[int(null[0])].as_py()
                raise WorldError(f"mixture.file={self.file}: uid {uid!r} has no weight. Give a number.")
        is_missing = np.isnan(found)
        if is_missing.any() and self.otherwise is None:
            row = rows[order[is_missing][:1]]
            raise ConfigError(
                f"mixture.file={self.file} does not name {int(is_missing.sum()):,} of {len(rows):,} kept samples, "
                f"such as {pool.uids(row)[0]!r}. Name them, or give their weight as mixture.otherwise."
            )
        weights = np.empty_like(found)
        weights[order] = np.where(is_missing, np.float32(self.otherwise or 0), found)
        return weights

    def _batches(self) -> Any:
        try:
            file = pq.ParquetFile(self.file)
        except (OSError, pa.ArrowInvalid) as error:
            raise WorldError(f"mixture.file={self.file!r} cannot be read as Parquet: {error}") from error
        names = file.schema_arrow.names
        for name in ("uid", self.column):
            if name not in names:
                raise ConfigError(f"mixture.file={self.file} has no column {name!r}. {nearest(name, names)}")
        for batch in file.iter_batches(1 << 18, columns=["uid", self.column]):
            weights = batch.column(self.column).cast(pa.float32())
            yield texts_of(batch.column("uid")), weights.to_numpy(zero_copy_only=False)
