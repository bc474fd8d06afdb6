"""Blocks of a column's values, as JSON or Arrow has them: numbers or texts, and what is none."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dbp.data.columns import one_chunk
from dbp.errors import ConfigError

TYPES = {"number": pa.float64(), "text": pa.large_string()}


@dataclass(frozen=True)
class Block:
    """Values of neighbouring rows: float64 or texts, null where there is none.

    Args:
        values: Of one kind, unless `examples` hold two.
        examples: A value of each kind that occurs, `number` or `text`.
        unusable: Values that cannot be held: whole numbers beyond float64, texts that are not Unicode.
    """

    values: Any
    examples: Mapping[str, Any] = field(default_factory=dict)
    unusable: int = 0


def block_of(values: Any, name: str) -> Block:
    """A block of JSON's values, or of a column of Arrow.

    Raises:
        ConfigError: It holds lists, mappings, or others that are neither numbers nor texts.
    """
    if not isinstance(values, list):
        values = one_chunk(values) if isinstance(values, pa.ChunkedArray) else values
        kind = values.type
        if pa.types.is_dictionary(kind):
            values = values.cast(kind.value_type)
            kind = values.type
        if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return _numbers(values.cast(pa.float64(), safe=False))
        try:
            values = values.to_pylist()
        except UnicodeDecodeError:  # Parquet does not check its texts
            values = [_decoded(value) for value in values.cast(pa.large_binary()).to_pylist()]
    examples: dict[str, Any] = {}
    found: list[Any] = []
    unusable = 0
    for value in values:
        usable = None if is_none(value) else _usable(value, type_of(value, name))
        unusable += usable is None and not is_none(value)
        found.append(usable)
        if usable is not None:
            examples.setdefault(type_of(value, name), value)
    kind = TYPES[next(iter(examples))] if len(examples) == 1 else pa.null()
    return Block(pa.nulls(len(found)) if len(examples) != 1 else pa.array(found, kind), examples, unusable)


def _numbers(values: Any) -> Block:
    own = values.to_numpy(zero_copy_only=False)
    missing = np.isnan(own)
    there = np.flatnonzero(~missing)
    return Block(pa.array(own, mask=missing), {"number": float(own[there[0]])} if len(there) else {})


def _usable(value: Any, kind: str) -> Any:
    """A value as it is held; none for a whole number beyond float64, and for half a surrogate pair."""
    try:
        return float(value) if kind == "number" else value.encode().decode()
    except (OverflowError, UnicodeEncodeError):
        return None


def _decoded(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")


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
