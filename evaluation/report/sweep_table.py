"""Tables of arms: the texts and numbers of a cell, and a sweep's table."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.report.table import Table, Text
from evaluation.statistics.analysis import span
from evaluation.statistics.comparison import MEAN, Arm, Cell, Run
from evaluation.tasks import find_task, with_chance

FACTS = ("kept", "samples seen", "steps", "passes")
PRICE = ("decoded", "scored", "FLOP")  # of a run, where arms choose while they train
NUMBERS = (
    "value", "low", "high", "difference", "difference_low", "difference_high", "p", "adjusted_p", "is_separate",
    "values_by_seed",
)  # fmt: skip
LONG = ("arm", "seeds", "kept", "draws", "samples_seen", "steps", "task", "metric", *NUMBERS)
Cells = Mapping[str, Mapping[str, Cell]]


def value_text(cell: Cell) -> str:
    """Percent, with half of the 95 % interval over test samples."""
    return f"{100 * cell.value:.1f} ±{100 * (cell.interval[1] - cell.interval[0]) / 2:.1f}"


def difference_text(cell: Cell) -> str:
    """Percentage points to the control with their interval; nothing for the control itself."""
    if cell.difference is None:
        return ""
    text = f"{100 * cell.difference:+.1f}"
    if cell.difference_interval is None:
        return f"{text} (cannot tell)"
    low, high = cell.difference_interval
    return f"{text} [{100 * low:+.1f}, {100 * high:+.1f}]"


def kept_text(runs: Sequence[Run]) -> str:
    """Rows that arms were trained on; where rows are taken several times, also how often."""
    text = span([run.facts["kept"] for run in runs])
    if all(run.facts.get("draws") is None for run in runs):
        return text
    draws = span([round(run.facts.get("draws") or run.facts["kept"]) for run in runs])
    most = max(run.facts.get("most_draws_of_a_sample") or 1 for run in runs)
    return f"{text} ({draws} draws, at most {most:g} of a row)"


def price_texts(run: Run, few: bool) -> list[str]:
    """Pairs decoded and scored, and FLOPs in all, of a run; nothing for a sweep where no arm chooses (`few`)."""
    if few:
        return []
    facts = run.facts
    flops = [facts.get("train_flops"), facts.get("scoring_flops", 0), facts.get("reference_flops", 0)]
    whole = "-" if None in flops else f"{sum(n for n in flops if n is not None):.3g}"
    return [
        f"{facts.get('samples_decoded', facts['samples_seen']):,}",
        f"{facts.get('samples_scored', 0):,}",
        whole,
    ]


def numbers(cell: Cell) -> dict[str, Any]:
    """Every number of a cell at full precision, by `NUMBERS`."""
    low, high = cell.difference_interval or (None, None)
    values = (
        float(cell.value), *map(float, cell.interval), cell.difference, low, high, cell.p, cell.adjusted_p,
        bool(cell.is_separate), list(map(float, cell.seeds)),
    )  # fmt: skip
    return dict(zip(NUMBERS, values, strict=True))


def sweep_table(arms: Sequence[Arm], cells: Cells, choosing: Mapping[str, float]) -> Table:
    """The table of a sweep: percent with the half width of the interval.

    A cell is bold where its difference to its control is significant. Each control has a column of differences of
    its own, for the arms that are compared with it.

    Args:
        choosing: Seconds that choosing took for one run of an arm (`Ledger.choosing`).
    """
    tasks = _tasks(cells)
    means = {name: by_task[MEAN] for name, by_task in cells.items() if MEAN in by_task}
    controls = list(dict.fromkeys(c for arm in arms if arm.name in means and (c := means[arm.name].control)))
    few = all("candidates" not in run.facts for arm in arms for run in arm.runs)
    heading = [
        "method",
        "seeds",
        *FACTS,
        *(() if few else PRICE),
        *(with_chance(_short(t), find_task(t).chance) for t in tasks),
    ]
    heading += ["mean", *(f"mean - {control}" for control in controls)] if means else []
    heading += ["choosing (s)", "training (s)"]
    rows: list[list[str | Text]] = []
    for arm in arms:
        if not arm.runs:
            reason = arm.failures[0].strip().splitlines()[-1] if arm.failures else "unfinished"
            rows.append([arm.name, "0", f"no result: {reason}"[:60], *[""] * (len(heading) - 3)])
            continue
        facts, mean = arm.runs[0].facts, means.get(arm.name)
        passes = [run.facts["passes"] for run in arm.runs]
        low, high = min(passes), max(passes)
        row: list[str | Text] = [
            arm.name,
            str(len(arm.runs)),
            kept_text(arm.runs),
            f"{facts['samples_seen']:,}",
            f"{facts['steps']:,}",
            f"{low:.2f}" if high - low < 0.005 else f"{low:.2f}-{high:.2f}",
            *price_texts(arm.runs[0], few),
            *(_cell(cells[arm.name].get(task)) for task in tasks),
        ]
        if means:
            row.append(_cell(mean))
            row += [
                Text(difference_text(mean), is_bold=mean.is_separate) if mean and mean.control == control else ""
                for control in controls
            ]
        row.append(_seconds(choosing.get(arm.name)))
        row.append(f"{sum(run.facts['seconds'] for run in arm.runs) / len(arm.runs):,.0f}")
        rows.append(row)
    return Table("", heading, rows)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.1f}" if seconds < 10 else f"{seconds:,.0f}"


def finer_table(measure: str, finer: Cells) -> Table:
    """One finer measure: value, and the difference to the arm's control."""
    columns = [c for c in dict.fromkeys(c for row in finer.values() for c in row) if c.endswith(f" {measure}")]
    heading = ["method", *(_short(column.split()[0]) for column in columns)]
    return Table("", heading, [[name, *(_finer(row.get(c)) for c in columns)] for name, row in finer.items()])


