"""The stage that embeds a pool, a part for each shard, resumable after each."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from dbp.data.embeddings import Embeddings, save_part
from dbp.data.images import Undecodable, decode_rgb
from dbp.data.index import part_name
from dbp.data.pool import Pool, caption_from
from dbp.data.tars import SAMPLE_FORMATS, image_of, samples
from dbp.encoders.base import Encoder, Tower
from dbp.encoders.precomputed import Precomputed
from dbp.errors import ConfigError, PoolError
from dbp.paths import is_remote
from dbp.progress import progress
from dbp.stage import Stage
from dbp.work import Work


@dataclass(frozen=True)
class Embed(Stage):
    """Encode the images or the captions of all valid rows.

    Args:
        encoder: The network.
        side: Which of its towers.
    """

    name: ClassVar[str] = "embed"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    makes: ClassVar[type] = Embeddings

    encoder: Encoder
    side: Literal["image", "text"]

    def run(self, work: Work, pool: Pool) -> dict[str, Any]:
        tower: Tower | None = None
        shards = pool.column("shard")
        totals: dict[str, int] = {}
        with progress(f"embed {self.side}s", int(pool.is_valid.sum()), self.side + "s") as bar:
            for shard in range(int(shards[-1]) + 1):
                rows = np.flatnonzero((shards == shard) & pool.is_valid)

                def make(
                    beside: Path, rows: np.ndarray = rows, shard: int = shard
                ) -> dict[str, Any]:
                    nonlocal tower
                    if isinstance(self.encoder, Precomputed):
                        vectors = self.encoder.read(self.side, pool.num_rows)[rows]
                        return save_part(beside, rows, np.asarray(vectors), {})
                    tower = tower or self.encoder.load()
                    done, vectors, failed = self._encode(tower, pool, shard, rows)
                    return save_part(beside, done, vectors, failed)

                for reason, count in work.part(part_name(shard), make).items():
                    totals[reason] = totals.get(reason, 0) + count
                bar.advance(len(rows))
        return totals

    def _encode(
        self, tower: Tower, pool: Pool, shard: int, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        batch_size: int = self.encoder.batch_size  # type: ignore[attr-defined]
        encode = tower.encode_images if self.side == "image" else tower.encode_texts
        if encode is None:
            raise ConfigError(
                f"encoder {type(self.encoder).__name__} has no {self.side} tower. Choose an "
                "encoder of open_clip for text and joint modality, and for scoring."
            )
        done: list[int] = []
        vectors: list[np.ndarray] = []
        failed: dict[int, str] = {}
        waiting: list[tuple[int, Any]] = []

        def flush() -> None:
            if waiting:
                done.extend(row for row, _ in waiting)
                vectors.append(encode(_batch([item for _, item in waiting], self.side)))
                waiting.clear()

        for row, content in _contents(pool, shard, rows, self.side):
            if self.side == "image":
                try:
                    item = tower.preprocess(decode_rgb(content, pool.max_pixels))
                except Undecodable as problem:
                    failed[row] = str(problem)
                    continue
            else:
                item = caption_from(content, pool.caption_field) or ""
            waiting.append((row, item))
            if len(waiting) == batch_size:
                flush()
        flush()
        width = vectors[0].shape[1] if vectors else 0
        stacked = np.concatenate(vectors) if vectors else np.zeros((0, width), np.float32)
        return np.array(done, np.int64), stacked, failed


def _batch(items: list[Any], side: str) -> Any:
    if side == "text":
        return items
    import torch

    return torch.stack(items)


def _contents(pool: Pool, shard: int, rows: np.ndarray, side: str) -> Iterator[tuple[int, bytes]]:
    """The bytes of rows of one shard: read at their offsets, or streamed where that cannot be."""
    if not is_remote(pool.shards[shard]):
        for row in rows:
            yield int(row), pool._read(int(row), "image" if side == "image" else "caption")
        return
    if len(rows) == 0:
        return
    start = int(np.flatnonzero(pool.column("shard") == shard)[0])
    keys = pool.table["key"]
    needed = set(rows.tolist())
    # What was readable was decided by the index; damage behind the last row does not matter here.
    stream = samples(pool.shards[shard], SAMPLE_FORMATS.__contains__, lambda message: None)
    for row, sample in enumerate(stream, start):
        if row not in needed:
            continue
        if side == "image":
            _, member = image_of(sample)
        else:
            member = sample.members.get(pool.caption_field.partition(":")[0])
        if member is None or sample.key != keys[row].as_py():
            break
        needed.remove(row)
        yield row, member.content
    if needed:
        raise PoolError(
            f"shard {pool.shards[shard]} does not give the {side} of {keys[min(needed)].as_py()!r} as it "
            "did when it was indexed. Restore the shard, or run again with a fresh paths.store."
        )
