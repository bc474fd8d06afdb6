"""The stage that embeds a pool, a part for each shard, resumable after each."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int64
from PIL import ImageOps

from dbp.data.caption_text import caption_from
from dbp.data.captions import Captions
from dbp.data.embeddings import Embeddings, save_part
from dbp.data.images import Undecodable
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.encoders.base import Encoder, Tower
from dbp.engine.parts import Parted
from dbp.engine.paths import is_remote
from dbp.engine.stage import runtime
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError, PoolError
from dbp.formats.tars import image_format, samples
from dbp.pools.index import part_name


@dataclass(frozen=True)
class Embed(Parted):
    """Encode the images or the captions of all valid rows, or of the `rows` that it is bound to.

    Given texts (`dbp.captioning.texts`), those of valid rows that have several are encoded in place of captions;
    "rows" of the embeddings are then the numbers of texts.

    Args:
        encoder: The network.
        side: Which of its towers.
        rows_per_part: Fewest rows of a part; parts begin and end with shards.
        mirrored: Encode each image mirrored, so that text in it cannot be read.
    """

    name: ClassVar[str] = "embed"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("pool",)
    takes: ClassVar[tuple[str, ...]] = ("texts", "rows")
    makes: ClassVar[type] = Embeddings
    keeps_parts: ClassVar[bool] = True

    encoder: Encoder
    side: Literal["image", "text"]
    rows_per_part: int = runtime(32_768)
    mirrored: bool = False

    def parts(self, pool: Pool, **more: Any) -> list[Part]:
        """Runs of shards with at least `rows_per_part` rows: tens of megabytes of vectors each."""
        return parts_of(pool, self.rows_per_part)

    def make(  # type: ignore[override]
        self, part: Part, folder: Path, pool: Pool, texts: Captions | None = None, rows: KeepList | None = None
    ) -> dict[str, Any]:
        starts = pool.index.starts
        stop = end_of(part, self.parts(pool), pool)
        is_kept = None if rows is None else rows.mask
        done: list[np.ndarray] = [np.zeros(0, np.int64)]
        vectors: list[np.ndarray] = []
        failed: dict[int, str] = {}
        for shard in range(part.number, stop):
            span = slice(starts[shard], starts[shard + 1])
            wanted = pool.is_valid[span] if is_kept is None else pool.is_valid[span] & is_kept[span]
            valid = np.flatnonzero(wanted) + span.start
            if texts is not None:
                first, counts = texts.places(valid)
                valid = numbers_of(first[counts > 1], counts[counts > 1])
                contents = zip(valid.tolist(), texts.at(valid), strict=True)
                valid, found, broken = self._encode(_tower(self.encoder), pool, contents)
                failed |= broken
            elif self.encoder.reads:
                assert not self.mirrored, "vectors that are read have no mirrored images"
                found = np.asarray(self.encoder.read_part(self.side, pool, shard, valid))
                if (reason := self.encoder.lacks) is not None:
                    absent = np.isnan(found).all(axis=1)
                    failed |= dict.fromkeys(valid[absent].tolist(), reason)
                    valid, found = valid[~absent], found[~absent]
            else:
                contents = contents_of(pool, shard, valid, self.side)
                valid, found, broken = self._encode(_tower(self.encoder), pool, contents)
                failed |= broken
            done.append(valid)
            vectors.append(found)
        filled = [found for found in vectors if len(found)] or vectors[:1]
        return save_part(folder, np.concatenate(done), np.concatenate(filled), failed)

    def finish(  # type: ignore[override]
        self, work: Work, counts: Mapping[str, dict[str, Any]], pool: Pool, **more: Any
    ) -> dict[str, Any]:
        totals: Counter[str] = Counter()
        for found in counts.values():
            totals.update(found)
        _LOADED.clear()
        return {"rows": totals.pop("rows", 0), **totals}

    def _encode(
        self, tower: Tower, pool: Pool, contents: Iterable[tuple[int, bytes | str]]
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

        for row, content in contents:
            if isinstance(content, str):
                item: Any = content
            elif self.side == "image":
                try:
                    picture = pool.decode(content)
                    item = tower.preprocess(ImageOps.mirror(picture) if self.mirrored else picture)
                except Undecodable as problem:
                    failed[row] = str(problem)
                    continue
            else:
                item = caption_from(content, pool.caption_field)
            waiting.append((row, item))
            if len(waiting) == batch_size:
                flush()
        flush()
        width = vectors[0].shape[1] if vectors else 0
        stacked = np.concatenate(vectors) if vectors else np.zeros((0, width), np.float32)
        return np.array(done, np.int64), stacked, failed


_LOADED: list[tuple[Encoder, Tower]] = []  # the network that this process holds


def _tower(encoder: Encoder) -> Tower:
    if not _LOADED or _LOADED[0][0] != encoder:
        _LOADED[:] = [(encoder, encoder.load())]
    return _LOADED[0][1]


def numbers_of(first: Int64[np.ndarray, " m"], counts: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " t"]:
    """The numbers from each first on, one row after another."""
    return np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))


def parts_of(pool: Pool, rows_per_part: int) -> list[Part]:
    """Runs of shards with at least so many rows, named and numbered by their first shard."""
    starts = pool.index.starts
    return [
        Part(part_name(first), first, float(starts[last + 1] - starts[first]))
        for first, last in _runs(starts[1:], rows_per_part)
    ]


def end_of(part: Part, parts: list[Part], pool: Pool) -> int:
    """The shard behind the last one of a part."""
    firsts = [part.number for part in parts] + [len(pool.index.starts) - 1]
    return firsts[firsts.index(part.number) + 1]


def _runs(ends: np.ndarray, fewest: int) -> list[tuple[int, int]]:
    """First and last shard of each run of shards that holds at least so many rows."""
    found, first, start = [], 0, 0
    for shard, end in enumerate(ends.tolist()):
        if end - start >= fewest or shard == len(ends) - 1:
            found.append((first, shard))
            first, start = shard + 1, end
    return found


def _batch(items: list[Any], side: str) -> Any:
    if side == "text":
        return items
    import torch

    return torch.stack(items)


def contents_of(pool: Pool, shard: int, rows: np.ndarray, side: str) -> Iterator[tuple[int, bytes | str]]:
    """The bytes of rows of one shard: read at their offsets, or streamed where that cannot be."""
    if side == "text" and pool.has_texts:
        yield from zip(rows.tolist(), pool.captions(rows), strict=True)
        return
    if not pool.shards:
        raise ConfigError(
            "this pool has no pictures: it is metadata alone. Choose an encoder whose vectors are read, such as "
            "encoder=datacomp_l14, or give the tars with pool.shards."
        )
    if not (shard < len(pool.shards) and is_remote(pool.shards[shard])):
        for row in rows:
            yield int(row), pool._read(int(row), "image" if side == "image" else "caption")
        return
    if len(rows) == 0:
        return
    start = int(pool.index.starts[shard])
    needed = set(rows.tolist())
    # What was readable was decided by the index; damage behind the last row does not matter here.
    stream = samples(pool.shards[shard], lambda message: None)
    for row, sample in enumerate(stream, start):
        if row not in needed:
            continue
        wanted = image_format(sample.members) if side == "image" else pool.caption_field.partition(":")[0]
        member = sample.members.get(wanted)
        if member is None or sample.key != pool.column("key", np.array([row]))[0]:
            break
        needed.remove(row)
        yield row, member.content
    if needed:
        key = pool.column("key", np.array([min(needed)]))[0]
        raise PoolError(
            f"shard {pool.shards[shard]} does not give the {side} of {key!r} as it "
            "did when it was indexed. Restore the shard, or run again with a fresh paths.store."
        )
