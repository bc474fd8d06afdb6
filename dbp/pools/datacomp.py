"""A DataComp pool from its metadata: Parquet files of one row a sample, with features in `.npz` beside.

    dbp curate pool=datacomp pool.metadata=FOLDER encoder=datacomp_l14 select=dbp …

No picture is needed: uid, caption, size and CLIP scores stand in the metadata. With `pool.shards` the tars
that the downloader wrote are joined by uid: rows keep the metadata's order and get their place in the tars,
and rows that could not be downloaded are invalid, so that a budget counts what exists.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32

from dbp.config import require
from dbp.data.images import DROP
from dbp.data.pool import SCHEMA, Pool
from dbp.engine.parts import Parted
from dbp.engine.paths import expand_shards, is_remote
from dbp.engine.stage import Node, runtime
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError, PoolError, nearest
from dbp.formats.metadata_rows import (
    JOINING,
    NOT_THERE,
    PLACE,
    REASONS,
    batches,
    feed,
    index_columns,
    join,
    reading,
)
from dbp.pools.identity import joined, warn_of_twins
from dbp.pools.index import Index, part_name, require_background
from dbp.pools.whole import check_expected, found_again, write_names

SCORES = ("clip_b32_similarity_score", "clip_l14_similarity_score")


def metadata_files(folder: str | None) -> list[Path]:
    """The Parquet files of a metadata folder, by name: their rows in this order are the pool's.

    Raises:
        ConfigError: No folder is named, or it is none, or holds no Parquet file.
    """
    if not folder:
        raise ConfigError(
            "pool.metadata names no folder. Name the folder of DataComp's metadata: "
            "pool.metadata=FOLDER, with a .parquet (and, for features, a .npz) for each part."
        )
    if not Path(folder).is_dir():
        raise ConfigError(f"pool.metadata={folder!r}: there is no such folder. Correct the path.")
    found = sorted(Path(folder).glob("[!.]*.parquet"))
    if not found:
        raise ConfigError(f"pool.metadata={folder!r}: the folder holds no .parquet file.")
    return found


class Tars(Index):
    """The index of the tars that were downloaded, which the metadata is joined with."""

    name: ClassVar[str] = "tars"


@dataclass(frozen=True)
class Metadata(Parted):
    """Read the metadata once and write the pool's index.

    The pool's digest covers all that later stages can read of it: uids, captions, content hashes, sizes, scores and
    further columns. Memory: a batch of rows; with tars, 16 bytes for each of their samples in each process.

    Args:
        caption: Where the tars hold captions, `txt` or `json:FIELD`; read only with `shards`.
        max_pixels: As for tars; read only with `shards`.
        columns: Further columns of the metadata that filters and scores may read, such as a language.
        max_samples: Use only so many samples, from the front; null for all.
        metadata: The folder.
        background: As for tars: what lies behind transparent pixels.
        shards: Downloaded tars, whose json members hold the uid; empty for none.
        expect: How many samples the metadata must have; null for as many as are there.
    """

    name: ClassVar[str] = "index"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("tars",)
    makes: ClassVar[type] = Pool
    content_named: ClassVar[bool] = True
    unit: ClassVar[str] = "files"
    keeps_parts: ClassVar[bool] = True

    caption: str
    max_pixels: int
    columns: tuple[str, ...] = ()
    max_samples: int | None = None
    background: str = DROP
    metadata: str | None = runtime(None)
    shards: str | list[str] = runtime("")
    expect: int | None = runtime(None)

    def __post_init__(self) -> None:
        self._tars()  # its checks of caption and max_pixels
        known = {*SCHEMA.names, *SCORES, "text", "original_width", "original_height"}
        for name in self.columns:
            require(name not in known, "columns", name, "a column that is not read already")
        at_least = self.max_samples is None or self.max_samples > 0
        require(at_least, "max_samples", self.max_samples, "above 0, or null for all")
        require_background(self.background)

    def _tars(self) -> Tars:
        return Tars("json:uid", self.caption, self.max_pixels, shards=self.shards)

    def node(self) -> Node:
        """This pool as a config names it, the tars' index before it where tars are named."""
        metadata_files(self.metadata)
        if remote := next((s for s in self._shards() if is_remote(s)), None):
            raise ConfigError(
                f"pool.shards names {remote}: a DataComp pool reads its tars in the metadata's order, "
                "which a stream cannot do. Copy the tars to a file system, or use pool=webdataset."
            )
        return self.bind(tars=self._tars().bind(folder=None) if self.shards else None)

    def _shards(self) -> list[str]:
        return expand_shards(self.shards) if self.shards else []

    def source(self) -> dict[str, Any]:
        """Names, sizes and times of the files: a changed file is read again, a path is no matter."""
        if not self.metadata:
            return {}
        stats = [(file.name, file.stat()) for file in metadata_files(self.metadata)]
        described = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        return {"metadata": hashlib.sha256(json.dumps(described).encode()).hexdigest()}

    def accept(self, counts: Mapping[str, Any]) -> None:
        check_expected(counts["rows"], self.expect)

    def open(self, home: Path) -> Pool:  # type: ignore[override]
        shards = found_again(home, self.shards) if self.shards else []
        return Pool.load(home, shards, self.caption, self.max_pixels, self.background)

    def parts(self, tars: Pool | None = None) -> list[Part]:
        """One for each file."""
        files = metadata_files(self.metadata)
        if self.max_samples is not None:
            ends = np.cumsum(_lengths(files))
            files = files[: int(np.searchsorted(ends, self.max_samples)) + 1]
        sizes = (float(file.stat().st_size) for file in files)
        return [Part(part_name(number), number, size) for number, size in enumerate(sizes)]

    def make(self, part: Part, folder: Path, tars: Pool | None = None) -> dict[str, Any]:  # type: ignore[override]
        files = metadata_files(self.metadata)
        limit = None
        if self.max_samples is not None:
            limit = self.max_samples - sum(_lengths(files[: part.number]))
        counts: Counter[str] = Counter(rows=0)
        content: dict[str, Any] = defaultdict(hashlib.sha256)
        schema = self._schema(files[0], is_joined=tars is not None)
        with pq.ParquetWriter(folder / "index.parquet", schema, compression="zstd") as writer:
            needed = {"uid", "text", *schema.names} - set(SCHEMA.names) | {"uid"}
            for batch in batches(files[part.number], needed, limit):
                columns = index_columns(batch, part.number)
                if tars is not None:
                    counts.update(join(columns, tars))
                table = pa.table({item.name: columns[item.name].cast(item.type) for item in schema})
                for value in pc.call_function("value_counts", [table["reason"]]).to_pylist():
                    counts[value["values"]] += value["counts"]
                counts["rows"] += len(table)
                for item in schema:
                    if item.name not in PLACE:
                        feed(content, item.name, table[item.name])
                writer.write_table(table)
        counts.pop("", None)
        named = "".join(f"{name} {content[name].hexdigest()} " for name in sorted(content))
        return {"counts": dict(counts), "digest": hashlib.sha256(named.encode()).hexdigest()}

    def finish(  # type: ignore[override]
        self, work: Work, counts: Mapping[str, dict[str, Any]], tars: Pool | None = None
    ) -> dict[str, Any]:
        JOINING.clear()
        counted: Counter[str] = Counter()
        for found in counts.values():
            counted.update(found["counts"])
        rows = counted.pop("rows")
        if rows == 0:
            raise PoolError(f"the {len(counts):,} Parquet files of {self.metadata} hold no row.")
        index = joined(work.shared, counts, self.background)
        warn_of_twins(index, "the metadata's uids")
        if tars is not None:
            counted["in tars, not in the metadata"] = int((~np.isin(tars.uid_hashes, index.uids)).sum())
            if counted[NOT_THERE] + counted[REASONS[1]] == rows:
                raise PoolError(
                    f"none of the {rows:,} uids of {self.metadata} is among the {tars.num_rows:,} samples "
                    f"of pool.shards, the first of which has the uid {tars.uids(np.array([0]))[0]!r}. Name the "
                    "tars that were downloaded from this metadata; their json members hold the uid."
                )
            write_names(work.folder, tars.shards)
        return {**index.counts(rows, shards=len(counts)), **dict(sorted(counted.items()))}

    def _schema(self, file: Path, is_joined: bool) -> pa.Schema:
        """The columns of every part of the index."""
        with reading(file):
            there = pq.read_schema(file)
        for name in self.columns:
            if name not in there.names:
                raise ConfigError(f"columns={name!r}: {file} has no such column. {nearest(name, there.names)}")
        schema = SCHEMA
        if not is_joined:  # else captions are those of the tars, which training will see
            schema = schema.append(pa.field("text", pa.string()))
        for name in SCORES:
            if name in there.names:
                schema = schema.append(pa.field(name, pa.float32()))
        for name in self.columns:
            schema = schema.append(pa.field(name, there.field(name).type))
        return schema


def _lengths(files: list[Path]) -> list[int]:
    found = []
    for file in files:
        with reading(file):
            found.append(pq.read_metadata(file).num_rows)
    return found


def score_column(pool: Pool, name: str, setting: str) -> Float32[np.ndarray, " n"]:
    """A score in the pool's metadata, in float32; NaN where there is none.

    Raises:
        ConfigError: The pool has no such column, or it holds no numbers; it names the setting.
    """
    if name not in pool.index.names:
        raise ConfigError(
            f"{setting}={name!r}: the pool has no such column. {nearest(name, pool.index.names)} To "
            "compute CLIP scores: score=clip_score, with filter=threshold or filter=top_fraction."
        )
    values = pool.column(name)
    if values.dtype.kind not in "fiu":
        raise ConfigError(f"{setting}={name!r}: the column holds no numbers, and a score is one.")
    values = values.astype(np.float32)
    values[~np.isfinite(values)] = np.nan
    return values
