"""Columns of a pool: fields of its json, of Parquet beside its tars, of its metadata, of a file joined by uid."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dbp.config import require
from dbp.data.caption_text import read_json
from dbp.data.column import Column
from dbp.data.pool import Pool
from dbp.engine.parts import Parted
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError, PoolError, WorldError, nearest
from dbp.formats.by_uid import joined
from dbp.formats.tars import samples
from dbp.formats.uid_pairs import texts_of

KINDS = ("json", "parquet", "pool", "file")
MOST_TEXTS = 1 << 24
BATCH = 1 << 16


@dataclass(frozen=True)
class ReadColumn(Parted):
    """One value for each row, or none: numbers (also true and false, as 1 and 0), or texts.

    Null, NaN, an empty text and a field that is not there are no value, and counted. A column holds numbers or
    texts, not both. It is an artifact of its own, so a column that is added later leaves the pool as it is.

    Args:
        kind: `json`: a field of each sample's json; `parquet`: of img2dataset's Parquet beside each tar, joined by
            key; `pool`: a column of the index, such as a DataComp pool has; `file`: of Parquet, joined by uid.
        field: Its name; of nested json as `exif.make`.
        uid: Column of the names in a file.
        file: The Parquet file; its content enters the key.
    """

    name: ClassVar[str] = "column"
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    makes: ClassVar[type] = Column
    unit: ClassVar[str] = "shards"

    kind: Literal["json", "parquet", "pool", "file"]
    field: str
    uid: str = "uid"
    file: str | None = runtime(None)

    @classmethod
    def of(cls, said: str, setting: str) -> "ReadColumn":
        """What a setting says: json:FIELD, parquet:FIELD, pool:NAME, or file:PATH:COLUMN.

        Raises:
            ConfigError: It is none of these.
        """
        kind, _, rest = said.partition(":")
        path, _, column = rest.rpartition(":") if kind == "file" else ("", "", rest)
        ok = kind in KINDS and column and (kind != "file" or path)
        require(bool(ok), setting, said, "json:FIELD, parquet:FIELD, pool:NAME, or file:PATH:COLUMN")
        return cls(kind, column, file=path or None)  # type: ignore[arg-type]

    def unread(self) -> set[str]:
        return set() if self.kind == "file" else {"uid"}

    def identity(self) -> dict[str, Any]:
        return {"file": file_digest(self.file, f"columns: file:{self.file}")} if self.file else {}

    def parts(self, pool: Pool) -> list[Part]:
        """One for each shard where tars are read, else one."""
        if self.kind in ("pool", "file"):
            return [Part("whole", 0, 1.0)]
        shards = len(pool.index.starts) - 1
        if not pool.shards or shards > len(pool.shards):
            raise ConfigError(
                f"columns: {self.kind}:{self.field} is read from the pool's tars, and this pool's rows are those "
                "of metadata. Name its column with pool:NAME, or a file with file:PATH:COLUMN."
            )
        return [Part(f"part-{number:07d}", number, 1.0) for number in range(shards)]

    def make(self, part: Part, folder: Path, pool: Pool) -> dict[str, Any]:  # type: ignore[override]
        read = {"json": self._json, "parquet": self._parquet, "pool": self._index, "file": self._joined}[self.kind]
        values = list(read(pool, part.number))
        known = [None if is_none(value) else value for value in values]
        kinds = sorted({type_of(value, self.field) for value in known if value is not None})
        if len(kinds) > 1:
            pair = {type_of(value, self.field): value for value in known if value is not None}
            raise PoolError(
                f"columns: {self.kind}:{self.field} holds numbers and texts in {self._where(pool, part.number)}, "
                f"such as {pair['number']!r} and {pair['text']!r}. A column holds one kind: write it anew as "
                "one, and name the file with file:PATH:COLUMN."
            )
        kind = pa.string() if kinds == ["text"] else pa.float64() if kinds else pa.null()
        if kinds == ["number"]:
            known = [None if value is None else float(value) for value in known]
        pq.write_table(pa.table({"value": pa.array(known, kind)}), folder / "value.parquet")
        return {"rows": len(known), "kind": kinds[0] if kinds else "", "missing": sum(v is None for v in known)}

    def _where(self, pool: Pool, number: int) -> str:
        return f"shard {pool.shards[number]}" if self.kind in ("json", "parquet") else str(self.file or "the index")

    def _json(self, pool: Pool, number: int) -> Iterator[Any]:
        """The field of each sample of a shard, in the order of its rows."""
        first, last = pool.index.starts[number : number + 2].tolist()
        keys = pool.column("key", np.arange(first, last)).tolist()
        found = 0
        for sample, key in zip(samples(pool.shards[number], lambda _: None), keys, strict=False):
            if sample.key != key:
                break
            member = sample.members.get("json")
            whole = None if member is None else read_json(member.content)[0]
            for name in self.field.split("."):
                whole = whole.get(name) if isinstance(whole, dict) else None
            found += 1
            yield whole
        if found != len(keys):
            raise PoolError(
                f"shard {pool.shards[number]} has other samples than when it was indexed: sample {found:,} is not "
                f"{keys[found]!r}. Restore it, or run again to index it anew."
            )

    def _parquet(self, pool: Pool, number: int) -> Iterator[Any]:
        first, last = pool.index.starts[number : number + 2].tolist()
        keys = pool.column("key", np.arange(first, last)).tolist()
        file = Path(pool.shards[number]).with_suffix(".parquet")
        if not file.is_file():
            return iter([None] * len(keys))
        table = _read(file, ["key", self.field], f"columns: parquet:{self.field}")
        named = dict(zip(table["key"].to_pylist(), table[self.field].to_pylist(), strict=True))
        return iter([named.get(key) for key in keys])

    def _index(self, pool: Pool, number: int) -> Iterator[Any]:
        if self.field not in pool.index.names:
            raise ConfigError(
                f"columns: pool:{self.field}: the index has no such column. "
                f"{nearest(self.field, pool.index.names)} Of a DataComp pool, "
                f"pool.columns=[{self.field}] carries it."
            )
        for start in range(0, pool.num_rows, BATCH):
            yield from pool.index.at(self.field, np.arange(start, min(start + BATCH, pool.num_rows))).to_pylist()

    def _joined(self, pool: Pool, number: int) -> Iterator[Any]:
        """Values by uid: each distinct value has a number, which is joined."""
        seen: dict[Any, int] = {}

        def batches() -> Iterator[tuple[Any, np.ndarray]]:
            said = f"columns: file:{self.file}:{self.field}"
            table = _read(Path(str(self.file)), [self.uid, self.field], said)
            for batch in table.to_batches(BATCH):
                values = batch.column(1).to_pylist()
                codes = [seen.setdefault(value, len(seen)) for value in values]
                yield texts_of(batch.column(0)), np.array(codes, np.float64)

        numbers, is_named, others = joined(pool.uid_hashes, batches(), f"columns: file:{self.file}:{self.field}")
        if not is_named.any():
            raise WorldError(
                f"columns: file:{self.file}:{self.field}: none of its {others:,} names is a uid of the pool, such "
                f"as {(pool.uids(np.arange(min(1, pool.num_rows))) or ['(no row)'])[0]!r}. Write the pool's uids "
                "into its column uid."
            )
        values = list(seen)
        return (values[int(code)] if there else None for code, there in zip(numbers, is_named, strict=True))

    def finish(self, work: Work, counts: Mapping[str, dict[str, Any]], pool: Pool) -> dict[str, Any]:  # type: ignore[override]
        kinds = {found["kind"]: self._where(pool, at) for at, found in enumerate(counts.values()) if found["kind"]}
        if len(kinds) > 1:
            raise PoolError(
                f"columns: {self.kind}:{self.field} holds numbers in {kinds['number']} and texts in "
                f"{kinds['text']}. A column holds one kind: write it anew as one, and name the file with "
                "file:PATH:COLUMN."
            )
        missing = sum(found["missing"] for found in counts.values())
        if not kinds:
            raise ConfigError(
                f"columns: {self.kind}:{self.field} has no value in any of {pool.num_rows:,} rows. Correct it."
            )
        tables = (pq.read_table(work.shared / name / "value.parquet")["value"] for name in counts)
        column = _column(tables, is_text="text" in kinds)
        column.save(work.folder)
        values = {"values": len(column.texts)} if column.codes is not None else {}
        return {"rows": pool.num_rows - missing, "without value": missing, **values}


def _column(tables: Iterable[Any], is_text: bool) -> Column:
    if not is_text:
        parts = [table.cast(pa.float64()).to_numpy(zero_copy_only=False) for table in tables]
        return Column(numbers=np.concatenate([part.astype(np.float64) for part in parts]))
    seen: dict[str, int] = {}
    codes = []
    for table in tables:
        own = table.cast(pa.string()).to_pylist()
        codes.append(np.array([-1 if text is None else seen.setdefault(text, len(seen)) for text in own], np.int32))
    return Column(codes=np.concatenate(codes), texts=tuple(seen))


def is_none(value: Any) -> bool:
    """Whether a value is none: null, NaN, or an empty text."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def type_of(value: Any, field: str) -> str:
    """`number` or `text`.

    Raises:
        ConfigError: It is a list or a mapping.
    """
    if isinstance(value, bool | int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    raise ConfigError(
        f"columns: {field} holds {type(value).__name__} values, such as {str(value)[:60]!r}. Name a field of "
        "numbers or texts; of a nested one, the path (exif.make)."
    )


def _read(file: Path, columns: list[str], said: str) -> pa.Table:
    try:
        names = pq.read_schema(file).names
        for name in columns:
            if name not in names:
                raise ConfigError(f"{said}: {file} has no column {name!r}. {nearest(name, names)}")
        return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise WorldError(f"{said}: {file} cannot be read as Parquet: {error}") from error
