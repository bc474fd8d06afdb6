"""A table of texts and its writers: aligned text, Markdown, LaTeX and HTML; lines of numbers as CSV and JSON.

Whatever a verb prints or writes as a table is a `Table`, so that all formats show the same texts.
"""

import csv
import html
import io
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.engine.disk import replacing


@dataclass(frozen=True)
class Text:
    """What stands in one cell: a first line, a second, and whether a verdict makes it bold."""

    text: str
    second: str = ""
    is_bold: bool = False

    def __str__(self) -> str:
        words = " ".join(part for part in (self.text, self.second) if part)
        return f"**{words}**" if self.is_bold and words else words


@dataclass(frozen=True)
class Table:
    """A table of texts with its title and notes; without a heading it is the notes alone."""

    title: str = ""  # what it shows
    heading: Sequence[str] = ()  # of the columns
    rows: Sequence[Sequence[str | Text]] = ()  # its cells
    notes: Sequence[str] = ()  # one sentence each
    # The headings of columns of numbers; all columns but the first where none are given
    right: Collection[str] | None = None

    @property
    def texts(self) -> list[list[str]]:
        """The rows as plain texts."""
        return [list(map(str, row)) for row in self.rows]

    @property
    def are_numbers(self) -> list[bool]:
        """Which columns are aligned to the right."""
        return [at > 0 if self.right is None else name in self.right for at, name in enumerate(self.heading)]


def write(path: Path, text: str) -> None:
    """Write a file in place of what is there."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "replace"))


# text


def aligned(table: Table) -> str:
    """Columns of equal width."""
    grid = [list(table.heading), *table.texts]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, table.are_numbers, strict=True)
        )
        for row in grid
    ]
    return "\n".join(line.rstrip() for line in lines)


def text(tables: Sequence[Table]) -> str:
    """All tables with their titles underlined; the first title is that of the whole."""
    parts = []
    for number, table in enumerate(tables):
        lines = [table.title, ("-" if number else "=") * len(table.title)]
        lines += [aligned(table)] if table.heading else []
        parts.append("\n".join([*lines, *table.notes]))
    return "\n\n".join(parts) + "\n"


# Markdown


def markdown(tables: Sequence[Table]) -> str:
    """All tables as one document; the first title is that of the whole."""
    parts = []
    for number, table in enumerate(tables):
        parts.append(f"{'##' if number else '#'} {_markdown(table.title)}")
        if table.heading:
            parts.append(markdown_table(table))
        if table.notes:
            parts.append("\n".join(f"- {_markdown(note)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """The rows with their heading."""
    rule = "|".join("---:" if is_number else "---" for is_number in table.are_numbers)
    rows = [[_markdown_cell(cell) for cell in row] for row in (table.heading, *table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _markdown_cell(cell: str | Text) -> str:
    if isinstance(cell, str):
        return _markdown(cell).replace("|", "\\|")
    return str(Text(_markdown_cell(cell.text), _markdown_cell(cell.second), cell.is_bold))


def _markdown(text: str) -> str:
    """Text that starts no tag, link or emphasis; what stands between backticks stays."""
    escape = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "*": "\\*", "_": "\\_", "](": "]\\("}
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        piece
        if piece.startswith("`")
        else re.sub(r"\]\(|[&<>*]|(?<!\w)_|_(?!\w)", lambda sign: escape[sign[0]], piece)
        for piece in pieces
    )


# LaTeX

SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": "$-$", "·": r"$\cdot$",
    "…": r"\ldots{}", "–": "--", "—": "---", "`": r"\`{}", "‡": r"\textsuperscript{\textdaggerdbl}",
    "†": r"\textsuperscript{\textdagger}", "¶": r"\textsuperscript{\textparagraph}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after the end of a row they would be its options
}  # fmt: skip


def latex(tables: Sequence[Table]) -> str:
    """All tables, to be read with \\input; they need no package but textcomp, which LaTeX loads."""
    lines = ["% Needs no package. In the document: \\input{table}"]
    for table in tables:
        spec = "".join("r" if is_number else "l" for is_number in table.are_numbers)
        heading, *rows = _latex_rows(table)
        lines += ["", r"\begin{table}[t]", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"]
        lines += [
            f"\\begin{{tabular}}{{{spec}}}",
            r"\hline",
            heading,
            r"\hline",
            *rows,
            r"\hline",
            r"\end{tabular}",
        ]
        caption = " ".join([f"{table.title}.", *table.notes])
        lines += [f"\\caption{{{latex_text(caption)}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def latex_document(tables: Sequence[Table]) -> str:
    """A document of long tables without a package beyond LaTeX's own; the first title is that of the whole."""
    lines = [
        "\\documentclass{article}",
        "\\usepackage[T1]{fontenc}\n\\usepackage{textcomp}\n\\usepackage{longtable}",
        "\\usepackage[landscape,margin=1cm]{geometry}",
        "\\begin{document}\\small\\sloppy\\setlength{\\tabcolsep}{3pt}",
    ]
    for number, table in enumerate(tables):
        lines.append(f"\\{'subsection' if number else 'section'}*{{{latex_text(table.title)}}}")
        if table.heading:
            columns = f"p{{{0.96 / len(table.heading) - 0.012:.3f}\\linewidth}}" * len(table.heading)
            heading, *rows = _latex_rows(table)
            lines += [f"\\begin{{longtable}}{{{columns}}}", "\\hline"]
            lines += [heading + "\\hline\\endhead", *rows, "\\hline", "\\end{longtable}"]
        lines += [f"\\par {latex_text(note)}" for note in table.notes]
    return "\n".join([*lines, "\\end{document}", ""])


