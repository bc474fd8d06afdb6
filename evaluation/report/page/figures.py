"""The page's charts as files: each one as PNG and as SVG."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.report import plots
from evaluation.report.page.gather import Report
from evaluation.report.page.runs import Group
from evaluation.statistics.comparison import MEAN, Cell

FORMATS = ("png", "svg")
MOST_ARMS = 40  # of a matrix that can still be read
Lines = dict[str, list[tuple[float, Cell]]]  # method -> where on the axis, and the cell there


def draw_figures(report: Report, out: Path) -> None:
    """Draw what the data has: accuracy and curves of each group, overlaps, clusters, sizes."""
    data = report.data

    def draw(plot: Callable[..., None], name: str, *shown: Any) -> None:
        for kind in FORMATS:
            plot(*shown, path=out / f"{name}.{kind}")

    for number, group in enumerate(report.groups):
        if not group.cells:
            continue
        tail = "" if len(report.groups) == 1 else f"-{number + 1}"
        shown = [column for column in group.columns if column.is_shown]
        title = f"{data['title']}: 95 % over test samples; dots: seeds"
        draw(plots.accuracy_by_arm, f"accuracy{tail}", group.cells, [column.key for column in shown], title)
        for name, label, lines in _curves(data, group, number):
            draw(plots.curves, f"{name}{tail}", lines, label, f"{shown[-1].label}, percent")
    for number, one in enumerate(data["overlaps"]):
        names, shared = one["names"][:MOST_ARMS], np.array(one["jaccard"])[:MOST_ARMS, :MOST_ARMS]
        draw(plots.overlap, f"overlap{number + 1 if number else ''}", names, shared)
    for number, one in enumerate(data["clusterings"]):
        tail = str(number + 1) if number else ""
        sizes = np.array(one["size"])
        intra, inter, complexity = (np.array(one[n], float) for n in ("d_intra", "d_inter", "complexity"))
        if np.isfinite(complexity[sizes > 0]).any():
            draw(plots.clusters, f"clusters{tail}", intra, inter, sizes, complexity)
        kept = {arm["name"]: np.array(arm["kept"]) for arm in one["arms"] if arm["name"] in one["used_by"]}
        if kept:
            draw(plots.sizes_before_after, f"sizes{tail}", sizes, kept)


def _curves(data: dict[str, Any], group: Group, number: int) -> Iterator[tuple[str, str, Lines]]:
    """Against the share of the pool kept, and against training's FLOP: by method, its points in order."""
    shown = [column.key for column in group.columns if column.is_shown]
    key = MEAN if MEAN in shown else (shown or [MEAN])[-1]
    totals = {name: one["rows"] for one in data["funnels"] for name in one["arms"]}
    kept, compute = Lines(), Lines()
    for arm in data["arms"]:
        cell = group.cells.get(arm["name"], {}).get(key)
        if arm["group"] != number or cell is None:
            continue
        if arm["kept"] is not None and arm["name"] in totals:
            share = 100 * arm["kept"] / totals[arm["name"]]
            kept.setdefault(arm["method"], []).append((share, cell))
        if arm["flops"]:
            compute.setdefault(arm["method"], []).append((float(arm["flops"]), cell))
    for name, label, lines in (
        ("kept", "percent of the pool kept", kept), ("compute", "training FLOP of one run", compute),
    ):  # fmt: skip
        if lines:
            yield name, label, {method: sorted(points, key=lambda p: p[0]) for method, points in lines.items()}
