"""Ours beside a paper's numbers.

    dbp report paper=dbp [SWEEP or KEY …]        also semdedup, datacomp, metaclip, tldr
    dbp report paper=dbp paper.numbers=FILE      with a transcription of your own
    dbp report paper=dbp out=FOLDER              where the files go; paths.runs/reports/paper-NAME otherwise

Prints the tables and writes them as .txt, .md, .tex, .csv, .html (a fragment) and .json. Without a name every
evaluation in the store is looked at. A cell that nobody has filled names the command that would fill it.
`paths.store=FOLDER` and `paths.runs=FOLDER` say which store; keys may be shortened.
"""

from collections.abc import Sequence
from pathlib import Path

from dbp.errors import ConfigError, WorldError

SETTINGS = ("paper", "paper.numbers", "out", "paths.store", "paths.runs")


def run(arguments: Sequence[str]) -> int:
    """Do what `dbp report paper=NAME` does; returns the exit status."""
    from dbp.engine.store import Store
    from dbp.verbs.show import read_arguments
    from evaluation.report.paper import FORMATS, compare, read_runs, render
    from evaluation.report.paper.catalogue import find_paper
    from evaluation.report.paper.render import summary
    from evaluation.report.table import write

    settings, words = read_arguments(list(arguments), SETTINGS)
    if bad := next((word for word in words if "=" in word), None):
        raise ConfigError(f"{bad} is not a setting here. It can be: {', '.join(SETTINGS)}.")
    name = settings.get("paper", "")
    find_paper(name)  # a misspelt name is told before the store is read
    store = Store(settings.get("paths.store", "./store"), settings.get("paths.runs", "./runs"))
    tables = compare(name, read_runs(store, words), settings.get("paper.numbers"))
    out = Path(settings.get("out") or store.runs / "reports" / f"paper-{name}")
    print(summary(tables))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for form in FORMATS:
            write(out / f"paper-{name}.{form}", render(tables, form))
    except OSError as error:
        raise WorldError(
            f"cannot write to out={out}: {error.strerror or error}. Give a folder that can be written."
        ) from error
    cells = [cell for table in tables.tables for row in table.rows for cell in row.cells]
    counts = {s: sum(cell.state == s for cell in cells) for s in dict.fromkeys(c.state for c in cells)}
    said = ", ".join(f"{number} {state}" for state, number in counts.items())
    print(f"paper={name}: {len(cells)} cells: {said}; in {out}")
    return 0
