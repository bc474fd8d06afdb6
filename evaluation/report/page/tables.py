"""One table of arms, written as Markdown, LaTeX, CSV and JSON lines: the same texts and numbers in each.

Markdown and LaTeX show what the page shows; CSV and JSON lines hold a line for each arm and column, with the
texts and every number at full precision.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report.latex import latex_text
from evaluation.report.page.runs import Column, Group, Measured
from evaluation.statistics.analysis import span
from evaluation.statistics.comparison import Cell

LONG: tuple[str, ...] = (
    "group", "arm", "method", "seeds", "kept", "samples_seen", "steps", "train_flops", "column", "text",
    "difference_text", "value", "low", "high", "difference", "difference_low", "difference_high", "p",
    "adjusted_p", "is_separate", "values_by_seed",
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """What stands in one cell: a first line, a second, and whether a verdict makes it bold."""

    text: str
    second: str = ""
    is_bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table of texts with what stands above it."""

    title: str
    notes: Sequence[str]
    heading: Sequence[str]
    rows: Sequence[Sequence[Text]]


def value_text(cell: Cell) -> str:
    """Percent, with half of the 95 % interval over test samples."""
    half = (cell.interval[1] - cell.interval[0]) / 2
    return f"{100 * cell.value:.1f} ±{100 * half:.1f}"


def difference_text(cell: Cell) -> str:
    """Percentage points to the control with their interval; nothing for the control itself."""
    if cell.difference is None:
        return ""
    text = f"{100 * cell.difference:+.1f}"
    if cell.difference_interval is None:
        return f"{text} (cannot tell)"
    low, high = cell.difference_interval
    return f"{text} [{100 * low:+.1f}, {100 * high:+.1f}]"


def table_of(group: Group, every_column: bool = False) -> Table:
    """The table of one group of arms."""
    columns = [column for column in group.columns if column.is_shown or every_column]
    heading = [
        "method",
        "seeds",
        "kept",
        "samples seen",
        "training FLOP",
        *(c.heading for c in columns),
    ]
    rows = [_row(arm, group, columns) for arm in group.arms]
    title = group.name + (f" (apart: {group.reason})" if group.reason else "")
    return Table(title, group.notes, heading, rows)


def _row(arm: Measured, group: Group, columns: Sequence[Column]) -> list[Text]:
    if not arm.runs:
        reason = arm.problems[0] if arm.problems else "unfinished"
        blanks = [Text("")] * (3 + len(columns))
        return [Text(arm.named.name), Text("0", f"no result: {reason}"[:90]), *blanks]
    facts = arm.runs[0].facts
    flops = facts["train_flops"]
    control = arm.named.control
    row = [
        Text(arm.named.name, f"(against {control})" if control not in (None, arm.named.name) else ""),
        Text(str(len(arm.runs)), "" if arm.state == "finished" else arm.state),
        Text(span([run.facts["kept"] for run in arm.runs])),
        Text(_count(facts["samples_seen"])),
        Text("" if flops is None else f"{flops:.2e}"),
    ]
    cells = group.cells.get(arm.named.name, {})
    for column in columns:
        cell = cells.get(column.key)
        row.append(Text(value_text(cell), difference_text(cell), cell.is_separate) if cell else Text("-"))
    return row


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def markdown(tables: Sequence[Table], title: str, notes: Sequence[str]) -> str:
    """All tables as one Markdown document."""
    lines = [f"# {_markdown(title)}", "", *(f"{_markdown(note)}  " for note in notes)]
    for table in tables:
        lines += ["", f"## {_markdown(table.title)}", ""]
        lines += [f"{_markdown(note)}  " for note in table.notes]
        lines += ["", "| " + " | ".join(map(_markdown, table.heading)) + " |"]
        lines += ["|---|" + "---:|" * (len(table.heading) - 1)]
        lines += ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def _markdown_cell(text: Text) -> str:
    words = _markdown(" ".join(part for part in (text.text, text.second) if part))
    return f"**{words}**" if text.is_bold and words else words


def _markdown(text: str) -> str:
    """Text that ends no cell, opens no tag and starts no emphasis."""
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("_", "\\_")):
        text = text.replace(sign, instead)
    return " ".join(text.split())


def latex(tables: Sequence[Table]) -> str:
    """All tables as LaTeX, to be read with \\input; it needs no package but textcomp, which LaTeX loads."""
    lines = ["% Needs no package. In the document: \\input{table}"]
    for table in tables:
        spec = "l" + "r" * (len(table.heading) - 1)
        lines += ["", r"\begin{table}[t]", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"]
        lines += [f"\\begin{{tabular}}{{{spec}}}", r"\hline"]
        lines += [" & ".join(map(latex_text, table.heading)) + r" \\", r"\hline"]
        for row in table.rows:
            lines.append(" & ".join(_latex_cell(text) for text in row) + r" \\")
        lines += [r"\hline", r"\end{tabular}"]
        caption = " ".join([f"{table.title}.", *table.notes])
        lines += [f"\\caption{{{latex_text(caption)}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _latex_cell(text: Text) -> str:
    first, second = latex_text(text.text), latex_text(text.second)
    first = f"\\textbf{{{first}}}" if text.is_bold and first else first
    if not second:
        return first
    return f"\\begin{{tabular}}[t]{{@{{}}r@{{}}}}{first}\\\\{second}\\end{{tabular}}"


def long_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A line for each arm and column, with every number."""
    lines = []
    for group in groups:
        for arm in (arm for arm in group.arms if arm.runs):
            facts = arm.runs[0].facts
            for key, cell in group.cells.get(arm.named.name, {}).items():
                low, high = cell.difference_interval or (None, None)
                values = (
                    group.name, arm.named.name, arm.named.method, len(arm.runs), facts["kept"],
                    facts["samples_seen"], facts["steps"], facts["train_flops"], key, value_text(cell),
                    difference_text(cell), float(cell.value), *map(float, cell.interval),
                    cell.difference, low, high, cell.p, cell.adjusted_p, bool(cell.is_separate),
                    list(map(float, cell.seeds)),
                )  # fmt: skip
                lines.append(dict(zip(LONG, values, strict=True)))
    return lines


def csv_text(groups: Sequence[Group]) -> str:
    """`long_rows` as CSV; the values of seeds are parted by spaces, what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, LONG, lineterminator="\n")
    writer.writeheader()
    for row in long_rows(groups):
        row["values_by_seed"] = " ".join(map(repr, row["values_by_seed"]))
        writer.writerow({name: _sheet(value) for name, value in row.items()})
    return text.getvalue()


def _sheet(value: Any) -> Any:
    """A value that a spreadsheet takes as it is: a name that begins like a formula is quoted."""
    if value is None:
        return ""
    if isinstance(value, str) and value[:1] in ("=", "@"):
        return f"'{value}"
    return value


def json_lines(groups: Sequence[Group]) -> str:
    """`long_rows` as JSON, one a line."""
    return "".join(json.dumps(row, allow_nan=False, default=float) + "\n" for row in long_rows(groups))
