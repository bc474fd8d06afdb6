"""A comparison as text, Markdown, LaTeX, CSV, JSON and a fragment of HTML, all from the same cells."""

import csv
import dataclasses
import html
import io
import json
import re
from collections.abc import Callable, Sequence

from evaluation.report.latex import latex_text
from evaluation.report.paper.published import LEGEND, SYMBOLS, Mark
from evaluation.report.paper.tables import Cell, FoundRow, FoundTable, Ordering, Ours, PaperTables

HEADING = ("method / setting", "measure", "paper", "ours", "seeds", "scale", "difference", "state")
ORDER_HEADING = ("paper says", "by", "ours", "verdict", "scale", "detail")
# Columns that hold numbers.
RIGHT = {"paper", "ours", "seeds", "difference", "by"}
# Cells of a table that a terminal shows whole.
WHOLE = 60
ABOUT = (
    "Percent. Ours: mean over seeds, with its 95 % interval over test samples, and over seeds where there "
    "are three or more. A difference is given at the paper's scale alone; a letter names another scale."
)


@dataclasses.dataclass(frozen=True)
class Block:
    """One thing on the page: lines of text, or a table of text."""

    title: str
    level: int
    lines: tuple[str, ...] = ()
    heading: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def render(tables: PaperTables, form: str) -> str:
    """The comparison in one of `FORMATS`."""
    return FORMATS[form](tables)


def blocks(tables: PaperTables) -> list[Block]:
    """What every format but CSV and JSON lays out."""
    found = [Block(f"{tables.title} (paper={tables.name})", 1, (*tables.notes, ABOUT))]
    for table in tables.tables:
        scales = _scales(table)
        below = [f"({letter}) {scale}" for scale, letter in scales.items()]
        below += _legend(cell.paper.mark for row in table.rows for cell in row.cells)
        below += [f"{row.label}: {row.note}" for row in table.rows if row.note]
        lines = tuple(filter(None, (table.note, _protocol(table), *below, *_commands(table), _sources(table))))
        rows = tuple(_line(row, cell, scales) for row in table.rows for cell in row.cells)
        found.append(Block(f"{table.title} [{table.key}]", 2, lines, HEADING, rows))
    found.append(_order_block(tables.orderings))
    for facts in tables.facts:
        rows = tuple((_marked(row[0], mark), *row[1:]) for row, mark in zip(facts.rows, facts.marks, strict=True))
        found.append(Block(facts.title, 2, tuple(_legend(facts.marks)), facts.heading, rows))
    if tables.out_of_scope:
        found.append(Block("Out of scope", 2, tables.out_of_scope))
    return found


def _order_block(orderings: Sequence[Ordering]) -> Block:
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
    rows = tuple(_order_line(one) for one in measured)
    legend = _legend(one.mark for one in orderings)
    return Block("Orders", 2, (summary, about, *legend, *words), ORDER_HEADING if rows else (), rows)


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


def _legend(marks: object) -> list[str]:
    found = set(marks)  # type: ignore[call-overload]
    return [text for mark, text in LEGEND.items() if mark in found]


def summary(tables: PaperTables) -> str:
    """The comparison for a terminal: small tables whole, of large ones what we have, and no facts."""
    head, *rest = blocks(tables)
    shown = [head]
    for table, block in zip(tables.tables, rest, strict=False):
        if len(block.rows) > WHOLE:
            cells = [cell for row in table.rows for cell in row.cells]
            rows = tuple(line for line, cell in zip(block.rows, cells, strict=True) if cell.ours is not None)
            scales = [f"({letter}) {scale}" for scale, letter in _scales(table).items()]
            lines = (
                f"{len(rows)} of {len(cells)} cells have a number of ours; all stand in the files.",
                *scales,
            )
            block = Block(block.title, 2, lines, HEADING if rows else (), rows)
        shown.append(block)
    titles = {facts.title for facts in tables.facts}
    shown += [block for block in rest[len(tables.tables) :] if block.title not in titles]
    return _laid_out(shown)


# formats


def _text(tables: PaperTables) -> str:
    return _laid_out(blocks(tables))


def _laid_out(laid: Sequence[Block]) -> str:
    parts = []
    for block in laid:
        lines = [block.title, ("=" if block.level == 1 else "-") * len(block.title)]
        if block.heading:
            grid = [block.heading, *block.rows]
            widths = [max(len(row[i]) for row in grid) for i in range(len(block.heading))]
            for row in grid:
                cells = [
                    cell.rjust(width) if name in RIGHT else cell.ljust(width)
                    for cell, width, name in zip(row, widths, block.heading, strict=True)
                ]
                lines.append("  ".join(cells).rstrip())
        parts.append("\n".join([*lines, *block.lines]))
    return "\n\n".join(parts) + "\n"


def _markdown(tables: PaperTables) -> str:
    parts = []
    for block in blocks(tables):
        parts.append(f"{'#' * block.level} {_plain_markdown(block.title)}")
        if block.heading:
            rule = "|".join("---:" if name in RIGHT else "---" for name in block.heading)
            lines = [_bars(block.heading), f"|{rule}|", *map(_bars, block.rows)]
            parts.append("\n".join(lines))
        if block.lines:
            parts.append("\n".join(f"- {_plain_markdown(line)}" for line in block.lines))
    return "\n\n".join(parts) + "\n"