def _latex_rows(table: Table) -> list[str]:
    return [" & ".join(map(_latex_cell, row)) + r" \\" for row in (table.heading, *table.rows)]


def _latex_cell(cell: str | Text) -> str:
    if isinstance(cell, str):
        return latex_text(cell)
    first, second = latex_text(cell.text), latex_text(cell.second)
    first = f"\\textbf{{{first}}}" if cell.is_bold and first else first
    return f"\\begin{{tabular}}[t]{{@{{}}r@{{}}}}{first}\\\\{second}\\end{{tabular}}" if second else first


def latex_text(text: str) -> str:
    """Text with every sign of LaTeX's own escaped; letters that its fonts lack become their code points."""

    def letter(one: str) -> str:
        if one in SIGNS or one.isascii():
            return SIGNS.get(one, one)
        bare = "".join(SIGNS.get(c, c) for c in unicodedata.normalize("NFKD", one) if c.isascii())
        return bare or f"(U+{ord(one):04X})"

    return "".join(map(letter, " ".join(text.split())))


# HTML


def html_section(tables: Sequence[Table], kind: str, name: str) -> str:
    """A fragment: one section with tables, for a page or on its own."""
    parts = [f'<section class="{kind}" id="{kind}-{html.escape(name)}">']
    for number, table in enumerate(tables):
        level = 3 if number else 2
        parts.append(f"<h{level}>{html.escape(table.title)}</h{level}>")
        if table.heading:
            head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.heading)
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>")
            opening = ['<td class="number">' if is_number else "<td>" for is_number in table.are_numbers]
            for row in table.texts:
                cells = (f"{td}{html.escape(cell)}</td>" for td, cell in zip(opening, row, strict=True))
                parts.append(f"<tr>{''.join(cells)}</tr>")
            parts.append("</tbody></table>")
        if table.notes:
            notes = (re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(note)) for note in table.notes)
            parts.append("<ul>" + "".join(f"<li>{note}</li>" for note in notes) + "</ul>")
    return "\n".join([*parts, "</section>", ""])


# lines of numbers


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV: a list's values are parted by spaces, what is not known is empty, and no name is a formula."""

    def sheet(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return " ".join(map(str, value))
        return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "@") else value

    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: sheet(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON, one a line."""
    return "".join(json.dumps(row, allow_nan=False, default=float) + "\n" for row in rows)