def members_line(cells: Cells) -> str:
    """What the mean is a mean of."""
    named = ", ".join(f"{_short(task)} ({find_task(task).main_metric})" for task in _tasks(cells))
    return (
        f"mean: plain mean of {named}. Percent; ± is half the 95 % interval over test samples.\n"
        "choosing: seconds of a run's encoder and of all stages between pool and keep list, as if no other run "
        "shared them; training: with evaluation."
    )


def long_rows(arms: Sequence[Arm], cells: Cells) -> Iterator[dict[str, Any]]:
    """One line for each arm and task, with every number at full precision."""
    for arm in arms:
        for column, cell in cells.get(arm.name, {}).items():
            facts = {name: arm.runs[0].facts.get(name) for name in ("kept", "draws", "samples_seen", "steps")}
            task, _, finer = column.partition(" ")
            metric = finer or (MEAN if task == MEAN else find_task(task).main_metric)
            about = {"arm": arm.name, "seeds": len(arm.runs), **facts, "task": task, "metric": metric}
            yield about | numbers(cell)


def result_rows(arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
    """One line for each run and task: enough to rebuild any table."""
    for arm in arms:
        for run in arm.runs:
            about = {"arm": arm.name, "seed": run.seed, **run.facts}
            yield from (about | {"result": json.loads(result.line())} for result in run.results)


def _tasks(cells: Cells) -> list[str]:
    return list(dict.fromkeys(task for by_task in cells.values() for task in by_task if task != MEAN))


def _short(task: str) -> str:
    return task.split("/")[-1]


def _cell(cell: Cell | None) -> Text:
    return Text("-") if cell is None else Text(value_text(cell), is_bold=cell.is_separate)


def _finer(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-")
    text = f"{cell.value:.3f} ±{(cell.interval[1] - cell.interval[0]) / 2:.3f}"
    if cell.difference_interval is not None:
        low, high = cell.difference_interval
        text += f" ({cell.difference:+.3f} [{low:+.3f}, {high:+.3f}])"
    return Text(text, is_bold=cell.is_separate)
