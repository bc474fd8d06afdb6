"""Figures from arrays: each function draws one and writes it as what the name of its file says: PNG or SVG.

Figures stand until what they show, or the code that draws, has changed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from dbp.engine.disk import replacing
from evaluation.statistics.comparison import MEAN, Cell

MARK = ".drawn.json"
MOST_METHODS = 8  # side by side
INK, PALE, ACCENT = "#1f2933", "#cbd2d9", "#0b7285"


def draw_once(folder: Path, shows: str, code: str, draw: Callable[[], object]) -> bool:
    """Draw into a folder, unless the figures of the same content are all still there.

    Args:
        folder: Of the figures; a hidden file in it says what they were made from.
        shows: All that the figures show, as text.
        code: The file of the module that lays them out; this one counts with it.
        draw: Writes them.

    Returns:
        Whether they were drawn.
    """
    drawing = "\0".join(Path(file).read_text(encoding="utf-8") for file in (code, __file__))
    digest = hashlib.sha256(f"{shows}\0{drawing}".encode("utf-8", "replace")).hexdigest()
    mark = folder / MARK
    try:
        before = json.loads(mark.read_text())
        if before["digest"] == digest and all((folder / name).exists() for name in before["files"]):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not ours: drawn below
    mark.unlink(missing_ok=True)
    draw()
    made = sorted(f.name for f in folder.iterdir() if f.suffix in (".png", ".svg"))
    with replacing(mark) as file:
        file.write(json.dumps({"digest": digest, "files": made}).encode())
    return True


def _figure(width: float, height: float, columns: int = 1, **settings: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    plt.rcParams |= dict.fromkeys(("axes.edgecolor", "text.color", "axes.labelcolor"), INK)
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained", **settings)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=150)
    plt.close(figure)


def clusters(
    d_intra: Float[np.ndarray, " k"],
    d_inter: Float[np.ndarray, " k"],
    sizes: Int[np.ndarray, " k"],
    complexity: Float[np.ndarray, " k"],
    path: Path,
) -> None:
    """Draw d_intra against d_inter, a disc for each cluster with members: colour is complexity, area is size."""
    drawn = np.flatnonzero((sizes > 0) & np.isfinite(complexity))
    order = drawn[np.argsort(-sizes[drawn])]  # small discs on top
    figure, axes = _figure(6.4, 4.6)
    dots = axes.scatter(
        d_intra[order],
        d_inter[order],
        s=8 + 260 * sizes[order] / max(sizes.max(), 1),
        c=complexity[order],
        cmap="viridis",
        alpha=0.85,
        linewidths=0.4,
        edgecolors="white",
    )
    figure.colorbar(dots, ax=axes, label="complexity = d_inter x d_intra")
    axes.set(
        xlabel="d_intra: mean distance of members to their centroid",
        ylabel="d_inter: mean distance to the nearest centroids",
        title=f"{len(drawn)} clusters of {int(sizes.sum()):,} rows",
    )
    _save(figure, path)


def sizes_before_after(before: Int[np.ndarray, " k"], after: dict[str, Int[np.ndarray, " k"]], path: Path) -> None:
    """Draw cluster sizes, largest first, and what each of the first methods keeps of them."""
    after = dict(list(after.items())[:MOST_METHODS])
    figure, axes = _figure(3.2 * max(len(after), 1), 3.2, len(after), sharey=True, squeeze=False)
    order = np.argsort(-before, kind="stable")
    ranks = np.arange(len(before))
    for panel, (name, kept) in zip(axes[0], after.items(), strict=True):
        panel.bar(ranks, before[order], width=1, color=PALE, label="before")
        panel.bar(ranks, kept[order], width=1, color=ACCENT, label="kept")
        panel.set(title=name, xlabel="cluster, by size before")
    axes[0][0].set_ylabel("rows")
    axes[0][-1].legend(frameon=False)
    _save(figure, path)


def pictures(
    rows: Sequence[tuple[str, Sequence[tuple[Image.Image, str]], Sequence[tuple[Image.Image, str]]]],
    path: Path,
    columns: int = 6,
) -> None:
    """Draw kept pictures on the left and pruned ones on the right, a line for each named group.

    Args:
        rows: Name, kept pictures with a note each, pruned pictures with a note each.
        path: Where the PNG goes.
        columns: Pictures a side.
    """
    figure, axes = _figure(1.15 * (2 * columns + 1), 1.45 * max(len(rows), 1))
    axes.set_axis_off()
    axes.set(xlim=(0, 2 * columns + 1), ylim=(-1.3 * len(rows), 0.35))
    axes.text(columns / 2, 0.2, "kept", ha="center", weight="bold", color=ACCENT)
    axes.text(columns + 1 + columns / 2, 0.2, "pruned", ha="center", weight="bold")
    for line, (name, kept, pruned) in enumerate(rows):
        top = -1.3 * line
        axes.text(0, top + 0.02, name, fontsize=7, va="bottom")
        for start, side in ((0, kept), (columns + 1, pruned)):
            for at, (image, note) in enumerate(side[:columns]):
                left = start + at
                axes.imshow(
                    np.asarray(image.resize((64, 64))),
                    extent=(left + 0.12, left + 0.88, top - 0.8, top - 0.04),
                    aspect="auto",
                    interpolation="nearest",
                )
                axes.text(left + 0.5, top - 0.84, note, fontsize=4.8, ha="center", va="top")
    axes.set(xlim=(0, 2 * columns + 1), ylim=(-1.3 * len(rows), 0.45))
    _save(figure, path)


def accuracy_by_arm(cells: dict[str, dict[str, Cell]], tasks: Sequence[str], title: str, path: Path) -> None:
    """Draw each arm's value on each task: bars are 95 % intervals over test pictures, dots are seeds."""
    names = list(cells)
    figure, axes = _figure(2.9 * len(tasks), 0.34 * len(names) + 1.4, len(tasks), sharey=True, squeeze=False)
    places = np.arange(len(names))[::-1]
    for panel, task in zip(axes[0], tasks, strict=True):
        for place, name in zip(places, names, strict=True):
            cell = cells[name].get(task)
            if cell is None:
                continue
            low, high = cell.interval
            panel.plot([100 * low, 100 * high], [place, place], color=ACCENT, lw=2.5, alpha=0.55)
            panel.plot(100 * cell.value, place, "|", color=ACCENT, ms=11, mew=2)
            panel.plot(100 * np.asarray(cell.seeds), np.full(len(cell.seeds), place), "o", color=INK, ms=2.6)
        panel.set_title("mean of tasks" if task == MEAN else task.split("/")[-1], fontsize=9)
        panel.set_xlabel("percent")
        panel.grid(axis="x", color=PALE, lw=0.5)
    axes[0][0].set_yticks(places, names)
    figure.suptitle(title, fontsize=9)
    _save(figure, path)


