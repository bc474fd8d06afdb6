"""One page of what runs curated, trained and measured, with the same tables and figures as files.

    dbp report                       the last sweep; without one, all evaluations of the store, or all keep lists
    dbp report SWEEP [SWEEP …]       sweeps by name
    dbp report KEY [KEY …]           evaluations, checkpoints or keep lists; keys may be shortened
    dbp report paper=dbp [WORD …]    our numbers beside a paper's: dbp, semdedup, datacomp, metaclip, tldr, field

The page is one file that opens from disk, without a network or a server. With paper=NAME the tables are printed,
and written as .txt, .md, .tex, .csv, .html (a fragment) and .json; without a WORD all evaluations of the store are
read. A cell without a number of ours names the command that would fill it.

    out=FOLDER         where it goes; paths.runs/reports/NAME (paper-NAME) when not given
    paper.numbers=FILE a transcription of your own
    pictures=6000      most pictures on the page; 0 for none
    figures=true       draw the figures as PNG and SVG, too
    paths.store=…      and paths.runs=…: where the artifacts lie
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from dbp.config import require
from dbp.engine.store import Entry, Store
from dbp.errors import ConfigError, StoreError, WorldError, nearest
from dbp.verbs.show import read_arguments
from evaluation.report.page.roster import FILE, NARROWING, Roster, from_keys, joined

SETTINGS = {
    "out": "", "pictures": "6000", "figures": "true", "paper": "", "paper.numbers": "",
    "paths.store": "./store", "paths.runs": "./runs",
}  # fmt: skip
MAIN = "report.html"


def main(verb: str, arguments: list[str]) -> int:
    """Run `dbp report`."""
    given, words = read_arguments(arguments, tuple(SETTINGS))
    settings = SETTINGS | given
    if settings["paper"]:
        for name in ("pictures", "figures"):
            require(name not in given, name, given.get(name), "left out beside paper, whose tables have none")
        return beside_paper(settings, words)
    require(settings["figures"] in ("true", "false"), "figures", settings["figures"], "true or false")
    text = settings["pictures"]
    require(text.isdecimal(), "pictures", text, "a whole number, 0 for none")
    began = time.monotonic()
    store = Store(settings["paths.store"], settings["paths.runs"])
    roster = find_roster(store, words)
    name = "+".join(words)[:60].replace("/", "-") or roster.title
    out = Path(settings["out"] or store.runs / "reports" / name).absolute()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={out} is a file. Name a folder; {MAIN} and the tables go into it.")
    from evaluation.report.page.gather import gather
    from evaluation.report.page.write import write_report

    report = gather(store, roster, int(text))
    made = write_report(report, out, with_figures=settings["figures"] == "true")
    for problem in report.data["problems"]:
        print(f"note: {problem}")
    for line in report.rates.printed() if report.rates else ():
        print(line)
    arms = report.data["arms"]
    idle = sum(arm["state"] != "finished" for arm in arms)
    size = made.stat().st_size / 1e6
    print(
        f"report of {len(arms)} arm{'s' * (len(arms) != 1)}"
        + (f", {idle} not finished" if idle else "")
        + f", made in {time.monotonic() - began:.1f} s: {made} ({size:.1f} MB); tables and figures beside it"
    )
    return 0


def beside_paper(settings: Mapping[str, str], words: Sequence[str]) -> int:
    """Print and write ours beside the numbers of a paper."""
    from evaluation.report.paper.catalogue import find_paper
    from evaluation.report.paper.compare import compare
    from evaluation.report.paper.render import FORMATS, render, summary
    from evaluation.report.paper.runs import read_runs
    from evaluation.report.table import write

    name = settings["paper"]
    find_paper(name)  # a misspelled name is reported before the store is read
    store = Store(settings["paths.store"], settings["paths.runs"])
    tables = compare(name, read_runs(store, words), settings["paper.numbers"] or None)
    out = Path(settings["out"] or store.runs / "reports" / f"paper-{name}")
    print(summary(tables))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for form in FORMATS:
            write(out / f"paper-{name}.{form}", render(tables, form))
    except OSError as error:
        raise WorldError(
            f"cannot write to out={out}: {error.strerror or error}. Give a folder that can be written."
        ) from error
    states = Counter(cell.state for table in tables.tables for row in table.rows for cell in row.cells)
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    print(f"paper={name}: {states.total()} cells: {counted}; in {out}")
    return 0


def find_roster(store: Store, words: Sequence[str]) -> Roster:
    """The arms that words name: sweeps, or keys; the last sweep where there are none.

    Raises:
        ConfigError: There is nothing to report on, or both sweeps and keys are named.
        StoreError: A word is neither.
    """
    known = _sweeps(store)
    if not words:
        if known:
            return Roster.load(known[-1])
        return from_keys({e.key: e for e in store.entries()}, _all_runs(store))
    names = {folder.name: folder for folder in known}
    sweeps = [names[word] for word in words if word in names]
    if sweeps and len(sweeps) < len(words):
        other = next(word for word in words if word not in names)
        raise ConfigError(
            f"{sweeps[0].name} is a sweep and {other} is not. Name sweeps or keys, not both; "
            "a sweep's runs have keys of their own (dbp ls stage=evaluate)."
        )
    if sweeps:
        return joined([Roster.load(folder) for folder in sweeps])
    named = [_find(store, word, list(names)) for word in dict.fromkeys(words)]
    return from_keys({e.key: e for e in store.entries()}, named)


def _sweeps(store: Store) -> list[Path]:
    """The folders of sweeps that wrote their arms or results, the last one last."""
    files = [
        file
        for folder in (store.runs / "sweeps").glob("*")
        if (file := next((f for f in (folder / FILE, folder / "results.jsonl") if f.exists()), None))
    ]
    return [file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime)]


def _all_runs(store: Store) -> list[Entry]:
    """All evaluations; where there are none, all keep lists of selections."""
    every = list(store.entries())
    for stage in ("evaluate", "train", "select"):
        if found := [entry for entry in every if entry.stage == stage]:
            return found
    raise ConfigError(
        f"there is no arm to report on: neither {store.runs} nor {store.root} holds a sweep, an evaluation, a "
        "checkpoint or a keep list. Run dbp sweep experiment=glyphs, or say with paths.store and paths.runs "
        "where to look."
    )


def _find(store: Store, word: str, sweeps: Sequence[str]) -> Entry:
    try:
        entry = store.find(word)
    except StoreError as error:
        near = f" As a sweep: {nearest(word, sweeps)}" if sweeps else ""
        raise StoreError(f"{error}{near}") from None
    if entry.stage not in ("evaluate", "train", *NARROWING):
        raise ConfigError(
            f"{word} is the artifact of stage {entry.stage}. A report is made of evaluations, checkpoints "
            "(train) or keep lists (select); dbp ls lists them."
        )
    return entry
