"""The page's charts as files: each one as PNG and as SVG."""

from pathlib import Path
from typing import Any

import numpy as np

from evaluation.report import plots
from evaluation.report.page.gather import Report
from evaluation.report.page.runs import Group
from evaluation.statistics.comparison import MEAN, Cell

FORMATS = ("png", "svg")
MOST_ARMS = 40  # of a matrix that can still be read


def draw_figures(report: Report, out: Path) -> list[Path]:
    """Draw what the data has: accuracy and curves of each group, overlaps, clusters, sizes; the files."""
    made: list[Path] = []
    data = report.data
    for number, group in enumerate(report.groups):
        if not group.cells:
            continue
        tail = "" if len(report.groups) == 1 else f"-{number + 1}"
        shown = [column for column in group.columns if column.is_shown]
        tasks = [column.key for column in shown]
        for file in _files(out, f"accuracy{tail}", made):
            plots.accuracy_by_arm(group.cells, tasks, file, f"{data['title']}: 95 % over test samples; dots: seeds")
        for name, label, lines in _curves(data, group, number):
            for file in _files(out, f"{name}{tail}", made):
                plots.curves(lines, label, f"{shown[-1].label}, percent", file)
    for number, one in enumerate(data["overlaps"]):
        names, shared = one["names"][:MOST_ARMS], np.array(one["jaccard"])[:MOST_ARMS, :MOST_ARMS]
        for file in _files(out, f"overlap{number + 1 if number else ''}", made):
            plots.overlap(names, shared, file)
    for number, one in enumerate(data["clusterings"]):
        _draw_clusters(one, out, str(number + 1) if number else "", made)
    return made


def _draw_clusters(one: dict[str, Any], out: Path, tail: str, made: list[Path]) -> None:
    intra, inter, complexity = (
        np.array([np.nan if v is None else v for v in one[name]], float)
        for name in ("d_intra", "d_inter", "complexity")
    )
    sizes = np.array(one["size"])
    drawn = (sizes > 0) & np.isfinite(complexity)
    if drawn.any():
        for file in _files(out, f"clusters{tail}", made):
            plots.clusters(
                intra[drawn], inter[drawn], sizes[drawn], complexity[drawn], file,
                f"{int(drawn.sum())} clusters of {int(sizes.sum()):,} rows",
            )  # fmt: skip
    kept = {arm["name"]: np.array(arm["kept"]) for arm in one["arms"] if arm["name"] in one["used_by"]}
    if kept:
        for file in _files(out, f"sizes{tail}", made):
            plots.sizes_before_after(sizes, dict(list(kept.items())[:8]), file)


def _files(out: Path, name: str, made: list[Path]) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{name}.{kind}" for kind in FORMATS]
    made += files
    return files


def _curves(
    data: dict[str, Any], group: Group, number: int
) -> list[tuple[str, str, dict[str, list[tuple[float, Cell]]]]]:
    """Against the share of the pool kept, and against training's FLOP: by method, its points in order."""
    shown = [column.key for column in group.columns if column.is_shown]
    key = MEAN if MEAN in shown else (shown or [MEAN])[-1]
    totals = {name: one["rows"] for one in data["funnels"] for name in one["arms"]}
    kept: dict[str, list[tuple[float, Cell]]] = {}
    compute: dict[str, list[tuple[float, Cell]]] = {}
    for arm in data["arms"]:
        cell = group.cells.get(arm["name"], {}).get(key)
        if arm["group"] != number or cell is None:
            continue
        if arm["kept"] is not None and arm["name"] in totals:
            share = 100 * arm["kept"] / totals[arm["name"]]
            kept.setdefault(arm["method"], []).append((share, cell))
        if arm["flops"]:
            compute.setdefault(arm["method"], []).append((float(arm["flops"]), cell))
    drawn = (
        ("kept", "percent of the pool kept", kept),
        ("compute", "training FLOP of one run", compute),
    )
    return [(name, label, _in_order(lines)) for name, label, lines in drawn if lines]


def _in_order(
    lines: dict[str, list[tuple[float, Cell]]],
) -> dict[str, list[tuple[float, Cell]]]:
    return {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}
