"""Tables of arms: text for people, Markdown, CSV, and JSON lines that hold every number."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from dbp.engine.disk import replacing
from evaluation.statistics.analysis import span
from evaluation.statistics.comparison import MEAN, Arm, Cell
from evaluation.tasks import find_task, with_chance

FACTS = ("kept", "samples seen", "steps", "passes")


def table_rows(arms: Sequence[Arm], cells: dict[str, dict[str, Cell]]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of the table of arms, as text; percent with the half width of the interval.

    A cell is marked with ** where its difference to its control is significant. Each control has a column of
    differences of its own, for the arms that are compared with it.
    """
    tasks = list(dict.fromkeys(task for by_task in cells.values() for task in by_task if task != MEAN))
    has_mean = any(MEAN in by_task for by_task in cells.values())
    heading = ["method", "seeds", *FACTS, *map(_titled, tasks)]
    controls = list(dict.fromkeys(c for arm in arms if (c := _control(cells, arm.name))))
    heading += ["mean", *(f"mean - {control}" for control in controls)] if has_mean else []
    heading += ["seconds"]
    rows: list[list[str]] = []
    for arm in arms:
        if not arm.runs:
            reason = arm.failures[0].strip().splitlines()[-1] if arm.failures else "unfinished"
            reason = f"no result: {reason}".replace("|", "/")[:60]  # a bar would end a Markdown cell
            rows.append([arm.name, "0", reason] + [""] * (len(heading) - 3))
            continue
        facts = arm.runs[0].facts
        row = [
            arm.name,
            str(len(arm.runs)),
            span([run.facts["kept"] for run in arm.runs]),
            f"{facts['samples_seen']:,}",
            f"{facts['steps']:,}",
            _span([run.facts["passes"] for run in arm.runs]),
        ]
        by_task = cells[arm.name]
        row += [_cell(by_task.get(task)) for task in tasks]
        if has_mean:
            row.append(_cell(mean := by_task.get(MEAN)))
            row += [_difference(mean) if mean and mean.control == c else "" for c in controls]
        row.append(f"{sum(run.facts['seconds'] for run in arm.runs) / len(arm.runs):,.0f}")
        rows.append(row)
    return heading, rows


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def csv_text(arms: Sequence[Arm], cells: dict[str, dict[str, Cell]]) -> str:
    """One line for each arm and task, with every number at full precision."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        [
            "arm",
            "seeds",
            "kept",
            "samples_seen",
            "steps",
            "task",
            "metric",
            "value",
            "low",
            "high",
            "difference",
            "difference_low",
            "difference_high",
            "p",
            "adjusted_p",
            "is_separate",
            "values_by_seed",
        ]
    )
    for arm in arms:
        for task, cell in cells.get(arm.name, {}).items():
            facts = arm.runs[0].facts
            task, _, finer = task.partition(" ")
            metric = finer or (MEAN if task == MEAN else find_task(task).main_metric)
            low, high = cell.difference_interval or ("", "")
            writer.writerow(
                [
                    arm.name,
                    len(arm.runs),
                    facts["kept"],
                    facts["samples_seen"],
                    facts["steps"],
                    task,
                    metric,
                    cell.value,
                    *cell.interval,
                    "" if cell.difference is None else cell.difference,
                    low,
                    high,
                    "" if cell.p is None else cell.p,
                    "" if cell.adjusted_p is None else cell.adjusted_p,
                    cell.is_separate,
                    " ".join(map(str, cell.seeds)),
                ]
            )
    return text.getvalue()


def json_lines(arms: Sequence[Arm]) -> str:
    """One line for each run and task: enough to rebuild any table."""
    lines = []
    for arm in arms:
        for run in arm.runs:
            for result in run.results:
                lines.append(
                    json.dumps(
                        {
                            "arm": arm.name,
                            "seed": run.seed,
                            **run.facts,
                            "result": json.loads(result.line()),
                        }
                    )
                )
    return "\n".join(lines) + "\n"


def members_line(cells: dict[str, dict[str, Cell]]) -> str:
    """What the mean is a mean of."""
    tasks = list(dict.fromkeys(task for by_task in cells.values() for task in by_task if task != MEAN))
    named = ", ".join(f"{_short(task)} ({find_task(task).main_metric})" for task in tasks)
    return f"mean: plain mean of {named}. Percent; ± is half the 95 % interval over test samples."


def write(path: Path, text: str) -> None:
    """Write a file in place of what is there."""
    with replacing(path) as file:
        file.write(text.encode())


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns."""
    widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
    for row in [heading, *rows]:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _control(cells: dict[str, dict[str, Cell]], arm: str) -> str | None:
    cell = cells.get(arm, {}).get(MEAN)
    return cell.control if cell else None


def _short(task: str) -> str:
    return task.split("/")[-1]


def _titled(task: str) -> str:
    return with_chance(_short(task), find_task(task).chance)


def finer_table(measure: str, finer: Mapping[str, Mapping[str, Cell]]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of one finer measure: value, and the difference to the arm's control."""
    columns = [c for c in dict.fromkeys(c for row in finer.values() for c in row) if c.endswith(f" {measure}")]
    heading = ["method", *(_short(column.split()[0]) for column in columns)]
    return heading, [[name, *(_finer(row.get(c)) for c in columns)] for name, row in finer.items()]


def _finer(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    text = f"{cell.value:.3f} ±{(cell.interval[1] - cell.interval[0]) / 2:.3f}"
    if cell.difference_interval is not None:
        low, high = cell.difference_interval
        text += f" ({cell.difference:+.3f} [{low:+.3f}, {high:+.3f}])"
    return f"**{text}**" if cell.is_separate else text


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    half = (cell.interval[1] - cell.interval[0]) / 2
    text = f"{100 * cell.value:.1f} ±{100 * half:.1f}"
    return f"**{text}**" if cell.is_separate else text


def _difference(cell: Cell) -> str:
    assert cell.difference is not None
    text = f"{100 * cell.difference:+.1f}"
    if cell.difference_interval is None:
        return f"{text} (cannot tell)"
    low, high = cell.difference_interval
    text = f"{text} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"**{text}**" if cell.is_separate else text


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}" if high - low < 0.005 else f"{low:.2f}-{high:.2f}"
