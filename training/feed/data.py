"""From rows of the pool to batches: only kept rows are read, at any place, in any order.

A map-style dataset answers whole slices, so that a batch is read in few calls, assembled once, in the worker, in
memory that the training process sees without a copy. Pictures leave as uint8 (a quarter of the bytes of float32)
and are normalised on the device, tokens as integers. With `cache`, pictures at training size and tokens stay in
shared memory after the first epoch: about 3 KiB a pair at 32 px, 150 KiB at 224 px, so it is for small pools.
"""

import logging
import math
import multiprocessing
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8, UInt64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dbp.data.caption_text import caption_from
from dbp.data.images import Undecodable
from dbp.data.pool import HASHES, Pool, What
from dbp.errors import ConfigError, PoolError
from training.feed.augmentation import Augmentation
from training.feed.captions import MixedCaptions
from training.feed.order import Batches, Slice, draws
from training.feed.subset import Subset
from training.resume.workers import Loader

log = logging.getLogger("dbp")

MOST_SUBSTITUTES = 100  # rows in a row that may fail to decode before the pool counts as broken
NEAR = 65_536  # bytes between two members that are read along: cheaper than another call
AHEAD = 4 << 30  # bytes of batches that all workers together prepare ahead, where they may choose


@dataclass(eq=False)
class Pairs(Dataset):
    """Batches of pictures and tokens of a subset.

    A picture that cannot be decoded is replaced, with its caption, by the next kept row that can:
    positions never shift, and the substitute does not depend on order, rank or worker.

    Raises:
        ConfigError: A cache is asked for, and no picture is fitted twice in the same way.
    """

    subset: Subset
    augmentation: Augmentation
    size: int  # side of the training picture, in pixels
    tokenizer: Any  # from texts to `Int[Tensor, "b l"]`
    seed: int
    cache: bool = False
    captions: MixedCaptions | None = None  # refined captions mixed in; the pool's own when not given

    def __post_init__(self) -> None:
        cache, size, captions = self.cache, self.size, self.captions
        if cache and self.augmentation.is_fit_random:
            raise ConfigError(
                f"train.cache=true: {type(self.augmentation).__name__} cuts each picture anew, so there "
                "is nothing to keep. Set train.cache=false, or another train.augmentation."
            )
        if cache and captions is not None and not captions.rule.is_fixed:
            raise ConfigError(
                f"train.cache=true: with {captions.rule.draws} a row's caption is another one in "
                "each epoch, so there is nothing to keep. Set train.cache=false, or another rule or pick."
            )
        pool, kept = self.subset.pool, self.subset.rows
        kinds: tuple[What, ...] = ("image",) if pool.has_texts else ("image", "caption")
        # 16 bytes a kept row, shared by workers: a shard may be overwritten in place while a run reads it.
        self.hashes: dict[What, np.ndarray] = {kind: pool.hash_words(HASHES[kind], kept)[:, 0] for kind in kinds}
        # Compiled here, if it must be, and not by each worker.
        import training.feed.decoding  # noqa: F401

        if cache:  # shared, so that workers fill one cache
            m, length = len(self.subset), int(self.tokenizer(["a"]).shape[1])
            self.pictures = torch.zeros((m, 3, size, size), dtype=torch.uint8).share_memory_()
            self.tokens = torch.zeros((m, length), dtype=torch.int32).share_memory_()
            self.source = torch.full((m,), -1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, taken: Slice) -> dict[str, Tensor]:
        """The pairs of a slice.

        Returns:
            `images: UInt8[b 3 s s]`, `tokens: Int64[b l]`, `rows: Int64[b]`, the rows of the pool that the pictures
            come from, and `undecodable: Int64[u]`, the rows for which others stand in.
        """
        keys = taken.named(self.subset.keys)
        numbers = draws(self.seed, taken.epochs, keys, self.augmentation.num_draws)
        read = self._cached if self.cache else self._read
        pictures, tokens, sources = read(taken, numbers, keys)
        moved = self.augmentation.move(pictures.numpy(), numbers)
        if moved.ctypes.data != pictures.data_ptr():
            pictures = torch.from_numpy(moved)
        rows, failed = (self.subset.rows[part] for part in (sources, taken.indices[sources != taken.indices]))
        seen = {"images": pictures, "tokens": tokens}
        return {**seen, "rows": torch.from_numpy(rows), "undecodable": torch.from_numpy(failed)}

    def _read(
        self, taken: Slice, numbers: np.ndarray, keys: UInt64[np.ndarray, " b"]
    ) -> tuple[UInt8[Tensor, "b 3 s s"], Tensor, Int64[np.ndarray, " b"]]:
        subset, indices = self.subset, taken.indices
        pictures = room(len(indices), 3, self.size, self.size)
        squares, sources = pictures.numpy(), np.empty_like(indices)
        read = read_pairs(subset.pool, subset.rows[indices])
        for kind, hashes in self.hashes.items():
            found = read.pictures if kind == "image" else read.captions
            subset.pool.check(kind, subset.rows[indices], found, hashes[indices])
        for at, index in enumerate(indices):
            squares[at], sources[at] = self._picture(int(index), numbers[at], read.pictures[at])
        if self.captions is not None:
            captions = self.captions.captions(subset.rows[sources], taken.epochs, keys)
        else:
            captions = read.captions
            for at in np.flatnonzero(sources != indices):
                captions[at] = subset.pool.captions(subset.rows[sources[at : at + 1]], verify=False)[0]
        return pictures, self.tokenizer(captions).long(), sources

    def _cached(
        self, taken: Slice, numbers: np.ndarray, keys: UInt64[np.ndarray, " b"]
    ) -> tuple[UInt8[Tensor, "b 3 s s"], Tensor, Int64[np.ndarray, " b"]]:
        indices, source = taken.indices, self.source.numpy()
        missing = np.unique(indices[source[indices] < 0])
        if len(missing):
            nothing = np.zeros((len(missing), 0))  # neither fitting nor the caption draws
            new = Slice(taken.step, np.zeros_like(missing), missing)
            self.pictures[missing], tokens, sources = self._read(new, nothing, self.subset.keys[missing])
            self.tokens[missing] = tokens.int()
            source[missing] = sources  # last: it says that the others are there
        return self.pictures[indices], self.tokens[indices].long(), source[indices]

    def _picture(self, index: int, numbers: np.ndarray, content: bytes) -> tuple[UInt8[np.ndarray, "3 s s"], int]:
        """The fitted image of a kept sample, and the sample that it came from."""
        pool, tries = self.subset.pool, min(MOST_SUBSTITUTES, len(self.subset))
        for offset in range(tries):
            source = (index + offset) % len(self.subset)
            try:
                if offset:
                    content = pool.image_bytes(int(self.subset.rows[source]))
                return self.augmentation.fit(content, self.size, numbers, pool.max_pixels, pool.background), source
            except Undecodable as problem:
                log.debug("row %d cannot be decoded: %s", self.subset.rows[source], problem)
        row = int(self.subset.rows[index])
        raise PoolError(
            f"none of {tries:,} kept pictures from row {row:,} (uid {pool.uids(np.array([row]))[0]!r}) on can be "
            "decoded. Embed the pool, which records what fails, or check the shards."
        )


