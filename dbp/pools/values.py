"""Columns of a pool: fields of its json, of Parquet beside its tars, of its metadata, of a file joined by uid."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32

from dbp.config import require
from dbp.data.caption_text import read_json
from dbp.data.column import Column
from dbp.data.pool import Pool
from dbp.engine.parts import Parted
from dbp.engine.paths import expand_shards, file_digest, sizes_and_times
from dbp.engine.stage import Node, runtime
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError, PoolError, WorldError, nearest
from dbp.formats.by_uid import joined, values_by_name
from dbp.formats.tars import samples
from dbp.formats.uid_pairs import texts_of
from dbp.pools.blocks import TYPES, Block, block_of
from dbp.pools.fields import json_fields
from dbp.pools.packed import Pack

C = TypeVar("C", bound="ReadColumn")
KINDS = ("json", "parquet", "pool", "file")
MOST_TEXTS = 1 << 24  # different ones; about 100 bytes each while they are counted
BATCH = 1 << 16  # rows at once


@dataclass(frozen=True)
class ReadColumn(Parted):
    """One value for each row, or none: numbers (also true and false, as 1 and 0), or texts.

    Null, NaN, an empty text and a field that is not there are no value, and counted; so are whole numbers beyond
    float64 and half surrogate pairs. A column holds numbers or texts, not both. It is an artifact of its own, so a
    column that is added later leaves the pool as it is. Memory: a batch of rows, the different texts, and 4 or 8
    bytes a row.

    Args:
        kind: `json`: a field of each sample's json; `parquet`: of img2dataset's Parquet beside each tar, joined by
            key; `pool`: a column of the index, such as a DataComp pool has; `file`: of Parquet, joined by uid.
        field: Its name; of nested json as `exif.make`.
        uid: Column of the names in a file.
        file: The Parquet file; its content enters the key.
        shards: Of the pool, for columns that are read beside them; their names, sizes and times enter the key.
        packed: What wrote the pool's tars, where it lies in another layout; what it was read from enters the key.
    """

    name: ClassVar[str] = "column"
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    makes: ClassVar[type] = Column
    unit: ClassVar[str] = "shards"

    kind: Literal["json", "parquet", "pool", "file"]
    field: str
    uid: str = "uid"
    file: str | None = runtime(None)
    shards: str | list[str] = runtime("")
    packed: Pack | None = runtime(None)

    @classmethod
    def of(cls: type[C], said: str, setting: str) -> C:
        """What a setting says: json:FIELD, parquet:FIELD, pool:NAME, or file:PATH:COLUMN.

        Raises:
            ConfigError: It is none of these.
        """
        kind, _, rest = said.partition(":")
        path, _, column = rest.rpartition(":") if kind == "file" else ("", "", rest)
        ok = kind in KINDS and column and (kind != "file" or path)
        require(bool(ok), setting, said, "json:FIELD, parquet:FIELD, pool:NAME, or file:PATH:COLUMN")
        return cls(kind, column, file=path or None)  # type: ignore[arg-type]

    def bind(self, **inputs: Node | None) -> Node:
        """Bind to the pool, and to the shards that it names, where columns are read from them."""
        pool = inputs.get("pool")
        if self.kind not in ("json", "parquet") or pool is None:
            return super().bind(**inputs)
        tars = [node.stage for node in reversed(pool.lineage()) if getattr(node.stage, "shards", "")]
        shards = getattr(next(iter(tars), None), "shards", "")
        packed = next((node.stage for node in pool.lineage() if isinstance(node.stage, Pack)), None)
        return super(ReadColumn, replace(self, shards=shards, packed=packed)).bind(**inputs)

    def unread(self) -> set[str]:
        return set() if self.kind == "file" else {"uid"}

    def identity(self) -> dict[str, Any]:
        return {"file": file_digest(self.file, f"columns: file:{self.file}")} if self.file else {}

    def source(self) -> dict[str, Any]:
        """Names, sizes and times of what is read: neither json nor Parquet is part of the pool's digest."""
        if self.packed is not None:
            return self.packed.source()
        if not self.shards or self.kind not in ("json", "parquet"):
            return {}
        files = expand_shards(self.shards)
        if self.kind == "parquet":
            files += [str(file) for file in map(_beside, files) if file.is_file()]
        return {"shards": hashlib.sha256(json.dumps(sizes_and_times(files)).encode()).hexdigest()}

    def parts(self, pool: Pool) -> list[Part]:
        """One for each shard where tars are read, else one."""
        if self.kind in ("pool", "file"):
            return [Part("whole", 0, 1.0)]
        edges = pool.index.starts.tolist()
        is_tars = len(edges) - 1 <= len(pool.shards)
        for number, (first, last) in enumerate(pairwise(edges)):  # parts of metadata hold rows of several shards
            is_tars = is_tars and bool((pool.column("shard", np.arange(first, last)) == number).all())
        if not pool.shards or not is_tars:
            raise ConfigError(
                f"columns: {self.kind}:{self.field} is read from the pool's tars, and this pool's rows are those "
                "of metadata. Name its column with pool:NAME, or a file with file:PATH:COLUMN."
            )
        return [Part(f"part-{number:07d}", number, 1.0) for number in range(len(edges) - 1)]

    def make(self, part: Part, folder: Path, pool: Pool) -> dict[str, Any]:  # type: ignore[override]
        read = {"json": self._json, "parquet": self._parquet, "pool": self._index, "file": self._joined}[self.kind]
        examples: dict[str, Any] = {}
        rows = missing = unusable = 0
        writer, file = None, folder / "value.parquet"
        try:
            for block in read(pool, part.number):
                examples = {**block.examples, **examples}
                if len(examples) > 1:
                    raise PoolError(
                        f"columns: {self.kind}:{self.field} holds numbers and texts in "
                        f"{self._where(pool, part.number)}, such as {examples['number']!r} and "
                        f"{examples['text']!r}. A column holds one kind: write it anew as one, and name the file "
                        "with file:PATH:COLUMN."
                    )
                if writer is None and examples:
                    schema = pa.schema([("value", TYPES[next(iter(examples))])])
                    writer = pq.ParquetWriter(file, schema)
                    for start in range(0, rows, BATCH):  # none of these has a value
                        writer.write_table(pa.table([pa.nulls(min(BATCH, rows - start), schema[0].type)], schema))
                if writer is not None:
                    writer.write_table(pa.table([block.values.cast(writer.schema[0].type)], writer.schema))
                rows += len(block.values)
                missing += block.values.null_count
                unusable += block.unusable
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            pq.write_table(pa.table({"value": pa.nulls(rows)}), file)
        return {"rows": rows, "kind": next(iter(examples), ""), "missing": missing, "unusable": unusable}

    def _where(self, pool: Pool, number: int) -> str:
        return f"shard {pool.shards[number]}" if self.kind in ("json", "parquet") else str(self.file or "the index")

    def _json(self, pool: Pool, number: int) -> Iterator[Block]:
        """The field of each sample of a shard, in the order of its rows."""
        first, last = pool.index.starts[number : number + 2].tolist()
        keys = pool.column("key", np.arange(first, last)).tolist()
        found: list[Any] = []
        num_found = 0
        for sample, key in zip(samples(pool.shards[number], lambda _: None), keys, strict=False):
            if sample.key != key:
                break
            member = sample.members.get("json")
            num_found += 1
            found.append(None if member is None else self._value(member.content))
            if len(found) == BATCH:
                yield self._block(found)
                found = []
        if num_found != len(keys):
            raise PoolError(
                f"shard {pool.shards[number]} has other samples than when it was indexed: sample {num_found:,} is "
                f"not {keys[num_found]!r}. Restore it, or run again to index it anew."
            )
        yield self._block(found)

    def _value(self, content: bytes) -> Any:
        """The field's value in a json member."""
        whole = read_json(content)[0]
        for name in self.field.split("."):
            whole = whole.get(name) if isinstance(whole, dict) else None
        return whole

    def _block(self, values: Any) -> Block:
        """A block of the field's values in JSON, or of a column of Arrow."""
        return block_of(values, self.field)

    def _parquet(self, pool: Pool, number: int) -> Iterator[Block]:
        first, last = pool.index.starts[number : number + 2].tolist()
        keys = pool.column("key", np.arange(first, last))
        file = _beside(pool.shards[number])
        if not file.is_file():
            yield Block(pa.nulls(len(keys)))
            return
        places: dict[str, int] = {}
        chunks: list[Any] = []
        for names, values in values_by_name(file, "key", self.field, f"columns: parquet:{self.field}"):
            for name in names.to_pylist():
                places[name] = len(places) if name not in places else places[name]
            chunks.append(values)
            if len(places) != sum(map(len, chunks)):
                raise WorldError(f"columns: parquet:{self.field}: {file} repeats keys. Name each key once.")
        whole = pa.chunked_array(chunks, chunks[0].type) if chunks else pa.chunked_array([pa.nulls(0)])
        for start in range(0, len(keys), BATCH):
            at = [places.get(key) for key in keys[start : start + BATCH].tolist()]
            yield self._block(whole.take(pa.array(at, pa.int64())))

    def _index(self, pool: Pool, number: int) -> Iterator[Block]:
        if self.field not in pool.index.names:
            raise ConfigError(
                f"columns: pool:{self.field}: the index has no such column. "
                f"{nearest(self.field, pool.index.names)} Of a DataComp pool, "
                f"pool.columns=[{self.field}] carries it."
            )
        for start in range(0, pool.num_rows, BATCH):
            rows = np.arange(start, min(start + BATCH, pool.num_rows))
            yield self._block(pool.index.at(self.field, rows))

    def _joined(self, pool: Pool, number: int) -> Iterator[Block]:
        """Values by uid: numbers, or the number of each different text."""
        said = f"columns: file:{self.file}:{self.field}"
        seen: dict[str, int] = {}
        examples: dict[str, Any] = {}
        unusable = 0

        def batches() -> Iterator[tuple[Any, np.ndarray]]:
            nonlocal unusable
            for names, values in values_by_name(Path(str(self.file)), self.uid, self.field, said):
                block = block_of(values, self.field)
                examples.update(block.examples)
                unusable += block.unusable
                numbers = block.values
                if "text" in examples:
                    numbers = pa.array(coded(block.values.cast(TYPES["text"]), seen, said), pa.float64())
                yield texts_of(names), numbers.cast(pa.float64()).to_numpy(zero_copy_only=False)

        numbers, is_named, others = joined(pool.uid_hashes, batches(), said)
        if not is_named.any():
            raise WorldError(
                f"columns: file:{self.file}:{self.field}: none of its {others:,} names is a uid of the pool, such "
                f"as {(pool.uids(np.arange(min(1, pool.num_rows))) or ['(no row)'])[0]!r}. Write the pool's uids "
                "into its column uid."
            )
        texts = pa.array(list(seen), TYPES["text"])
        for start in range(0, len(numbers), BATCH):
            own = numbers[start : start + BATCH]
            values = pa.array(own, mask=np.isnan(own))
            if "text" in examples:
                values = texts.take(pa.array(np.where(own >= 0, own, 0).astype(np.int64), mask=~(own >= 0)))
            yield Block(values, examples if values.null_count < len(values) else {}, unusable if start == 0 else 0)

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
            there = json_fields(pool.shards[0]) if self.kind == "json" else []
            way = nearest(self.field, there) if there else "Correct it."
            said = f"columns: {self.kind}:{self.field} has no value in any of {pool.num_rows:,} rows"
            raise ConfigError(f"{said}. {way}")
        files = [work.shared / name / "value.parquet" for name in counts]
        column = self._column(files, pool.num_rows, is_text="text" in kinds)
        column.save(work.folder)
        values = {"values": len(column.texts)} if column.codes is not None else {}
        unusable = sum(found.get("unusable", 0) for found in counts.values())
        values |= {"numbers or texts that cannot be held, counted as no value": unusable} if unusable else {}
        return {"rows": pool.num_rows - missing, "without value": missing, **values}

    def _column(self, files: list[Path], num_rows: int, is_text: bool) -> Column:
        seen: dict[str, int] = {}
        found = np.full(num_rows, -1, np.int32) if is_text else np.full(num_rows, np.nan)
        at = 0
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(BATCH):
                if is_text:
                    said = f"columns: {self.kind}:{self.field}"
                    own = coded(batch.column(0).cast(TYPES["text"]), seen, said)
                else:
                    own = batch.column(0).cast(pa.float64()).to_numpy(zero_copy_only=False)
                found[at : at + len(own)] = own
                at += len(own)
        assert at == num_rows, "each row has a place"
        return Column(codes=found, texts=tuple(seen)) if is_text else Column(numbers=found)


def coded(texts: Any, seen: dict[str, int], said: str) -> Int32[np.ndarray, " b"]:
    """The place of each text among the different ones, which new ones are added to; -1 for none.

    Raises:
        ConfigError: They are more than `MOST_TEXTS`.
    """
    encoded = texts.dictionary_encode()
    own = [seen.setdefault(text, len(seen)) for text in encoded.dictionary.to_pylist()]
    if len(seen) > MOST_TEXTS:
        raise ConfigError(
            f"{said} has {len(seen):,} different texts or more, such as {next(iter(seen))[:60]!r}, and a column "
            f"holds {MOST_TEXTS:,} at most. Write coarser values, such as a host for a URL, or numbers, and name "
            "the file with file:PATH:COLUMN."
        )
    return np.array([*own, -1], np.int32)[encoded.indices.fill_null(len(own)).to_numpy(zero_copy_only=False)]


def _beside(shard: str) -> Path:
    """Img2dataset's Parquet of a shard."""
    return Path(shard).with_suffix(".parquet")
