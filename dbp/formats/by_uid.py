"""Other tools' numbers for samples, by name: read batch by batch, and joined to rows."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, UInt64

from dbp.errors import ConfigError, WorldError, nearest
from dbp.formats.exchange import kind_of, read_texts
from dbp.formats.uid_pairs import UID_DTYPE, Texts, hashes_64, pairs_to_texts, texts_of

BATCH = 1 << 18  # names at once
Batches = Iterable[tuple[Texts, Float64[np.ndarray, " b"]]]


def joined(
    hashes: UInt64[np.ndarray, " n"], batches: Batches, said: str
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"], int]:
    """The number of each row, which rows the file names, and how many of its names are no row's.

    Rows that share a uid share its number.

    Args:
        hashes: Of the rows' uids.
        said: What messages call the file.

    Raises:
        WorldError: The file names a uid of the rows twice.
    """
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    found, seen, others = np.full(len(hashes), np.nan), np.zeros(len(hashes), bool), 0
    for uids, numbers in batches:
        named = hashes_64(uids)
        first = np.searchsorted(ordered, named)
        last = np.searchsorted(ordered, named, side="right")
        inside = np.flatnonzero(last > first)
        others += len(named) - len(inside)
        at, counts = first[inside], (last - first)[inside]
        repeated = np.setdiff1d(np.arange(len(at)), np.unique(at, return_index=True)[1])
        if len(twice := np.r_[inside[seen[at]], inside[repeated]]):
            uid = uids[int(twice[0])].as_py()
            raise WorldError(f"{said}: uid {uid!r} stands there more than once. Name each uid once.")
        places = np.repeat(at - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        seen[places] = True
        found[places] = np.repeat(numbers[inside], counts)
    values, is_named = np.empty_like(found), np.empty_like(seen)
    values[order], is_named[order] = found, seen
    return values, is_named, others


def parquet_batches(file: Path | str, uid: str, column: str, said: str) -> Iterator[tuple[Texts, np.ndarray]]:
    """Names and numbers of two columns of a Parquet file; NaN where a number is null.

    Raises:
        ConfigError: A column is missing, or holds no texts or no numbers.
        WorldError: It is not a Parquet file.
    """
    try:
        held = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise WorldError(f"{said}={str(file)!r} cannot be read as Parquet: {error}") from error
    _require_columns(held.schema_arrow.names, uid, column, f"{said}={file}")
    for batch in held.iter_batches(BATCH, columns=[uid, column]):
        names = _names(batch.column(uid), f"{said}={file}", uid)
        yield names, _numbers(batch.column(column), f"{said}={file}", column)


def csv_batches(file: Path | str, uid: str, column: str, said: str) -> Iterator[tuple[Texts, np.ndarray]]:
    """Names and numbers of two columns of a CSV file with a header; NaN where a number is empty.

    Raises:
        ConfigError: A column is missing.
        WorldError: It is not CSV, or the column holds other than numbers.
    """
    try:
        with pc.open_csv(file) as held:
            _require_columns(held.schema.names, uid, column, f"{said}={file}")
        types = {column: pa.float64(), uid: pa.large_string()}  # else the first block would decide
        kinds = pc.ConvertOptions(include_columns=[uid, column], column_types=types)
        with pc.open_csv(file, convert_options=kinds) as held:
            for batch in held:
                yield texts_of(batch.column(0)), _numbers(batch.column(1), f"{said}={file}", column)
    except (OSError, pa.ArrowInvalid) as error:
        raise WorldError(
            f"{said}={str(file)!r} cannot be read as CSV with numbers in column {column!r}: {error}"
        ) from error


def array_batches(file: Path | str, uids: Path | str | None, said: str) -> Iterator[tuple[Texts, np.ndarray]]:
    """Numbers of a `.npy`, and the names of another file in the same order: pairs of DataComp, or a list of texts.

    Raises:
        ConfigError: The names are missing.
        WorldError: A file is damaged, or the two differ in length.
    """
    if uids is None:
        raise ConfigError(
            f"{said}={str(file)!r} holds numbers alone. Name the file of their uids, in their order (uids)."
        )
    numbers = _array(file, said)
    if kind_of(uids) == "npy":
        names: Any = _array(uids, "uids")
        if names.dtype != UID_DTYPE:
            raise WorldError(f"uids={str(uids)!r} holds {names.dtype}, not DataComp's pairs (f0 <u8, f1 <u8).")
    else:
        names = read_texts(uids)
    if numbers.ndim != 1 or numbers.dtype.kind not in "fiu" or len(names) != len(numbers):
        raise WorldError(
            f"{said}={str(file)!r} has shape {numbers.shape} of {numbers.dtype}, and {uids} names {len(names):,} "
            "samples. One number for each name is needed."
        )
    for start in range(0, len(numbers), BATCH):
        own = names[start : start + BATCH]
        texts = pairs_to_texts(own) if isinstance(own, np.ndarray) else own
        yield texts, np.asarray(numbers[start : start + BATCH], np.float64)


def _array(file: Path | str, said: str) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise WorldError(
            f"{said}={str(file)!r} is not an array of numpy ({error}). Save it with numpy.save."
        ) from error


def _require_columns(there: list[str], uid: str, column: str, said: str) -> None:
    for name in (uid, column):
        if name not in there:
            raise ConfigError(f"{said} has no column {name!r}. {nearest(name, there)}")


def _names(column: Any, said: str, name: str) -> Texts:
    try:
        return texts_of(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"{said}: column {name!r} holds {column.type}, not one uid a row ({error}).") from error


def _numbers(column: Any, said: str, name: str) -> Float64[np.ndarray, " b"]:
    """In float64, to which whole numbers above 2^53 are rounded."""
    try:
        return column.cast(pa.float64(), safe=not pa.types.is_integer(column.type)).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"{said}: column {name!r} holds {column.type}, no numbers ({error}).") from error


def values_by_name(file: Path, name: str, column: str, said: str) -> Iterator[tuple[Any, Any]]:
    """The columns `name` and `column` of a Parquet file, batch by batch.

    Args:
        said: What messages call the file.
    """
    try:
        held = pq.ParquetFile(file)
        for wanted in (name, column):
            if wanted not in held.schema_arrow.names:
                there = held.schema_arrow.names
                raise ConfigError(f"{said}: {file} has no column {wanted!r}. {nearest(wanted, there)}")
        for batch in held.iter_batches(BATCH, columns=[name, column]):
            yield batch.column(name), batch.column(column)
    except (OSError, pa.ArrowInvalid) as error:
        raise WorldError(f"{said}: {file} cannot be read as Parquet: {error}") from error
