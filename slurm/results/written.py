"""What a sweep's captioner wrote of a glyphs pool, whose true captions are known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dbp.captioning.refine import Refine
from dbp.data.captions import Captions
from dbp.data.pool import Pool
from dbp.engine.store import Store
from evaluation.checks.captioner import repairs, script_quality
from slurm.plan import Point


def written_report(
    points: Sequence[Point], store: Store, pool: Pool, truth: pa.Table
) -> tuple[dict[str, Any], list[str]]:
    """How often the written captions of the first arm that has some name the true glyph and its script.

    All points are of one glyphs pool; `truth` is its `truth.parquet`, in row order.
    """
    for point in points:
        node = point.nodes["train"].inputs.get("refined")
        if node is None or not isinstance(node.stage, Refine) or store.entry(node) is None:
            continue
        captions: Captions = store.get(node)
        if captions.pool_digest != pool.digest:
            continue
        rows = np.arange(pool.num_rows)
        written = captions.of(rows)
        found: dict[str, Any] = repairs(written, pool.captions(rows), truth)
        has = [row for row, text in enumerate(written) if text is not None]
        found["script"] = script_quality([written[row] for row in has], truth["character"].take(has).to_pylist())
        script = found["script"]
        lines = [
            f"{point.label}: written captions of {captions.num_refined:,} rows name the script of "
            f"{script['right']:.1%} of {script['pictures']:,} pictures (always the most frequent: "
            f"{script['chance']:.1%}), and the glyph of {found['sound captions named']:.1%}",
            f"  of {found['swapped']:,} swapped captions {found['name repaired']:.1%} are repaired to the true "
            f"name, {found['swapped caption repeated']:.1%} are repeated; the script of "
            f"{found['script wrong before']:,} is wrong, and {found['script repaired']:.1%} of these are repaired",
        ]
        return found, lines
    return {}, []
