"""A report as files: one page that holds all it needs, tables in four formats, figures in two.

The page carries its data as JSON in a script element that no browser runs, with `<` written as an escape, so
that no caption can end the element; the page's own script sets every text through `textContent`.
"""

import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from dbp.errors import WorldError
from evaluation.report.page import kept_by, tables
from evaluation.report.page.gather import Report
from evaluation.report.plots import draw_once
from evaluation.report.table import Table, csv_text, json_lines, latex, markdown, write

SCRIPTS = ("parts.js", "results.js", "charts.js", "kept_by.js", "clusters.js", "rest.js", "page.js")
NAME = "report.html"


def write_report(report: Report, out: Path, *, with_figures: bool) -> Path:
    """Write the page, the tables and the figures into a folder; returns the page.

    Raises:
        WorldError: The folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(out / NAME, page(report.data, report.sheets))
        shown = [tables.table_of(group) for group in report.groups]
        head = Table(report.data["title"], notes=[*report.data["notes"], *report.data["problems"]])
        rates = [] if report.rates is None else list(report.rates.tables())
        write(out / "table.md", markdown([head, *shown, *rates]))
        write(out / "table.tex", latex(shown))
        write(out / "table.csv", csv_text(tables.LONG, tables.long_rows(report.groups)))
        write(out / "table.jsonl", json_lines(tables.long_rows(report.groups)))
        if report.rates is not None and rates:
            write(out / kept_by.FILE, csv_text(kept_by.LONG, report.rates.long_rows()))
        if with_figures:
            from evaluation.report.page import figures

            (out / "figures").mkdir(exist_ok=True)
            shows = json.dumps({k: v for k, v in report.data.items() if k != "made"}, default=str)
            folder = out / "figures"
            draw_once(folder, shows, figures.__file__, lambda: figures.draw_figures(report, folder))
    except OSError as error:
        raise WorldError(
            f"the report cannot be written into {out} ({error}). Name another folder with out=FOLDER."
        ) from error
    return out / NAME


def page(data: dict[str, Any], sheets: list[str]) -> str:
    """The whole page as text."""
    here = resources.files("evaluation.report.page")
    script = "\n".join((here / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return Template((here / "page.html").read_text(encoding="utf-8")).substitute(
        style=(here / "page.css").read_text(encoding="utf-8"),
        data=_json(data),
        sheets="\n".join(
            f'<script type="text/plain" id="sheet-{number}">{sheet}</script>' for number, sheet in enumerate(sheets)
        ),
        script=f'"use strict";\n(() => {{\n{script}\n}})();',
    )


def _json(data: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign, instead in (
        ("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"),
    ):  # fmt: skip
        text = text.replace(sign, instead)
    # Half of a surrogate pair, as a damaged caption may hold, cannot be written as UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")
