"""CLIP score: how well a caption fits its image."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dbp.data.embeddings import Embeddings
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.data.vectors import Vectors, in_blocks
from dbp.engine.parts import Parted
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError
from dbp.exact.products import BLOCK, widened


@dataclass(frozen=True)
class ClipScore(Parted):
    """Cosine of image and caption embeddings, in [-1, 1]; missing where either has no vector."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("pool", "image", "text")
    makes: ClassVar[type] = Scores
    label: ClassVar[str] = "CLIP score"

    def parts(self, pool: Pool, image: Embeddings, text: Embeddings) -> list[Part]:
        """One for each part of the images' embeddings."""
        if image.width != text.width and image.width and text.width:
            raise ConfigError(
                f"encoder.score gives image vectors of {image.width} numbers and text vectors of "
                f"{text.width}, so they have no cosine. Take both from one model."
            )
        return [Part(f"part-{number:07d}", number) for number in range(len(image.parts))]

    def make(  # type: ignore[override]
        self, part: Part, folder: Path, pool: Pool, image: Embeddings, text: Embeddings
    ) -> dict[str, Any]:
        from dbp.exact.kernels import paired

        rows = Vectors.of(image, text).part_rows(part.number)
        cosine = np.empty(len(rows))
        for start, own in in_blocks(rows, BLOCK):
            span = slice(start, start + len(own))
            a, b = (widened(side.gather(own)).numpy() for side in (image, text))
            paired(a, b, cosine[span])
            cosine[span] /= image.norms(own) * text.norms(own)
        np.save(folder / "rows.npy", rows)
        np.save(folder / "score.npy", np.clip(cosine, -1, 1).astype(np.float32))
        return {"rows": len(rows)}

    def finish(  # type: ignore[override]
        self, work: Work, counts: Mapping[str, dict[str, Any]], pool: Pool, image: Embeddings, text: Embeddings
    ) -> dict[str, Any]:
        values = np.full(pool.num_rows, np.nan, np.float32)
        for name in counts:
            values[np.load(work.shared / name / "rows.npy")] = np.load(work.shared / name / "score.npy")
        Scores(values, Vectors.of(image, text).missing, self.label).save(work.folder)
        scored = int(np.count_nonzero(~np.isnan(values)))
        return {"rows": scored, "without score": pool.num_rows - scored}
