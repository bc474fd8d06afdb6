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
from dbp.errors import PoolError
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
    train: Any = plan.points[0].nodes["train"].stage
    seen = next(arm.runs[0].facts["samples_seen"] for arm in arms if arm.runs)
    budget = f"{seen:,} samples seen" if train.budget == "samples" else f"FLOPs of {train.samples_seen:,} samples"
    title = f"{settings.name}: {budget} an arm. Bars: 95 % over test pictures; dots: seeds"
    plots.accuracy_by_arm(cells, sorted(tasks, key=lambda task: task == MEAN), title, out / "accuracy.png")
    for dense in plan.points:
        file = (store.folder(dense.nodes["select"]) or Path("missing")) / "clusters.parquet"
        if file.exists():
            break
    else:
        return
    names = ("d_intra", "d_inter", "size", "complexity")
    intra, inter, sizes, complexity = (pq.read_table(file)[name].to_numpy() for name in names)
    plots.clusters(intra, inter, sizes.astype(int), complexity, out / "clusters.png")
    clusters: Clusters = store.get(dense.nodes["cluster"])
    pool_key = store.key(dense.nodes["index"])  # rows of another pool are other samples
    first = {point.label: point for point in reversed(plan.points)}
    kept = {
        label: clusters.sizes_of(store.get(first[label].nodes["select"]).mask)
        for label in plan.labels
        if store.key(first[label].nodes["index"]) == pool_key and store.entry(first[label].nodes["select"])
    }
    plots.sizes_before_after(clusters.sizes, kept, out / "sizes.png")
    _draw_pictures(dense, store, clusters, complexity, out / "pictures.png")
    store.loaded.clear()


def _draw_pictures(point: Point, store: Store, clusters: Clusters, complexity: np.ndarray, path: Path) -> None:
    """Kept and pruned members of clusters from the least to the most complex, and of the duplicates."""
    pool: Pool = store.get(point.nodes["index"])
    keep: KeepList = store.get(point.nodes["select"])
    mask = keep.mask

    def noted(row: int) -> tuple[Image.Image, str]:
        return pool_image(pool, row), f"{clusters.distance_to_centroid[row]:.2f} {caption_start(pool, row, 22)}"

    chosen = np.argsort(np.where(np.isnan(complexity), np.inf, complexity))
    chosen = chosen[: int((~np.isnan(complexity)).sum())]
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(NUM_CLUSTERS_SHOWN, len(chosen))).astype(int)]
    lines = []
    for cluster in chosen:
        rows = np.flatnonzero(clusters.assignment == cluster)
        rows = rows[np.argsort(-clusters.distance_to_centroid[rows])]
        sides = [rows[mask[rows]], rows[~mask[rows]]]
        name = f"cluster {cluster}: complexity {complexity[cluster]:.3f}, {len(sides[0])} kept of {len(rows)}"
        lines.append((name, *([noted(int(row)) for row in side[:6]] for side in sides)))
    key = store.key(point.nodes["dedup"])
    assert key is not None, "what was trained on was curated"
    decisions = explained(store, key).decision_tables(np.arange(min(pool.num_rows, 5000)))
    gone = [d for d in next(decisions).to_pylist() if d["reason"] == "duplicate"][:6]
    if gone:
        lines.append(
            (
                f"dedup at {point.label}: each pruned picture beside the earlier row it repeats",
                [(pool_image(pool, d["related_row"]), caption_start(pool, d["related_row"], 26)) for d in gone],
                [
                    (pool_image(pool, d["row"]), f"{d['value']:.4f} {caption_start(pool, d['row'], 20)}")
                    for d in gone
                ],
            )
        )
    plots.pictures(lines, path)


def pool_image(pool: Pool, row: Any) -> Image.Image:
    """A row's image, or a grey square where it cannot be decoded or its shard is gone."""
    try:
        return pool.image(int(row))
    except (Undecodable, PoolError):
        return Image.new("RGB", (32, 32), "grey")


def caption_start(pool: Pool, row: Any, letters: int) -> str:
    """The first letters of a row's caption; none where its shard is gone."""
    try:
        return pool.caption(int(row))[:letters]
    except PoolError:
        return ""
