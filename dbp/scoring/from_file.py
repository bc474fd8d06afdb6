"""A score that another tool made, by the names of its samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from dbp.config import require
from dbp.data.missing import Missing
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.paths import file_digest
from dbp.engine.stage import Stage, runtime
from dbp.engine.work import Work
from dbp.errors import ConfigError, WorldError
from dbp.formats.by_uid import array_batches, csv_batches, joined, parquet_batches
from dbp.formats.exchange import kind_of


@dataclass(frozen=True)
class FileScore(Stage):
    """Numbers of a file, joined by uid, in float32; missing where the file has no number for a row.

    Names that the pool lacks are counted. A uid that comes twice is refused.

    Args:
        column: Of the numbers, in Parquet and CSV; elsewhere what the score is called.
        uid: Column of the names.
        not_finite: What becomes of null, NaN and infinite numbers: `missing` and counted, or an `error`.
        higher_is_better: Whether the best rows have the highest values.
        file: Parquet, CSV with a header, `.npy` of numbers with `uids` beside, or a folder of Parquet files.
        uids: The names of the numbers of a `.npy`: DataComp's pairs, one name a line, or Parquet.
    """

    name: ClassVar[str] = "score"
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    makes: ClassVar[type] = Scores

    column: str
    uid: str
    not_finite: Literal["missing", "error"]
    higher_is_better: bool = True
    file: str | None = runtime(None)
    uids: str | None = runtime(None)

    def identity(self) -> dict[str, Any]:
        named = {"file": self.files() if self.file else [], "uids": [self.uids] if self.uids else []}
        return {
            name: [file_digest(file, f"score.{name}") for file in files] for name, files in named.items() if files
        }

    def files(self) -> list[Path]:
        """The files of numbers.

        Raises:
            ConfigError: The file is not named, or the folder holds none.
        """
        require(bool(self.file), "score.file", self.file, "a file of numbers by uid")
        path = Path(str(self.file))
        found = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        require(len(found) > 0, "score.file", self.file, "a file, or a folder of .parquet files")
        return found

    def batches(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Names and numbers of all files."""
        for file in self.files():
            kind = kind_of(file)
            if kind == "npy":
                yield from array_batches(file, self.uids, "score.file")
            elif kind == "parquet":
                yield from parquet_batches(file, self.uid, self.column, "score.file")
            elif kind == "text":
                yield from csv_batches(file, self.uid, self.column, "score.file")
            else:
                raise WorldError(
                    f"score.file={str(file)!r} is not Parquet, CSV or .npy. Save the numbers as one of these."
                )

    def run(self, work: Work, pool: Pool) -> dict[str, Any]:
        values, is_named, others = joined(pool.uid_hashes, self.batches(), f"score.file={self.file}")
        if not is_named.any():
            raise WorldError(
                f"score.file={self.file}: none of its {others:,} names is a uid of the pool, such as "
                f"{(pool.uids(np.arange(min(1, pool.num_rows))) or ['(no row)'])[0]!r}. Name the column of uids "
                "(score.uid), or index the pool with the uids that the file uses (pool.uid)."
            )
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        is_bad = is_named & ~np.isfinite(values)
        if self.not_finite == "error" and is_bad.any():
            uid = pool.uids(np.flatnonzero(is_bad)[:1])[0]
            raise ConfigError(
                f"score.file={self.file}: {int(is_bad.sum()):,} samples, such as {uid!r}, have no finite number in "
                f"{self.column!r}. Correct them, or set score.not_finite=missing."
            )
        values[is_bad] = np.nan
        rows = np.flatnonzero(~is_named | is_bad)
        missing = Missing(rows, is_bad[rows].astype(np.uint8), ("not in the file of scores", "no finite score"))
        Scores(values, missing, self.column, self.higher_is_better).save(work.folder)
        return {
            "rows": pool.num_rows - len(rows),
            "without score": len(rows),
            "not finite": int(is_bad.sum()),
            "named, not in the pool": others,
        }
