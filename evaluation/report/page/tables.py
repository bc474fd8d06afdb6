"""The page's tables: what Markdown and LaTeX show, and the lines of CSV and JSON with every number."""

from collections.abc import Iterator, Sequence
from typing import Any

from evaluation.report.page.runs import Column, Group, Measured
from evaluation.report.sweep_table import NUMBERS, difference_text, kept_text, numbers, value_text
from evaluation.report.table import Table, Text

LONG = (
    "group", "arm", "method", "seeds", "kept", "draws", "samples_seen", "steps", "train_flops", "column", "text",
    "difference_text", *NUMBERS,
)  # fmt: skip


def table_of(group: Group) -> Table:
    """The table of one group of arms."""
    columns = [column for column in group.columns if column.is_shown]
    heading = ["method", "seeds", "kept", "samples seen", "training FLOP", *(c.heading for c in columns)]
    title = group.name + (f" (apart: {group.reason})" if group.reason else "")
    return Table(title, heading, [_row(arm, group, columns) for arm in group.arms], group.notes)


def _row(arm: Measured, group: Group, columns: Sequence[Column]) -> list[Text]:
    if not arm.runs:
        reason = arm.problems[0] if arm.problems else "unfinished"
        return [Text(arm.named.name), Text("0", f"no result: {reason}"[:90]), *[Text("")] * (3 + len(columns))]
    facts, control = arm.runs[0].facts, arm.named.control
    seen, flops = facts["samples_seen"], facts["train_flops"]
    cells = group.cells.get(arm.named.name, {})
    return [
        Text(arm.named.name, f"(against {control})" if control not in (None, arm.named.name) else ""),
        Text(str(len(arm.runs)), "" if arm.state == "finished" else arm.state),
        Text(kept_text(arm.runs)),
        Text("" if seen is None else f"{seen:,}"),
        Text("" if flops is None else f"{flops:.2e}"),
        *(
            Text(value_text(cell), difference_text(cell), cell.is_separate) if cell else Text("-")
            for cell in (cells.get(column.key) for column in columns)
        ),
    ]


def long_rows(groups: Sequence[Group]) -> Iterator[dict[str, Any]]:
    """A line for each arm and column, with every number."""
    for group in groups:
        for arm in (arm for arm in group.arms if arm.runs):
            names = ("kept", "draws", "samples_seen", "steps", "train_flops")
            facts = {n: arm.runs[0].facts.get(n) for n in names}
            about = {"group": group.name, "arm": arm.named.name, "method": arm.named.method, "seeds": len(arm.runs)}
            for key, cell in group.cells.get(arm.named.name, {}).items():
                texts = {"column": key, "text": value_text(cell), "difference_text": difference_text(cell)}
                yield about | facts | texts | numbers(cell)
