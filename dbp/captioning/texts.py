"""Captions from a column of the pool: of each row one text, several, or none."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from dbp.data.caption_text import json_field, texts_of_value
from dbp.data.captions import (
    UNUSABLE,
    Captions,
    import_captions,
    is_list_type,
    is_text_type,
    plain_values,
    write_lists,
)
from dbp.data.columns import one_chunk
from dbp.data.pool import Pool
from dbp.engine.progress import log
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError, nearest
from dbp.pools.blocks import Block
from dbp.pools.fields import json_fields
from dbp.pools.values import ReadColumn

SCHEMA = pa.schema([("texts", pa.large_list(pa.large_string()))])
FILE = "texts.parquet"
SEVERAL, WITHOUT = "several captions", "original alone"


@dataclass(frozen=True)
class ReadTexts(ReadColumn):
    """The captions that a column holds: a text of each row, a list of texts, or nothing.

    A caption is what would be one as the pool's own: text that is neither blank nor the word nan, none or null.
    Other entries are counted. A path through a list of a json gives a list (`sentences.raw`). Rows without a
    caption keep their original in training. Memory: a batch of rows, and 8 bytes a text and a row.
    """

    name: ClassVar[str] = "captions"
    makes: ClassVar[type] = Captions

    def make(self, part: Part, folder: Path, pool: Pool) -> dict[str, Any]:  # type: ignore[override]
        if self.kind == "file":
            notes: Counter[str] = Counter()
            found = import_captions(folder, pool, str(self.file), self.field, judge=True, notes=notes)
            return {"rows": found.num_refined, UNUSABLE: notes[UNUSABLE], "example": ""}
        read = {"json": self._json, "parquet": self._parquet, "pool": self._index}[self.kind]
        rows = unusable = 0
        example = ""
        with pq.ParquetWriter(folder / FILE, SCHEMA) as writer:
            for block in read(pool, part.number):
                values = block.values.cast(SCHEMA[0].type)
                writer.write_table(pa.table([values], SCHEMA))
                rows += sum(len(texts or ()) > 0 for texts in values.to_pylist())
                unusable += block.unusable
                example = example or str(block.examples.get("unusable", ""))
        return {"rows": rows, UNUSABLE: unusable, "example": example}

    def finish(self, work: Work, counts: Mapping[str, dict[str, Any]], pool: Pool) -> dict[str, Any]:  # type: ignore[override]
        said = f"{self.kind}:{self.field}"
        none = [number for number, found in enumerate(counts.values()) if not found["rows"]]
        unusable = sum(found[UNUSABLE] for found in counts.values())
        if len(none) == len(counts):
            example = next((found["example"] for found in counts.values() if found["example"]), "")
            there = json_fields(pool.shards[0]) if self.kind == "json" and not example else []
            held = f"; it holds values such as {example}, and a caption is a text" if example else ""
            raise ConfigError(
                f"caption.column={said} has no caption in any of {pool.num_rows:,} rows{held}. "
                + (f"{nearest(self.field, there)} " if there else "")
                + "Name a field of texts, or of lists of texts; of a nested one, the path (sentences.raw)."
            )
        if none and self.kind in ("json", "parquet"):
            log.warning(
                "captions: %s of %s shards have no caption in %s, the first being %s",
                f"{len(none):,}", f"{len(counts):,}", said, pool.shards[none[0]],
            )  # fmt: skip
        if self.kind == "file":
            [name] = counts
            for file in ("ends.npy", "rows.npy", "texts.bin", "captions.json"):
                shutil.copyfile(work.shared / name / file, work.folder / file)
            found = Captions.load(work.folder)
        else:
            found = write_lists(work.folder, pool.digest, _in_order([work.shared / name / FILE for name in counts]))
        about = {SEVERAL: found.num_several, UNUSABLE: unusable, "shards without": len(none)}
        return {
            "rows": found.num_refined,
            WITHOUT: pool.num_rows - found.num_refined,
            **{what: count for what, count in about.items() if count},
        }

    def _value(self, content: bytes) -> Any:
        return json_field(content, f"json:{self.field}")[0]

    def _block(self, values: Any) -> Block:
        if not isinstance(values, list):
            values = one_chunk(values) if isinstance(values, pa.ChunkedArray) else values
            kind = values.type.value_type if is_list_type(values.type) else values.type
            if not is_text_type(kind):
                raise ConfigError(
                    f"caption.column={self.kind}:{self.field} holds {values.type}, and a caption is a text. Name a "
                    "column of texts, or of lists of texts."
                )
            values = plain_values(values)
        lists, unusable, example = [], 0, ""
        for value in values:
            texts, num_unusable = texts_of_value(value)
            lists.append(texts)
            unusable += num_unusable
            if num_unusable and not texts and not example:
                example = repr(value)[:60]
        return Block(pa.array(lists, SCHEMA[0].type), {"unusable": example} if example else {}, unusable)


def _in_order(files: list[Path]) -> Iterator[list[str]]:
    """The texts of all rows."""
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(1 << 12):
            yield from (texts or [] for texts in batch.column(0).to_pylist())