def curves(lines: Mapping[str, Sequence[tuple[float, Cell]]], x_label: str, y_label: str, path: Path) -> None:
    """Draw a line a method through its points; the band runs from the lowest to the highest seed.

    Args:
        lines: Method -> points in rising order: where on the axis, and the cell there.
        x_label: Of the axis.
        y_label: Of the other.
        path: Where the picture goes.
    """
    figure, axes = _figure(5.8, 3.8)
    for name, points in lines.items():
        places = [place for place, _ in points]
        seeds = [100 * np.asarray(cell.seeds) for _, cell in points]
        low, high = [s.min() for s in seeds], [s.max() for s in seeds]
        (line,) = axes.plot(places, [100 * cell.value for _, cell in points], "o-", ms=4, lw=1.5, label=name)
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.14, lw=0)
        axes.vlines(places, low, high, color=line.get_color(), alpha=0.4, lw=1)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", color=PALE, lw=0.5)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    _save(figure, path)


def overlap(names: Sequence[str], shared: Float[np.ndarray, "m m"], path: Path) -> None:
    """Draw how much keep lists share: the Jaccard index of each pair, as percent."""
    size = 0.34 * len(names)
    figure, axes = _figure(size + 0.075 * max(map(len, names)) + 0.8, size + 0.7)
    axes.imshow(shared, cmap="GnBu", vmin=0, vmax=1)
    for i, row in enumerate(shared):
        for j, share in enumerate(row):
            ink = "white" if share > 0.6 else INK
            axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=ink)
    numbers = range(len(names))
    axes.set_yticks(numbers, [f"{name}  {n + 1}" for n, name in enumerate(names)], fontsize=7)
    axes.set_xticks(numbers, [str(n + 1) for n in numbers], fontsize=7)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _save(figure, path)