def _bars(row: Sequence[str]) -> str:
    return "| " + " | ".join(_plain_markdown(cell).replace("|", "\\|") for cell in row) + " |"


def _plain_markdown(text: str) -> str:
    """Text that Markdown shows as it is, but for code between backticks."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    escape = {
        "<": "&lt;",
        ">": "&gt;",
        "&": "&amp;",
        "*": "\\*",
        "_": "\\_",
        "[": "\\[",
        "]": "\\]",
    }
    return "".join(p if p.startswith("`") else "".join(escape.get(c, c) for c in p) for p in pieces)


def _latex(tables: PaperTables) -> str:
    """A document of plain tabulars, which needs no package beyond LaTeX's own."""
    parts = [
        "\\documentclass{article}",
        "\\usepackage[T1]{fontenc}\n\\usepackage{textcomp}\n\\usepackage{longtable}",
        "\\usepackage[landscape,margin=1cm]{geometry}",
        "\\begin{document}\\small\\sloppy\\setlength{\\tabcolsep}{3pt}",
    ]
    for block in blocks(tables):
        command = "section" if block.level == 1 else "subsection"
        parts.append(f"\\{command}*{{{latex_text(block.title)}}}")
        if block.heading:
            parts.append(_longtable(block))
        parts += [f"\\par {latex_text(line)}" for line in block.lines]
    return "\n".join([*parts, "\\end{document}", ""])


def _longtable(block: Block) -> str:
    share = 0.96 / len(block.heading)
    columns = f"p{{{share - 0.012:.3f}\\linewidth}}" * len(block.heading)
    lines = [f"\\begin{{longtable}}{{{columns}}}", "\\hline"]
    for at, row in enumerate([block.heading, *block.rows]):
        lines.append(" & ".join(map(latex_text, row)) + " \\\\" + ("\\hline\\endhead" if not at else ""))
    return "\n".join([*lines, "\\hline", "\\end{longtable}"])


def _html(tables: PaperTables) -> str:
    """A fragment: one section with tables, for a page or on its own."""
    parts = [f'<section class="paper" id="paper-{html.escape(tables.name)}">']
    for block in blocks(tables):
        parts.append(f"<h{block.level + 1}>{html.escape(block.title)}</h{block.level + 1}>")
        if block.heading:
            parts.append(_html_table(block))
        if block.lines:
            parts.append("<ul>" + "".join(f"<li>{_code(line)}</li>" for line in block.lines) + "</ul>")
    return "\n".join([*parts, "</section>", ""])


def _html_table(block: Block) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in block.heading)
    lines = [f"<table><thead><tr>{head}</tr></thead><tbody>"]
    for row in block.rows:
        cells = "".join(
            f'<td class="number">{html.escape(cell)}</td>' if name in RIGHT else f"<td>{html.escape(cell)}</td>"
            for cell, name in zip(row, block.heading, strict=True)
        )
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def _code(line: str) -> str:
    pieces = re.split(r"`([^`]*)`", line)
    return "".join(f"<code>{html.escape(p)}</code>" if at % 2 else html.escape(p) for at, p in enumerate(pieces))


CSV_HEADING = (
    "paper", "table", "row", "measure", "paper_percent", "mark", "source", "ours_percent", "low", "high",
    "seeds", "values_by_seed", "ours_measure", "scale", "departures", "difference", "state", "reason",
    "command", "evaluations",
)  # fmt: skip


def _csv(tables: PaperTables) -> str:
    """One line for each cell; ours at full precision, the paper's digits as printed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADING)
    for table in tables.tables:
        for row in table.rows:
            for cell in row.cells:
                writer.writerow(
                    [tables.name, table.key, row.label, cell.measure, cell.paper.printed,
                     cell.paper.mark, cell.paper.source, *_csv_ours(cell.ours),
                     "" if cell.difference is None else 100 * cell.difference,
                     cell.state, cell.reason, cell.command,
                     " ".join(cell.ours.keys) if cell.ours else ""]
                )  # fmt: skip
    return text.getvalue()


def _csv_ours(ours: Ours | None) -> list[object]:
    if ours is None:
        return [""] * 8
    low, high = (100 * v for v in ours.interval) if ours.interval else ("", "")
    return [
        100 * ours.value, low, high, len(ours.seeds), " ".join(str(100 * v) for v in ours.seeds),
        ours.metric, ours.scale, "; ".join(ours.departures),
    ]  # fmt: skip


def _json(tables: PaperTables) -> str:
    return json.dumps(dataclasses.asdict(tables), ensure_ascii=False, indent=1) + "\n"


FORMATS: dict[str, Callable[[PaperTables], str]] = {
    "txt": _text,
    "md": _markdown,
    "tex": _latex,
    "csv": _csv,
    "html": _html,
    "json": _json,
}
