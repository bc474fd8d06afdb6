"""A keep list that another tool made, by the names of its samples."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int, Real, UInt32

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.paths import file_digest
from dbp.engine.progress import log
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, WorldError
from dbp.formats.exchange import kind_of, read_texts, read_uid_file, weights_beside
from dbp.formats.shared_names import hits_text
from dbp.formats.uid_pairs import BLOCK, Names, hashes_64, hex_bytes, match_pairs
from dbp.narrowing import Narrowing


@dataclass(frozen=True)
class ImportedList(Narrowing):
    """Keep the samples that a list names; takes no budget.

    The list is a DataComp uid file, a text of one name a line, or a Parquet file. Names that the pool lacks
    are counted. Memory: a uid file 16 bytes a name, other lists the names themselves and 16 bytes each.

    Args:
        join: What the list names of the pool: `uid`, or `key` (the tar's).
        column: The column of a Parquet list that holds the names.
        repeats: What a name that comes again says: `error`; `once`, nothing; `keep`, that its sample is taken so
            often in each epoch, as DataComp's lists mean it; so often also as a column `weight` of a Parquet list
            says, where fractions are means of what each epoch draws anew. Without `keep` such a list is refused.
        file: The list.
    """

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")

    join: Literal["uid", "key"]
    column: str
    repeats: Literal["error", "once", "keep"]
    file: str | None = runtime(None)

    def identity(self) -> dict[str, Any]:
        if not self.file:
            return {}
        digest = file_digest(self.file, "select.file")
        weights = {} if weights_beside(self.file) is None else {"weights": True}  # once they were not read
        return {"list": digest, **weights}

    def decide(self, rows: KeepList, pool: Pool) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        if not self.file:
            raise ConfigError("select.file is not set. Name the list: select.file=FILE.")
        times, num_names, hits, num_repeats = self.times_of(pool)
        listed = times > 0
        if not listed.any():
            raise WorldError(
                f"none of the {num_names:,} names in {self.file} is a {self.join} of the pool. The list begins "
                f"with {self._first()!r}, the pool with "
                f"{_names_at(pool, self.join, np.arange(1))[0].as_py()!r}. Set select.join="
                f"{'key' if self.join == 'uid' else 'uid'} if the list holds those, or index the pool with the "
                "uids that the list uses (pool.uid)."
            )
        kept = rows.within("select", listed, "not in the list", "in the list")
        draws = {}
        if self.repeats == "keep":
            kept = kept.weighted(times[kept.mask])
            draws = {"draws": kept.num_draws, "most draws of a row": float(times[kept.mask].max(initial=0))}
            draws = {name: int(value) if value == int(value) else round(value, 4) for name, value in draws.items()}
        counts = {
            **draws,
            "listed": num_names,
            "repeated": num_repeats,
            "listed, not in the pool": num_names - int(np.count_nonzero(hits)),
            "listed, gone before": int(np.count_nonzero(listed & ~rows.mask)),
        }
        if num_several := int(np.count_nonzero(hits > 1)):
            num_rows = int(hits[hits > 1].sum())
            log.warning(
                "%s of the %s names in %s are the %s of several samples: %s. All %s are listed. Index the pool "
                "with a rule that parts them (pool.uid), and make the list from it.",
                f"{num_several:,}", f"{num_names:,}", self.file, self.join, hits_text(hits), f"{num_rows:,}",
            )  # fmt: skip
            counts |= {"listed names of several samples": num_several, "samples of those names": num_rows}
        return kept, counts

    def times_of(self, pool: Pool) -> tuple[Real[np.ndarray, " n"], int, Int[np.ndarray, " l"], int]:
        """How often each row is listed; how many names there are; rows of each name; names that repeat another."""
        return self._by_pair(pool) if self._is_pairs else self._by_text(pool)

    @property
    def _is_pairs(self) -> bool:
        return kind_of(str(self.file)) in ("npy", "raw")

    def _first(self) -> str:
        """The first name of the list, to show beside one of the pool."""
        if not self._is_pairs:
            return str(read_texts(str(self.file), self.column)[0].as_py())
        first = read_uid_file(str(self.file), allow_repeats=True)[0]
        return f"{int(first['f0']):016x}{int(first['f1']):016x}"

    def _by_pair(self, pool: Pool) -> tuple[UInt32[np.ndarray, " n"], int, Int[np.ndarray, " l"], int]:
        require(self.join == "uid", "join", self.join, "uid, as the list is a file of uids")
        pairs = read_uid_file(str(self.file), allow_repeats=self.repeats != "error")
        high, low = np.ascontiguousarray(pairs["f0"]), np.ascontiguousarray(pairs["f1"])
        is_new = np.ones(len(pairs), bool)
        is_new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        firsts = np.flatnonzero(is_new)
        often = np.diff(np.r_[firsts, len(pairs)]).astype(np.uint32)
        hits = np.zeros(len(pairs), np.int32)
        times = np.zeros(pool.num_rows, np.uint32)
        for start in range(0, pool.num_rows, BLOCK):
            block = np.arange(start, min(start + BLOCK, pool.num_rows))
            found, is_hex = hex_bytes(_names_at(pool, "uid", block))
            place = match_pairs(high, low, found)
            place[~is_hex] = -1
            at = np.flatnonzero(place >= 0)
            times[block[at]] = often[np.searchsorted(firsts, place[at])]
            np.add.at(hits, place[place >= 0], 1)
        num_names = int(np.count_nonzero(is_new))
        return times, num_names, hits, len(pairs) - num_names

    def _by_text(self, pool: Pool) -> tuple[Real[np.ndarray, " n"], int, Int[np.ndarray, " l"], int]:
        texts = read_texts(str(self.file), self.column)
        names = Names.of(texts)
        if (repeats := names.num_repeats) and self.repeats == "error":
            raise WorldError(
                f"{self.file} repeats {repeats:,} of its {len(texts):,} names. Set select.repeats=once to "
                "take each once, or select.repeats=keep to take its sample as often as it stands there."
            )
        weights = self._weights()
        if weights is not None:
            often = names.sums(weights) if repeats else weights
        else:
            often = names.counts if repeats else None
        hits = np.zeros(len(texts), np.int32)
        times = np.zeros(pool.num_rows, np.uint32 if weights is None else np.float32)
        for start in range(0, pool.num_rows, BLOCK):
            block = np.arange(start, min(start + BLOCK, pool.num_rows))
            own = _names_at(pool, self.join, block)
            hashes = pool.uid_hashes[block] if self.join == "uid" else hashes_64(own)
            place = names.find(hashes, own)
            at = np.flatnonzero(place >= 0)
            times[block[at]] = 1 if often is None else often[place[at]]
            np.add.at(hits, place[at], 1)
        num_names = len(texts) - repeats
        return times, num_names, hits, repeats

    def _weights(self) -> np.ndarray | None:
        """How often each name of the list is taken, where a column says it.

        Raises:
            ConfigError: It does, and `repeats` does not allow it.
        """
        weights = weights_beside(str(self.file))
        if weights is None or (weights == 1).all():
            return None
        if self.repeats != "keep":
            raise ConfigError(
                f"{self.file} has a column weight, such as {weights[weights != 1][0]:g}, which "
                f"select.repeats={self.repeats} would lose. Set select.repeats=keep to take each sample so often, "
                "or write the list without that column."
            )
        return weights


def _names_at(pool: Pool, column: str, rows: np.ndarray) -> Any:
    return pool.index.at(column, rows)
