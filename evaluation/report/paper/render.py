"""A comparison as text, Markdown, LaTeX, CSV, JSON and a fragment of HTML, all from the same cells."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from evaluation.report import table as core
from evaluation.report.paper.published import LEGEND, SYMBOLS, Mark
from evaluation.report.paper.tables import Cell, FoundRow, FoundTable, Ordering, Ours, PaperTables
from evaluation.report.table import Table

HEADING = ("method / setting", "measure", "paper", "ours", "seeds", "scale", "difference", "state")
ORDER_HEADING = ("paper says", "by", "ours", "verdict", "scale", "detail")
# Columns that hold numbers.
RIGHT = {"paper", "ours", "seeds", "difference", "by"}
LONG = (
    "paper", "table", "row", "measure", "paper_percent", "mark", "source", "ours_percent", "low", "high",
    "seeds", "values_by_seed", "ours_measure", "scale", "departures", "difference", "state", "reason",
    "command", "evaluations",
)  # fmt: skip
# Cells of a table that a terminal shows whole.
WHOLE = 60
ABOUT = (
    "Percent. Ours: mean over seeds, with its 95 % interval over test samples, and over seeds where there "
    "are three or more. A difference is given at the paper's scale alone; a letter names another scale."
)


def laid_out(tables: PaperTables) -> list[Table]:
    """What every format but CSV and JSON shows."""
    found = [Table(f"{tables.title} (paper={tables.name})", notes=(*tables.notes, ABOUT))]
    for table in tables.tables:
        scales = _scales(table)
        below = [f"({letter}) {scale}" for scale, letter in scales.items()]
        below += _legend(cell.paper.mark for row in table.rows for cell in row.cells)
        below += [f"{row.label}: {row.note}" for row in table.rows if row.note]
        notes = tuple(filter(None, (table.note, _protocol(table), *below, *_commands(table), _sources(table))))
        rows = [_line(row, cell, scales) for row in table.rows for cell in row.cells]
        found.append(Table(f"{table.title} [{table.key}]", HEADING, rows, notes, RIGHT))
    found.append(_orders(tables.orderings))
    for facts in tables.facts:
        rows = [(_marked(row[0], mark), *row[1:]) for row, mark in zip(facts.rows, facts.marks, strict=True)]
        found.append(Table(facts.title, facts.heading, rows, _legend(facts.marks), RIGHT))
    if tables.out_of_scope:
        found.append(Table("Out of scope", notes=tables.out_of_scope))
    return found


def _orders(orderings: Sequence[Ordering]) -> Table:
    """The orders that were measured; the rest are counted."""
    measured = [one for one in orderings if one.ours_gap is not None]
    counts = {v: sum(one.verdict == v for one in orderings) for v in ("agrees", "disagrees", "cannot tell")}
    summary = (
        f"The paper orders {len(orderings)} pairs; ours agree on {counts['agrees']}, disagree on "
        f"{counts['disagrees']}, cannot tell {counts['cannot tell']}; "
        f"{len(orderings) - len(measured)} are not measured."
    )
    about = (
        "Agrees, disagrees: p of both kinds of noise, adjusted by Holm over all pairs that were measured, is "
        "at most 0.05. Intervals are not adjusted. At another scale an order may differ for good reason."
    )
    words = [
        f"Not measured: {one.higher} ({one.detail})" for one in orderings if not one.table and one.ours_gap is None
    ]
    rows = [_order_line(one) for one in measured]
    legend = _legend(one.mark for one in orderings)
    return Table("Orders", ORDER_HEADING if rows else (), rows, (summary, about, *legend, *words), RIGHT)


def _order_line(one: Ordering) -> tuple[str, ...]:
    pair = f"{one.higher} > {one.lower} ({one.measure})" if one.lower else one.higher
    gap = "" if one.paper_gap is None else f"{100 * one.paper_gap:.2f}"
    ours = f"{100 * (one.ours_gap or 0):+.1f}"
    if one.interval:
        ours += f" [{100 * one.interval[0]:+.1f}, {100 * one.interval[1]:+.1f}]"
    scale = "the paper's" if one.is_same_scale else "another"
    return (_marked(pair, one.mark), gap, ours, one.verdict, scale, one.detail)


def _line(row: FoundRow, cell: Cell, scales: dict[str, str]) -> tuple[str, ...]:
    ours = cell.ours
    letter = f"({scales[_scale(ours)]})" if ours else ""
    state = f"{cell.state}: {cell.reason}" if cell.reason else cell.state
    return (
        row.label,
        cell.measure,
        _marked(cell.paper.printed or "not known", cell.paper.mark if cell.paper.printed else "verified"),
        _ours(ours) if ours else "",
        str(len(ours.seeds)) if ours else "",
        letter,
        "" if cell.difference is None else f"{100 * cell.difference:+.2f}",
        state,
    )


def _ours(ours: Ours) -> str:
    text = f"{100 * ours.value:.1f}"
    if ours.interval:
        text += f" [{100 * ours.interval[0]:.1f}, {100 * ours.interval[1]:.1f}]"
    return f"{text} {ours.metric}".rstrip()


def _scale(ours: Ours) -> str:
    if not ours.departures:
        return f"the paper's scale: {ours.scale}"
    return f"another scale: {ours.scale}. Not the paper's: {'; '.join(ours.departures)}"


def _scales(table: FoundTable) -> dict[str, str]:
    """Letters of the scales of a table, in order."""
    found: dict[str, str] = {}
    for row in table.rows:
        for cell in row.cells:
            if cell.ours:
                found.setdefault(_scale(cell.ours), _letters(len(found)))
    return found


def _letters(number: int) -> str:
    """a, b, …, z, aa, ab, …

    >>> _letters(0), _letters(27)
    ('a', 'ab')
    """
    before = _letters(number // 26 - 1) if number >= 26 else ""
    return before + chr(ord("a") + number % 26)


def _commands(table: FoundTable) -> list[str]:
    """What would fill our side, with the rows of each."""
    rows: dict[str, list[str]] = {}
    for row in table.rows:
        for command in dict.fromkeys(cell.command for cell in row.cells if cell.command):
            rows.setdefault(command, []).append(row.label)
    return [f"To fill {'; '.join(labels)}: `{command}`" for command, labels in rows.items()]


def _sources(table: FoundTable) -> str:
    found = dict.fromkeys(cell.paper.source for row in table.rows for cell in row.cells)
    return f"Read in: {'; '.join(found)}."


def _protocol(table: FoundTable) -> str:
    has_ours = any(cell.ours for row in table.rows for cell in row.cells)
    return f"Ours by the {table.protocol} protocol." if has_ours else ""


def _marked(text: str, mark: Mark) -> str:
    return f"{text}{SYMBOLS[mark]}"


def _legend(marks: Iterable[Mark]) -> list[str]:
    found = set(marks)
    return [text for mark, text in LEGEND.items() if mark in found]


def summary(tables: PaperTables) -> str:
    """The comparison for a terminal: small tables whole, of large ones what we have, and no facts."""
    shown = laid_out(tables)
    for at, table in enumerate(tables.tables, 1):
        if len(shown[at].rows) > WHOLE:
            cells = [cell for row in table.rows for cell in row.cells]
            rows = [line for line, cell in zip(shown[at].rows, cells, strict=True) if cell.ours is not None]
            counted = f"{len(rows)} of {len(cells)} cells have a number of ours; all stand in the files."
            scales = [f"({letter}) {scale}" for scale, letter in _scales(table).items()]
            shown[at] = Table(shown[at].title, HEADING if rows else (), rows, (counted, *scales), RIGHT)
    facts = {facts.title for facts in tables.facts}
    return core.text([table for table in shown if table.title not in facts])


def _long_rows(tables: PaperTables) -> Iterator[dict[str, Any]]:
    """One line for each cell; ours at full precision, the paper's digits as printed."""
    for table in tables.tables:
        for row in table.rows:
            for cell in row.cells:
                paper, ours = cell.paper, cell.ours
                low, high = (100 * v for v in ours.interval) if ours and ours.interval else (None, None)
                mine = (
                    100 * ours.value, low, high, len(ours.seeds), [100 * v for v in ours.seeds], ours.metric,
                    ours.scale, "; ".join(ours.departures),
                ) if ours else (None,) * 8  # fmt: skip
                values = (
                    tables.name, table.key, row.label, cell.measure, paper.printed, paper.mark, paper.source,
                    *mine, None if cell.difference is None else 100 * cell.difference, cell.state,
                    cell.reason, cell.command, ours.keys if ours else None,
                )  # fmt: skip
                yield dict(zip(LONG, values, strict=True))


FORMATS: dict[str, Callable[[PaperTables], str]] = {
    "txt": lambda tables: core.text(laid_out(tables)),
    "md": lambda tables: core.markdown(laid_out(tables)),
    "tex": lambda tables: core.latex_document(laid_out(tables)),
    "csv": lambda tables: core.csv_text(LONG, _long_rows(tables)),
    "html": lambda tables: core.html_section(laid_out(tables), "paper", tables.name),
    "json": lambda tables: json.dumps(dataclasses.asdict(tables), ensure_ascii=False, indent=1) + "\n",
}


def render(tables: PaperTables, form: str) -> str:
    """The comparison in one of `FORMATS`."""
    return FORMATS[form](tables)
