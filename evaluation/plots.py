"""Figures from arrays: each function draws one and writes it as PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from evaluation.comparison import MEAN, Cell

INK, PALE, ACCENT = "#1f2933", "#cbd2d9", "#0b7285"


def _figure(width: float, height: float, columns: int = 1, **settings: Any) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "text.color": INK,
            "axes.labelcolor": INK,
        }
    )
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
    title: str,
) -> None:
    """Draw d_intra against d_inter, a disc a cluster: colour is complexity, area is size."""
    figure, axes = _figure(6.4, 4.6)
    order = np.argsort(-sizes)  # small discs on top
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
        title=title,
    )
    _save(figure, path)


def sizes_before_after(
    before: Int[np.ndarray, " k"], after: dict[str, Int[np.ndarray, " k"]], path: Path
) -> None:
    """Draw cluster sizes, largest first, and what each method keeps of them."""
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
    rows: Sequence[
        tuple[str, Sequence[tuple[Image.Image, str]], Sequence[tuple[Image.Image, str]]]
    ],
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


def accuracy_by_arm(
    cells: dict[str, dict[str, Cell]], tasks: Sequence[str], path: Path, title: str
) -> None:
    """Draw each arm's value on each task: bars are 95 % intervals over test pictures, dots are seeds."""
    names = list(cells)
    figure, axes = _figure(
        2.9 * len(tasks), 0.34 * len(names) + 1.4, len(tasks), sharey=True, squeeze=False
    )
    places = np.arange(len(names))[::-1]
    for panel, task in zip(axes[0], tasks, strict=True):
        for place, name in zip(places, names, strict=True):
            cell = cells[name].get(task)
            if cell is None:
                continue
            low, high = cell.interval
            panel.plot([100 * low, 100 * high], [place, place], color=ACCENT, lw=2.5, alpha=0.55)
            panel.plot(100 * cell.value, place, "|", color=ACCENT, ms=11, mew=2)
            panel.plot(
                100 * np.asarray(cell.seeds),
                np.full(len(cell.seeds), place),
                "o",
                color=INK,
                ms=2.6,
            )
        panel.set_title("mean of tasks" if task == MEAN else task.split("/")[-1], fontsize=9)
        panel.set_xlabel("percent")
        panel.grid(axis="x", color=PALE, lw=0.5)
    axes[0][0].set_yticks(places, names)
    figure.suptitle(title, fontsize=9)
    _save(figure, path)
