"""CLIP score: how well a caption fits its image."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dbp.data.embeddings import Embeddings
from dbp.data.missing import save_missing
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.errors import ConfigError
from dbp.stage import Stage
from dbp.work import Work

BLOCK = 65_536


@dataclass(frozen=True)
class ClipScore(Stage):
    """Cosine of image and caption embeddings, in [-1, 1]; missing where either has no vector."""

    name: ClassVar[str] = "score"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("pool", "image", "text")
    makes: ClassVar[type] = Scores

    modality: ClassVar[str] = "joint"

    def run(self, work: Work, pool: Pool, image: Embeddings, text: Embeddings) -> dict[str, Any]:
        if image.width != text.width and len(image.rows) and len(text.rows):
            raise ConfigError(
                f"encoder.score gives image vectors of {image.width} numbers and text vectors of "
                f"{text.width}, so they have no cosine. Take both from one model."
            )
        values = np.full(pool.num_rows, np.nan)
        rows = np.intersect1d(image.rows, text.rows)
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            values[block] = np.einsum(
                "nd,nd->n",
                image.unit(block).astype(np.float64),
                text.unit(block).astype(np.float64),
            )
        Scores(values).save(work.folder)
        save_missing(work.folder, np.arange(pool.num_rows), image, text)
        return {"rows": len(rows), "without score": int(pool.num_rows - len(rows))}
