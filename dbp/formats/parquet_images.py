"""Parquet files that hold images: the layout of Hugging Face's data sets, and img2dataset's `parquet` output."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dbp.data.images import extension_of
from dbp.errors import ConfigError, PoolError, nearest

BATCH = 64  # rows at once: images are large
NOT_TEXT = "values that are not UTF-8"
NOT_IMAGE = "rows whose image is missing"
LEFT_OUT = "columns of bytes, left out"


def schema_of(file: Path | str) -> pa.Schema:
    """The columns of a Parquet file.

    Raises:
        PoolError: It is not a Parquet file, or cannot be read.
    """
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise PoolError(
            f"pool.files: {file} cannot be read as Parquet: {error}. Fetch it again, or name other files."
        ) from error


def image_column(file: Path | str, wanted: str | None) -> str:
    """The column of a file that holds images: bytes, or Hugging Face's struct with a field `bytes`.

    Args:
        wanted: The value of `pool.image`; null for the only column of this kind.

    Raises:
        ConfigError: There is none, several, or the wanted one holds something else.
    """
    schema = schema_of(file)
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    if wanted is not None and wanted not in schema.names:
        raise ConfigError(f"pool.image={wanted!r}: {file} has no such column. {nearest(wanted, schema.names)}")
    if wanted is not None and wanted in fitting:
        return wanted
    if wanted is None and len(fitting) == 1:
        return fitting[0]
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if len(fitting) > 1 and wanted is None:
        names = ", ".join(fitting)
        raise ConfigError(f"pool.image=null: {file} has several columns of bytes. Name one of {names}.")
    said = f"pool.image={wanted!r} holds {schema.field(wanted).type}" if wanted else "no column holds images"
    raise ConfigError(
        f"{said}: {file} has {columns}, and an image column holds bytes, or a struct with a field `bytes`. A file "
        "of URLs holds no images: download them with img2dataset, and name the tars (pool=webdataset). Images that "
        "are named by their paths are read by pool=folder."
    )


def read_samples(file: Path, image: str, counts: Counter[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The rows of a file as samples: a key (the row's number), and members: the image, and other columns as json.

    Nested columns stay nested, dates become ISO texts, NaN and infinite numbers null. Memory: a page
    of each column (writers end one after 1 MB, or 1,024 rows at most) and `BATCH` rows, not a row group.

    Args:
        counts: What is left out is added here.

    Raises:
        PoolError: The file cannot be read to its end.
    """
    schema = schema_of(file)
    others = [field.name for field in schema if field.name != image and not _holds_bytes(field.type)]
    counts[LEFT_OUT] += len(schema) - len(others) - 1
    number = 0
    try:
        # Buffered streams read a column chunk page by page; a row group may be larger than memory.
        opened = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        with opened:
            for batch in opened.iter_batches(BATCH, columns=[image, *others], use_threads=False):
                columns = {name: _values(batch.column(name), counts) for name in others}
                for at, content in enumerate(_contents(batch.column(image))):
                    members = {} if content is None else {extension_of(content): content}
                    counts[NOT_IMAGE] += content is None
                    members["json"] = as_json({name: column[at] for name, column in columns.items()})
                    yield f"{number:09d}", members
                    number += 1
    except (OSError, pa.ArrowException) as error:
        raise PoolError(
            f"pool.files: {file} cannot be read after row {number:,}: {error}. Fetch it again, or name other files."
        ) from error


def as_json(fields: dict[str, Any]) -> bytes:
    """A sample's fields as its json member."""
    return json.dumps(_plain(fields), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _contents(column: pa.Array) -> Sequence[bytes | None]:
    """The images of a batch; none where bytes are missing."""
    if pa.types.is_struct(column.type):
        column = column.flatten()[[field.name for field in column.type].index("bytes")]
    return column.to_pylist()


def _values(column: pa.Array, counts: Counter[str]) -> list[Any]:
    """A batch of a column; null in place of text that is not UTF-8, which is counted."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        found: list[Any] = []
        for value in column:
            try:
                found.append(value.as_py())
            except UnicodeDecodeError:
                counts[NOT_TEXT] += 1
                found.append(None)
        return found


def _plain(value: Any) -> Any:
    """A value as JSON can say it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | int):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