class Read(NamedTuple):
    """What lies in the shards for some rows: files of pictures, captions, and bytes read for them."""

    pictures: list[bytes]
    captions: list[str]
    num_bytes: int


def read_pairs(pool: Pool, rows: Int64[np.ndarray, " b"]) -> Read:
    """Pictures and captions of rows, in their order, read in the order of the shards.

    Members of one shard that lie within 64 KiB of each other come in one call: mostly a picture and
    its caption, or neighbours in a small pool.

    Raises:
        PoolError: A shard is gone, or shorter than when it was indexed.
    """
    kinds = ("image",) if pool.has_texts else ("image", "caption")
    columns = pool.columns
    shards = np.tile(columns["shard"][rows], len(kinds))
    starts = np.concatenate([columns[f"{kind}_offset"][rows] for kind in kinds])
    lengths = np.concatenate([columns[f"{kind}_bytes"][rows] for kind in kinds])
    found: list[bytes] = [b""] * len(starts)
    num_bytes = 0

    def take(run: list[int]) -> int:
        first, end = int(starts[run[0]]), max(int(starts[at] + lengths[at]) for at in run)
        content = os.pread(pool.handle(int(shards[run[0]])), end - first, first)
        if len(content) < end - first:
            for at in run:  # the pool knows how to say what is missing
                (pool.image_bytes if at < len(rows) else pool.caption)(int(rows[at % len(rows)]))
        for at in run:
            found[at] = content[int(starts[at]) - first :][: int(lengths[at])]
        return len(content)

    run: list[int] = []
    end = 0
    for at in np.lexsort((starts, shards)).tolist():
        if run and (shards[at] != shards[run[0]] or starts[at] > end + NEAR):
            num_bytes += take(run)
            run, end = [], 0
        run.append(at)
        end = max(end, int(starts[at] + lengths[at]))
    num_bytes += take(run)
    if pool.has_texts:
        return Read(found, pool.captions(rows), num_bytes)
    texts = [caption_from(content, pool.caption_field) for content in found[len(rows) :]]
    return Read(found[: len(rows)], texts, num_bytes)


def side(size: Any) -> int:
    """The side of the square images that a network sees, in pixels, from what its config says of their size."""
    return size if isinstance(size, int) else int(size[0])


def room(*shape: int) -> UInt8[Tensor, "..."]:
    """Memory for a batch; in a worker it is shared, so that handing it over copies nothing."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)  # type: ignore[arg-type]


def make_loader(
    pairs: Any, batches: Batches, num_workers: int, pin_memory: bool = False, prefetch: int | None = None
) -> DataLoader:
    """torch's loader over whole slices: the dataset assembles the batch, in the worker.

    The order of batches is that of `batches`, whoever makes them. Workers are forked where the
    system can, and so share the keys, rows and offsets of the pool with the training process.

    Args:
        pairs: `Pairs`, or what chooses among them.
        num_workers: Processes that read and decode; 0 for none.
        prefetch: Batches that each worker prepares ahead; none for up to four, as many as take
            4 GiB in all, and at least one. They lie in shared memory.
    """
    batch_bytes = batches.share * 3 * pairs.size**2
    fits = AHEAD // max(1, batch_bytes * num_workers)
    can_fork = "fork" in multiprocessing.get_all_start_methods() and os.uname().sysname == "Linux"
    return Loader(
        pairs,
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=(prefetch or int(min(max(fits, 1), 4))) if num_workers else None,
        multiprocessing_context="fork" if num_workers and can_fork else None,
    )
