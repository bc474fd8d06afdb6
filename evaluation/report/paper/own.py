"""A person's own transcription of a paper's numbers: `paper.numbers=FILE`.

A CSV in UTF-8 with one number a line. Columns that it must have:

    table    a table that is held, by its short name (`figure1`), or a name of your own for a new one
    row      the row's label, as the report prints it; of a new table any label
    column   a column of that table; of a new table one of DataComp's five (`ImageNet`, `Average`, …) or the
             key of a task (`vtab/dtd`)
    value    the number; empty for none
    unit     `percent` or `fraction`

Columns that it may have:

    source   where it stands; the file's name otherwise
    steps    of a row of a new table: what its keep list went through, as `semdedup+dbp`; `none` for the
             unpruned pool. A row without steps stands there with no run of ours
    keep, keep_of, model, pool_rows, samples_seen, settings, command
             of the same: fraction kept, of `pool` or `dedup`; open_clip's name; counts; settings that a run
             must have, as `select.temperature=0.1 select.members=hard`; what makes it

A number of your own takes the place of the one that is held, and says so.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dbp.errors import ConfigError, nearest
from evaluation.report.paper.catalogue import DATACOMP_COLUMNS, count
from evaluation.report.paper.published import SCALE, Published, read_number
from evaluation.report.paper.runs import KNOWN_STEPS
from evaluation.report.paper.tables import Measure, Paper, Row, Table, Want
from evaluation.suites import groups
from evaluation.tasks import load_tasks

NEEDED = ("table", "row", "column", "value", "unit")
OPTIONAL = (
    "source", "steps", "keep", "keep_of", "model", "pool_rows", "samples_seen", "settings", "command"
)  # fmt: skip


@dataclass(frozen=True)
class OwnNumber:
    """One line of the file."""

    where: str  # file and line, for messages
    table: str  # short name of the table
    row: str  # label of the row
    column: str  # heading of the column
    number: Published  # the number
    words: Mapping[str, str]  # the optional columns that are filled


def read_own(path: Path) -> list[OwnNumber]:
    """Read a transcription.

    Raises:
        ConfigError: The file cannot be read, lacks a column, or a line of it is no number.
    """
    name = f"paper.numbers={path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name}: it cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: it is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    reader = csv.DictReader(io.StringIO(text))
    heading = [column.strip() for column in reader.fieldnames or ()]
    if lacking := [column for column in NEEDED if column not in heading]:
        raise ConfigError(
            f"{name} has no column {', '.join(lacking)}: its first line must name {', '.join(NEEDED)}, and "
            f"may name {', '.join(OPTIONAL)}"
        )
    if unknown := [column for column in heading if column not in NEEDED + OPTIONAL]:
        raise ConfigError(f"{name} has a column {unknown[0]!r}. {nearest(unknown[0], NEEDED + OPTIONAL)}")
    found = [_line(f"{name} line {reader.line_num}", path, line) for line in reader]
    if not found:
        raise ConfigError(f"{name} has no line with a number below its heading")
    seen: dict[tuple[str, str, str], str] = {}
    for one in found:
        place = (one.table, one.row, one.column)
        if place in seen:
            raise ConfigError(f"{one.where}: {', '.join(place)} stands in {seen[place]}, too. Keep one.")
        seen[place] = one.where
    return found


def _line(where: str, path: Path, line: Mapping[Any, Any]) -> OwnNumber:
    if None in line or None in line.values():
        raise ConfigError(f"{where}: it has another number of cells than the first line")
    cells = {str(column).strip(): str(cell).strip() for column, cell in line.items()}
    unit = cells["unit"]
    if unit != "percent" and unit != "fraction":
        raise ConfigError(f"{where}: unit={unit!r}: {nearest(unit, SCALE)}")
    for column in ("table", "row", "column"):
        if not cells[column]:
            raise ConfigError(f"{where}: {column} is empty")
    source = cells.get("source") or path.name
    number = read_number(cells["value"], unit, "own", source, f"{where}: value")
    words = {c: cells[c] for c in OPTIONAL[1:] if cells.get(c)}
    return OwnNumber(where, cells["table"], cells["row"], cells["column"], number, words)


def add_own(paper: Paper, numbers: Sequence[OwnNumber]) -> Paper:
    """Put numbers in place of what is held of a paper, and new tables behind.

    Raises:
        ConfigError: A row or column is not one of its table, or a new row cannot be described so.
    """
    tables = {table.key: table for table in paper.tables}
    held = set(tables)
    for one in numbers:
        if one.table in held:
            tables[one.table] = _replace(tables[one.table], one)
        else:
            blank = Table(one.table, f"{one.table}: of your own transcription", (), ())
            tables[one.table] = _append(tables.get(one.table, blank), one)
    return replace(paper, tables=tuple(tables.values()))


def _replace(table: Table, one: OwnNumber) -> Table:
    labels = [row.label for row in table.rows]
    if one.row not in labels:
        raise ConfigError(f"{one.where}: {table.key} has no row {one.row!r}. {nearest(one.row, labels)}")
    columns = [measure.name for measure in table.measures]
    if one.column not in columns:
        raise ConfigError(f"{one.where}: {table.key} has no column {one.column!r}. {nearest(one.column, columns)}")
    found = []
    for row in table.rows:
        if row.label == one.row:
            held = row.values.get(one.column)
            note = row.note
            if held is not None and held.value is not None and held.value != one.number.value:
                note = "; ".join(filter(None, (note, f"{one.column} is held as {held.printed}")))
            row = replace(row, values={**row.values, one.column: one.number}, note=note)
        found.append(row)
    return replace(table, rows=tuple(found))


def _append(table: Table, one: OwnNumber) -> Table:
    if one.column not in [measure.name for measure in table.measures]:
        table = replace(table, measures=(*table.measures, _measure(one)))
    rows = {row.label: row for row in table.rows}
    row = rows.get(one.row) or _row(one)
    rows[one.row] = replace(row, values={**row.values, one.column: one.number})
    return replace(table, rows=tuple(rows.values()), order_by=(table.measures[0].name,))


def _measure(one: OwnNumber) -> Measure:
    if one.column in DATACOMP_COLUMNS.values():
        return Measure(one.column, groups()[one.column])
    if one.column not in load_tasks():
        raise ConfigError(
            f"{one.where}: column={one.column!r} of the new table {one.table!r} is neither one of DataComp's "
            f"columns nor a task. {nearest(one.column, [*DATACOMP_COLUMNS.values(), *load_tasks()])}"
        )
    return Measure(one.column, (one.column,))


def _row(one: OwnNumber) -> Row:
    words = one.words
    if "steps" not in words:
        return Row(one.row, {}, out_of_scope="the transcription does not say what makes it (steps)")
    known = KNOWN_STEPS
    steps = () if words["steps"] == "none" else tuple(words["steps"].split("+"))
    if unknown := [step for step in steps if step not in known]:
        raise ConfigError(f"{one.where}: steps={words['steps']!r}: {nearest(unknown[0], known)}")
    keep_of = words.get("keep_of", "pool")
    if keep_of != "pool" and keep_of != "dedup":
        raise ConfigError(f"{one.where}: keep_of={keep_of!r}: {nearest(keep_of, ('pool', 'dedup'))}")
    keep = _count(one, "keep")
    if keep is not None and not 0 < keep <= 1:
        raise ConfigError(f"{one.where}: keep={words['keep']!r}: it must be above 0 and at most 1")
    want = Want(
        steps,
        words.get("command", "none is given (column command)"),
        keep,
        keep_of,
        _settings(one),
        words.get("model"),
        _count(one, "pool_rows"),
        _count(one, "samples_seen"),
    )
    return Row(one.row, {}, want)


def _count(one: OwnNumber, column: str) -> float | None:
    try:
        return count(one.words.get(column, ""))
    except ValueError:
        raise ConfigError(
            f"{one.where}: {column}={one.words[column]!r}: it must be a number, as 0.3 or 12.8M"
        ) from None


def _settings(one: OwnNumber) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in one.words.get("settings", "").split():
        key, equals, value = word.partition("=")
        if not equals or "." not in key:
            raise ConfigError(f"{one.where}: settings: {word!r} is not KEY=VALUE with a full key")
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = value
    return found
