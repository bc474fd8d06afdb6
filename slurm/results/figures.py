"""The figures of a sweep, gathered from its artifacts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from dbp.data.clusters import Clusters
from dbp.data.images import Undecodable
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.decisions import explained
from dbp.engine.store import Store
from evaluation.report import plots
from evaluation.statistics.comparison import MEAN, Arm, Cell
from slurm.plan import Plan, Point
from slurm.settings import SweepSettings

NUM_CLUSTERS_SHOWN = 6


def draw_all(
    plan: Plan,
    store: Store,
    arms: Sequence[Arm],
    cells: dict[str, dict[str, Cell]],
    settings: SweepSettings,
    out: Path,
) -> None:
    """Write accuracy.png and, where there are clusters, clusters.png, sizes.png and pictures.png."""
    tasks = list(dict.fromkeys(task for by_task in cells.values() for task in by_task))
    facts = next(arm.runs[0].facts for arm in arms if arm.runs)
    plots.accuracy_by_arm(
        cells,
        sorted(tasks, key=lambda task: task == MEAN),
        out / "accuracy.png",
        f"{settings.name}: {facts['samples_seen']:,} samples seen an arm. "
        "Bars: 95 % over test pictures; dots: seeds",
    )
    dense = next((p for p in plan.points if (_folder(store, p) / "clusters.parquet").exists()), None)
    if dense is None:
        return
    table = pq.read_table(_folder(store, dense) / "clusters.parquet")
    arrays = {name: table[name].to_numpy() for name in table.column_names}
    filled = arrays["size"] > 0
    plots.clusters(
        arrays["d_intra"][filled],
        arrays["d_inter"][filled],
        arrays["size"][filled].astype(int),
        arrays["complexity"][filled],
        out / "clusters.png",
        f"{int(filled.sum())} clusters of {int(arrays['size'].sum()):,} rows",
    )
    clusters: Clusters = store.get(dense.nodes["cluster"])
    shown = {label: next(p for p in plan.points if p.label == label) for label in plan.labels}
    pool_key = store.key(dense.nodes["index"])  # rows of another pool are other samples
    kept = {
        label: _kept_sizes(clusters, store.get(p.nodes["select"]))
        for label, p in shown.items()
        if store.key(p.nodes["index"]) == pool_key and store.entry(p.nodes["select"])
    }
    plots.sizes_before_after(clusters.sizes, dict(list(kept.items())[:8]), out / "sizes.png")
    _draw_pictures(dense, store, clusters, arrays["complexity"], out / "pictures.png")
    store.loaded.clear()


def _folder(store: Store, point: Point) -> Path:
    return store.folder(point.nodes["select"]) or Path("missing")


def _kept_sizes(clusters: Clusters, keep: KeepList) -> np.ndarray:
    return clusters.sizes_of(keep.mask)


def _draw_pictures(point: Point, store: Store, clusters: Clusters, complexity: np.ndarray, path: Path) -> None:
    """Kept and pruned members of clusters from the least to the most complex, and of the duplicates."""
    pool: Pool = store.get(point.nodes["index"])
    keep: KeepList = store.get(point.nodes["select"])
    mask = keep.mask
    chosen = np.argsort(np.where(np.isnan(complexity), np.inf, complexity))
    chosen = chosen[: int((~np.isnan(complexity)).sum())]
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(NUM_CLUSTERS_SHOWN, len(chosen))).astype(int)]
    lines = []
    for cluster in chosen:
        at = np.flatnonzero(clusters.assignment == cluster)
        rows, distance = at, clusters.distance_to_centroid[at]
        order = np.argsort(-distance)
        sides = [
            [
                (rows[i], f"{distance[i]:.2f} {pool.caption(int(rows[i]))[:22]}")
                for i in order
                if mask[rows[i]] == wanted
            ]
            for wanted in (True, False)
        ]
        name = f"cluster {cluster}: complexity {complexity[cluster]:.3f}, {len(sides[0])} kept of {len(at)}"
        lines.append((name, *([(pool_image(pool, row), note) for row, note in side[:6]] for side in sides)))
    key = store.key(point.nodes["dedup"])
    assert key is not None, "what was trained on was curated"
    decisions = explained(store, key).decision_tables(np.arange(min(pool.num_rows, 5000)))
    gone = [d for d in next(decisions).to_pylist() if d["reason"] == "duplicate"][:6]
    if gone:
        lines.append(
            (
                f"dedup at {point.label}: each pruned picture beside the earlier row it repeats",
                [(pool_image(pool, d["related_row"]), pool.caption(d["related_row"])[:26]) for d in gone],
                [(pool_image(pool, d["row"]), f"{d['value']:.4f} {pool.caption(d['row'])[:20]}") for d in gone],
            )
        )
    plots.pictures(lines, path)


def pool_image(pool: Pool, row: Any) -> Image.Image:
    """A row's picture, or a grey square where it cannot be decoded."""
    try:
        return pool.image(int(row))
    except Undecodable:
        return Image.new("RGB", (32, 32), "grey")
