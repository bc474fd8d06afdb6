"""A filter on a column: texts of a list, or numbers between limits."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dbp.config import require
from dbp.data.column import Column
from dbp.data.keep_list import KeepList
from dbp.errors import ConfigError, nearest
from dbp.narrowing import Narrowing
from dbp.offers import ReadsColumn


@dataclass(frozen=True)
class ByColumn(ReadsColumn, Narrowing):
    """Keep rows by the value of a column; with neither values nor limits, rows that have one.

    Args:
        column: Its name, of `columns`.
        values: Texts that are kept, for a column of texts.
        minimum: The lowest number kept, for a column of numbers; and
        maximum: the highest.
        without_value: Whether rows without a value are `removed` or `kept`.
    """

    name: ClassVar[str] = "filter"
    needs: ClassVar[tuple[str, ...]] = ("rows", "columns")

    column: str
    values: list[str] | None = None
    minimum: float | None = None
    maximum: float | None = None
    without_value: Literal["removed", "kept"] = "removed"

    def __post_init__(self) -> None:
        require(bool(self.column), "column", self.column, "a name of columns")
        has_limit = self.minimum is not None or self.maximum is not None
        must = "null beside minimum or maximum, which are for numbers"
        require(self.values is None or not has_limit, "values", self.values, must)
        must = "one text or more; null beside minimum and maximum keeps every row that has a value"
        require(self.values is None or len(self.values) > 0, "values", self.values, must)
        if self.minimum is not None and self.maximum is not None:
            must = f"at least minimum={self.minimum:g}: no number is between them"
            require(self.maximum >= self.minimum, "maximum", self.maximum, must)

    def decide(self, rows: KeepList, columns: Column) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        is_text = columns.codes is not None
        has_limit = self.minimum is not None or self.maximum is not None
        if (self.values is not None and not is_text) or (has_limit and is_text):
            kind, way = ("texts", "values=[…]") if is_text else ("numbers", "minimum or maximum")
            raise ConfigError(f"filter.column={self.column} is a column of {kind}. Give filter.{way}.")
        if self.values is not None:
            if unknown := next((value for value in self.values if value not in columns.texts), None):
                said = f"filter.values: no row has {unknown!r} in column {self.column}."
                raise ConfigError(f"{said} {nearest(unknown, columns.texts)}")
            keep = columns.among(self.values)
        elif not has_limit:
            keep = columns.has_value
        else:
            assert columns.numbers is not None
            low = -np.inf if self.minimum is None else self.minimum
            high = np.inf if self.maximum is None else self.maximum
            with np.errstate(invalid="ignore"):
                keep = (columns.numbers >= low) & (columns.numbers <= high)
        if self.without_value == "kept":
            keep = keep | ~columns.has_value
        codes = np.where(columns.has_value, 0, 1).astype(np.uint8)
        other = f"another {self.column}"
        value = {} if columns.numbers is None else {"value": columns.numbers}
        kept = rows.within(
            "filter", keep, (codes, [other, f"no {self.column}"]), f"{self.column} as wanted", **value
        )
        return kept, {other: rows.num_kept - kept.num_kept}
