"""NormSim-D: the rows that are left are their own targets, while the farthest go step by step."""

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float64

from dbp.config import require
from dbp.data.embeddings import Embeddings
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.data.vectors import Vectors, in_blocks
from dbp.device import pick_device
from dbp.engine.progress import progress
from dbp.engine.stage import Stage, runtime
from dbp.engine.work import Work
from dbp.exact.order import first, score_keys
from dbp.exact.products import BLOCK
from dbp.offers import ReadsScore
from dbp.scoring.second_moment import add_outer, moment_of, quadratic

# A rounded Σ may give numbers slightly below 0 or above 1; the bounds keep the rows that are left above the others.
BELOW_1 = np.float32(0), np.nextafter(np.float32(1), np.float32(0))
ABOVE_0 = np.float32(2.0**-24), np.float32(1)


@dataclass(frozen=True)
class NormSimDynamic(ReadsScore, Stage):
    """NormSim-2 with the second moment of the rows that are left, which shrink to a fraction in equal steps.

    Each step drops ceil((n - target) / num_steps) rows of the lowest xᵀ Σ x (ties by uid hash), also from Σ.
    The score orders rows as they are dropped: a row that is left at the end has sqrt(xᵀ Σ x) with the last Σ, in
    (0, 1]; one that was dropped r steps before the end has its last sqrt(xᵀ Σ x) less r. So the rows of scores
    above 0 are those that are left, and a later step stands above an earlier one. Equal bits for any order of rows,
    parts and threads. Rows that are invalid or held out are in no moment and have no score. Cost: n d^2 operations
    a step. A step that is done survives a kill.

    Args:
        keep_fraction: Share of the rows at the start that is left at the end.
        num_steps: Of equal size.
        among: Start with the best such share of rows by a score; 1 for all. The others have no score.
        score: Name of that score, of `scores`; empty for the one of `score=`.

    Source: Wang et al. 2024 (arXiv 2405.19547), NormSim-D.
    """

    name: ClassVar[str] = "score"
    needs: ClassVar[tuple[str, ...]] = ("pool", "valid", "image", "scores")
    makes: ClassVar[type] = Scores

    keep_fraction: float
    num_steps: int
    among: float = 1.0
    score: str = runtime("")
    device: str = runtime("auto")

    def __post_init__(self) -> None:
        for name in ("keep_fraction", "among"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")
        require(self.num_steps >= 1, "num_steps", self.num_steps, "at least 1")

    def unneeded(self) -> set[str]:
        return {"scores"} if self.among == 1 else set()

    def run(
        self, work: Work, pool: Pool, valid: KeepList, image: Embeddings, scores: Scores | None = None
    ) -> dict[str, Any]:
        left = self.start(pool, valid, image, scores)
        n = int(np.count_nonzero(left))
        target = max(1, int(Decimal(str(self.keep_fraction)) * n))
        each = max(1, -(-(n - target) // self.num_steps))
        steps = -(-(n - target) // each)
        values, sums = np.full(pool.num_rows, np.nan, np.float32), None
        with progress("NormSim-D", steps + 1, "steps") as bar:
            for step in range(steps + 1 if n else 0):
                home = work.shared / f"step-{step:06d}"
                if work.counts(home.name) is None:
                    sums = outer_sums(image, left) if sums is None else sums
                    found = self.lowest(image, pool, left, sums, each if step < steps else n, target)
                    work.part(home.name, lambda folder, found=found: _save(folder, *found))
                rows, own = np.load(home / "rows.npy"), np.load(home / "score.npy")
                values[rows] = np.clip(own, *(BELOW_1 if step < steps else ABOVE_0)) - np.float32(steps - step)
                if step < steps:
                    left[rows] = False
                    if sums is not None:
                        for _, block in in_blocks(rows, BLOCK):
                            add_outer(sums, image.scattered(block), -1)
                bar.advance()
        work.kept[:] = []
        Scores(values, image.missing, "NormSim-D").save(work.folder)
        return {"rows": n, "without score": pool.num_rows - n, "left": min(target, n), "steps": steps}

    def start(
        self, pool: Pool, valid: KeepList, image: Embeddings, scores: Scores | None
    ) -> Bool[np.ndarray, " n"]:
        """The rows at the start."""
        there = Vectors.of(image).present(pool.num_rows) & valid.mask
        if scores is None:
            return there
        there &= ~np.isnan(scores.values)
        count = int(Decimal(str(self.among)) * int(np.count_nonzero(there)))
        return first(score_keys(scores, pool.uid_hashes), there, count)

    def lowest(
        self, image: Embeddings, pool: Pool, left: np.ndarray, sums: np.ndarray, count: int, target: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows that a step drops, or all that are left at the end, and their sqrt(xᵀ Σ x)."""
        num_left, device = int(np.count_nonzero(left)), pick_device(self.device)
        moment = moment_of(sums, num_left)
        found = np.full(pool.num_rows, np.nan, np.float32)
        for part in range(len(image.parts)):
            rows = image.part_rows(part)
            for _, own in in_blocks(rows[left[rows]], BLOCK):
                found[own] = np.sqrt(np.maximum(quadratic(image.gather(own), moment, device), 0))
        keys = score_keys(Scores(found, higher_is_better=False), pool.uid_hashes)
        rows = np.flatnonzero(first(keys, left, min(count, num_left - target) if num_left > target else num_left))
        return rows, found[rows]


def outer_sums(image: Embeddings, mask: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, "d d"]:
    """The sum of x xᵀ over the rows of a mask."""
    sums = np.zeros((image.width, image.width))
    for part in range(len(image.parts)):
        rows = image.part_rows(part)
        for _, own in in_blocks(rows[mask[rows]], BLOCK):
            add_outer(sums, image.gather(own))
    return sums


def _save(folder: Path, rows: np.ndarray, score: np.ndarray) -> dict[str, Any]:
    np.save(folder / "rows.npy", rows)
    np.save(folder / "score.npy", score)
    return {"rows": len(rows)}
