"""NormSim: how near an image lies to target images."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float64

from dbp.config import require
from dbp.data.embeddings import Embeddings
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.data.vectors import in_blocks
from dbp.device import pick_device
from dbp.engine.parts import Parted
from dbp.engine.stage import Node, Offered, runtime
from dbp.engine.work import Part, Work
from dbp.errors import DbpError
from dbp.exact.products import BLOCK, Assigner, side_by_side
from dbp.formats.target_vectors import Targets
from dbp.scoring.second_moment import Moment, TargetMoment, quadratic


@dataclass(frozen=True)
class NormSim(Parted):
    """The norm of an image's cosines to target vectors.

    With the unit vector x of the image and the targets t_1 to t_m,

        norm=2:    sqrt(mean_j <x, t_j>^2) = sqrt(xᵀ Σ x), which orders rows as the Variance Alignment Score does;
        norm=max:  max_j <x, t_j>.

    Equal bits for any order of rows or targets, parts, workers and threads. Cost: n d^2 operations, or 2 n m d.

    Args:
        norm: 2, or max (the infinity norm).
        target_name: What the targets are, with their split; it stands in the score's label and in tables.
        targets: `.npy`, `.npz`, or the folder of an artifact of embeddings; made by the pool's encoder.
        test_sets: Folders of an evaluation's kept vectors; targets that hold one of these sets are refused.

    Source: Wang et al. 2024 (arXiv 2405.19547), NormSim; arXiv 2402.02055, VAS.
    """

    name: ClassVar[str] = "score"
    needs: ClassVar[tuple[str, ...]] = ("pool", "image", "moment")
    makes: ClassVar[type] = Scores

    norm: Literal[2, "max"]
    target_name: str
    targets: str | None = runtime(None)
    test_sets: tuple[str, ...] = runtime(())
    threads: int = runtime(1)
    device: str = runtime("auto")

    def __post_init__(self) -> None:
        require(self.threads >= 1, "threads", self.threads, "at least 1")

    def identity(self) -> dict[str, Any]:
        return {"targets": self.targets and self.held().identity()}

    def held(self) -> Targets:
        """The targets.

        Raises:
            ConfigError: None are named, or what they are is not said.
        """
        require(bool(self.targets), "score.targets", self.targets, "a file of target vectors (.npy)")
        must = "what the targets are, with their split, such as 'ImageNet-1k train': results must carry it"
        require(bool(self.target_name.strip()), "score.target_name", self.target_name, must)
        return Targets(Path(str(self.targets)), "score.targets")

    def lacks(self, inputs: Mapping[str, Node]) -> list[DbpError | str]:
        """Targets that hold a test set, before anything is embedded."""
        try:
            self.accept({})
        except DbpError as error:
            return [error]
        return []

    def accept(self, counts: Mapping[str, Any]) -> None:
        """Refuse targets that hold a test set, of a score that is there, too: `test_sets` is not in its key."""
        if self.test_sets:
            self.held().refuse_test_sets(self.test_sets)

    def unneeded(self) -> set[str]:
        return {"moment"} if self.norm == "max" else set()

    def upstream(self, offers: Offered) -> dict[str, Node]:
        return {} if self.norm == "max" else {"moment": offers.bind(TargetMoment(self.targets))}

    def parts(self, pool: Pool, image: Embeddings, moment: Moment | None = None) -> list[Part]:
        """One for each part of the images' embeddings."""
        held = self.held()
        if image.width:
            held.require_like(image.width, image.parts)
        return [Part(f"part-{number:07d}", number) for number in range(len(image.parts))]

    def make(  # type: ignore[override]
        self, part: Part, folder: Path, pool: Pool, image: Embeddings, moment: Moment | None = None
    ) -> dict[str, Any]:
        rows, device = image.part_rows(part.number), pick_device(self.device)
        if moment is None:
            found = self.largest(image, rows, device)
        else:
            blocks = [image.gather(own) for _, own in in_blocks(rows, BLOCK)]
            squares = side_by_side(partial(quadratic, moment=moment.values, device=device), blocks, self.threads)
            found = np.sqrt(np.maximum(np.concatenate([np.zeros(0), *squares]), 0))  # a rounded Σ may give -1e-7
        np.save(folder / "rows.npy", rows)
        np.save(folder / "score.npy", found.astype(np.float32))
        return {"rows": len(rows)}

    def largest(self, image: Embeddings, rows: np.ndarray, device: str) -> Float64[np.ndarray, " n"]:
        """The largest cosine of each row to any target."""
        best = np.full(len(rows), -np.inf)
        blocks = list(in_blocks(rows, BLOCK))
        for chunk in self.held().chunks():

            def share(number: int, chunk: np.ndarray = chunk) -> None:
                with Assigner(chunk, device) as nearest:
                    for start, own in blocks[number :: self.threads]:
                        span = slice(start, start + len(own))
                        np.maximum(best[span], nearest(image.gather(own))[1], out=best[span])

            side_by_side(share, list(range(min(self.threads, len(blocks)))), self.threads)
        return np.clip(best / image.norms(rows), -1, 1)

    def finish(  # type: ignore[override]
        self,
        work: Work,
        counts: Mapping[str, dict[str, Any]],
        pool: Pool,
        image: Embeddings,
        moment: Moment | None = None,
    ) -> dict[str, Any]:
        values = np.full(pool.num_rows, np.nan, np.float32)
        for name in counts:
            values[np.load(work.shared / name / "rows.npy")] = np.load(work.shared / name / "score.npy")
        Scores(values, image.missing, f"NormSim-{self.norm} to {self.target_name}").save(work.folder)
        scored = sum(found["rows"] for found in counts.values())
        return {"rows": scored, "without score": pool.num_rows - scored, "targets": self.held().num_rows}
