"""Of several captions of a row, the one that is nearest to its image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dbp.captioning.texts import SEVERAL, WITHOUT, ReadTexts
from dbp.data.captions import Captions, write_captions
from dbp.data.embeddings import Embeddings
from dbp.data.pool import Pool
from dbp.data.vectors import in_blocks
from dbp.encoders.embed import Embed, numbers_of
from dbp.engine.parts import Parted
from dbp.engine.stage import Node, Offered, runtime
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError
from dbp.exact.products import widened

ROWS = 512  # whose texts are compared at once
NO_VECTOR = "several captions and no vector of the image or of any, the first is taken"


@dataclass(frozen=True)
class BestText(Parted):
    """Keep of each row's captions the one of the highest cosine to its image, by encoder.score.

    Decided exactly on the stored vectors; of equal ones the first is taken, and where the image has no vector.

    Args:
        read: What reads the captions. What it makes enters the key as an input.
    """

    name: ClassVar[str] = "best_captions"
    needs: ClassVar[tuple[str, ...]] = ("pool", "texts", "image", "vectors")
    makes: ClassVar[type] = Captions

    read: ReadTexts = runtime()

    def upstream(self, offers: Offered) -> Mapping[str, Node]:
        """The captions, and their vectors.

        Raises:
            ConfigError: The encoder computes no vectors.
        """
        text = offers["text"]
        assert text is not None
        embed = text.stage
        assert isinstance(embed, Embed)
        if embed.encoder.reads:
            raise ConfigError(
                f"caption.pick=best embeds captions with encoder.score, and {type(embed.encoder).__name__} reads "
                "its vectors and computes none. Name a network for encoder.score, or set caption.pick=first, "
                "random or in_turn."
            )
        texts = offers.bind(self.read)
        return {"texts": texts, "vectors": embed.bind(pool=offers["pool"], texts=texts)}

    def parts(self, image: Embeddings, **inputs: Any) -> list[Part]:
        """One for each part of the images' embeddings."""
        return [Part(f"part-{number:07d}", number) for number in range(len(image.parts))]

    def make(  # type: ignore[override]
        self, part: Part, folder: Path, pool: Pool, texts: Captions, image: Embeddings, vectors: Embeddings
    ) -> dict[str, Any]:
        from dbp.exact.kernels import paired

        rows = image.part_rows(part.number)
        rows = rows[texts.places(rows)[1] > 1]
        best = np.full(len(rows), -1, np.int64)
        for start, own in in_blocks(rows, ROWS):
            first, counts = texts.places(own)
            numbers, owner = numbers_of(first, counts), np.repeat(np.arange(len(own)), counts)
            there = vectors.has(numbers)
            numbers, owner = numbers[there], owner[there]
            cosine = np.empty(len(numbers))
            paired(widened(image.gather(own)[owner]).numpy(), widened(vectors.gather(numbers)).numpy(), cosine)
            cosine /= vectors.norms(numbers)  # the image's length is the same for all texts of a row
            order = np.lexsort((numbers, -cosine, owner))
            ahead = order[np.flatnonzero(np.diff(owner[order], prepend=-1))]
            best[start + owner[ahead]] = numbers[ahead] - first[owner[ahead]]
        np.save(folder / "rows.npy", rows[best >= 0])
        np.save(folder / "best.npy", best[best >= 0])
        return {"rows": int(np.count_nonzero(best >= 0))}

    def finish(  # type: ignore[override]
        self,
        work: Work,
        counts: Mapping[str, dict[str, Any]],
        pool: Pool,
        texts: Captions,
        image: Embeddings,
        vectors: Embeddings,
    ) -> dict[str, Any]:
        best = np.zeros(pool.num_rows, np.int32)
        for name in counts:
            best[np.load(work.shared / name / "rows.npy")] = np.load(work.shared / name / "best.npy")

        def chosen() -> Iterator[str | None]:
            for _, rows in in_blocks(np.arange(pool.num_rows), 1 << 12):
                yield from texts.of(rows, best[rows])

        found = write_captions(work.folder, pool.digest, chosen())
        compared = sum(one["rows"] for one in counts.values())
        about = {NO_VECTOR: texts.num_several - compared}
        return {
            "rows": found.num_refined,
            WITHOUT: pool.num_rows - found.num_refined,
            SEVERAL: texts.num_several,
            "not the first": int(np.count_nonzero(best)),
            **{what: count for what, count in about.items() if count},
        }
