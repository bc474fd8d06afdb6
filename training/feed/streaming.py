"""Training from shards that lie elsewhere, exactly as from a disk: shards come in keyed windows.

Each epoch deals all shards of the pool, in a keyed order, into windows of a few; within a window samples stand in
their keyed order. So only a window, and the next one on its way, must be on disk, and everything else is as with
local shards: the order is a pure function of seed, epoch and uid; each kept sample comes once an epoch; neither
ranks nor workers nor a resume change anything; what is pruned is never decoded. Two arms meet shared samples in the
same relative order, since windows are dealt from the pool and not from what is kept.

What it costs: samples of a batch come from a few shards, so batches are less mixed than with local
shards, which is why `window_shards` is part of the key. Each epoch fetches every shard that holds a
kept sample whole: 1 / keep fraction bytes for each byte used, unless all shards fit in the cache.
"""

import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64

from dbp.config import require
from dbp.data.pool import Pool
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, PoolError
from training.account.horizon import Horizon
from training.feed.order import SHARDS, Batches, Order, Slice, mix, stream
from training.feed.shard_cache import NoRoom, ShardCache, least_bytes, what_is_wrong

log = logging.getLogger("dbp")

TAR_END = 10_240  # most bytes behind the last member of a shard, by the usual blocking
Span = tuple[int, int]  # the first and the last window, counted on through all epochs


@dataclass(frozen=True)
class Streaming:
    """How shards come to this machine.

    Args:
        window_shards: Shards whose samples are mixed with each other; at least 2 windows must fit
            in the cache, and 3 let the next one come while the last is read. Changes the order.
        cache_gigabytes: Bound of the cache (10^9 bytes).
        folder: Of the cache, on a local disk, shared by the ranks of a machine; null for one below
            the system's folder for temporary files.
        num_fetchers: Shards that come at the same time, for each rank.
        tries: How often a transfer is begun before the run stops.
    """

    window_shards: int
    cache_gigabytes: float = runtime()
    folder: str | None = runtime(None)
    num_fetchers: int = runtime(4)
    tries: int = runtime(4)

    def __post_init__(self) -> None:
        require(self.cache_gigabytes > 0, "cache_gigabytes", self.cache_gigabytes, "above 0")
        for name in ("window_shards", "num_fetchers", "tries"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")

    def open(self, pool: Pool, rows: Int[np.ndarray, " m"]) -> "StreamedPool":
        """A pool whose shards are fetched when they are read; those without a kept row never are.

        Raises:
            ConfigError: Two windows do not fit in the cache.
        """
        sizes = least_bytes(pool)
        used = np.sort(sizes[np.unique(pool.column("shard")[rows])])[::-1] + TAR_END
        most = int(self.cache_gigabytes * 1e9)
        if (needed := int(used[: 2 * self.window_shards].sum())) > most:
            raise ConfigError(
                f"streaming.cache_gigabytes={self.cache_gigabytes:g} cannot hold two windows "
                f"of streaming.window_shards={self.window_shards}, up to {needed / 1e9:.3g} "
                "GB. Raise the first, or lower the second."
            )
        home = Path(tempfile.gettempdir()) / "dbp-shards" if self.folder is None else self.folder
        folder, check = Path(home) / pool.digest[:16], partial(what_is_wrong, pool)
        cache = ShardCache(folder, pool.shards, sizes, most, self.tries, check=check)
        log.info(
            f"streaming {len(used):,} shards, {2 * self.window_shards} at a time: order, resume and samples are "
            f"exact; samples mix within {self.window_shards} shards only, and a pass fetches "
            f"{used.sum() / 1e9:.3g} GB unless all fit in the cache"
        )
        about = pool.digest, pool.caption_field, pool.max_pixels, pool.background
        return StreamedPool(pool.index, pool.shards, *about, cache=cache)

    def windows(self, pool: Pool, rows: Int[np.ndarray, " m"], seed: int) -> "Windows":
        """The windows of kept rows, for `Order`."""
        shard_of = pool.column("shard")[rows].astype(np.int32)
        return Windows(shard_of, len(pool.shards), self.window_shards, seed)


@dataclass(frozen=True)
class StreamedPool(Pool):
    """A pool that reads its shards from a cache. A shard that is not there is fetched."""

    cache: ShardCache = field(kw_only=True, repr=False, compare=False)

    def handle(self, shard: int) -> int:
        process = os.getpid()
        if self._handles.get(-1) != process or shard not in self._handles:
            # One at a time: an open shard takes room on the disk, although the cache has let it go.
            for number in [n for n in self._handles if n >= 0]:
                os.close(self._handles.pop(number))
            self._handles[-1] = process
            for _ in range(100):  # others may make room of it before it is opened
                with suppress(FileNotFoundError):
                    self._handles[shard] = os.open(self.fetched(shard), os.O_RDONLY)
                    break
        return self._handles[shard]

    def fetched(self, shard: int) -> Path:
        """Where a shard lies, once it is there.

        Raises:
            PoolError: It cannot be fetched, or has no room.
        """
        try:
            return self.cache.fetch(shard)
        except NoRoom:
            raise PoolError(
                f"shard {self.shards[shard]} has no room in {self.cache.folder}: "
                f"streaming.cache_gigabytes={self.cache.most_bytes / 1e9:g} is taken by "
                "shards that are being read. Raise it, or lower streaming.window_shards."
            ) from None


class Windows:
    """Which window of an epoch each kept sample stands in: the shards in keyed order, dealt out.

    Args:
        num_shards: Of the pool, kept samples or not: what is kept must not change the windows.
    """

    def __init__(self, shard_of: Int32[np.ndarray, " m"], num_shards: int, window_shards: int, seed: int) -> None:
        self.shard_of, self.num_shards = shard_of, num_shards
        self.window_shards, self.seed = window_shards, seed
        self.num_windows = -(-num_shards // window_shards)
        self.is_used = np.bincount(shard_of, minlength=num_shards) > 0
        self._recent: dict[int, np.ndarray] = {}

    def __call__(self, epoch: int) -> Int32[np.ndarray, " m"]:
        """The window of each kept sample in an epoch."""
        return self.of_shards(epoch)[self.shard_of]

    def of_shards(self, epoch: int) -> Int32[np.ndarray, " s"]:
        """The window of each shard in an epoch."""
        if epoch in self._recent:
            return self._recent[epoch]
        word = stream(self.seed, np.array([epoch], np.int64), SHARDS)
        order = np.argsort(mix(mix(np.arange(self.num_shards, dtype=np.uint64)) ^ word))
        window = np.empty(self.num_shards, np.int32)
        window[order] = np.arange(self.num_shards) // self.window_shards
        self._recent = {e: w for e, w in self._recent.items() if abs(e - epoch) == 1}
        self._recent[epoch] = window
        return window

    def members(self, first: int, last: int) -> set[int]:
        """The shards with kept samples of the windows of a span."""
        found: set[int] = set()
        for epoch, window in (divmod(number, self.num_windows) for number in range(first, last + 1)):
            found.update(np.flatnonzero((self.of_shards(epoch) == window) & self.is_used).tolist())
        return found

    def span(self, epochs: Int64[np.ndarray, " b"], indices: Int64[np.ndarray, " b"]) -> Span:
        """The first and the last window that samples stand in."""
        found = epochs * self.num_windows
        for epoch in np.unique(epochs).tolist():
            found[epochs == epoch] += self.of_shards(epoch)[self.shard_of[indices[epochs == epoch]]]
        return int(found.min()), int(found.max())


class StreamedBatches(Batches):
    """The batches of a run, each handed out when its shards are here; the next ones then come.

    A shard may go when no batch that a worker may still be making needs its window.

    Args:
        share: Start step, rank, number of ranks and so on, as in `Batches`.
        in_flight: Batches that the loader may have asked for and not yet handed on: workers
            times prefetch. Too small a number costs transfers, and nothing else.
    """

    def __init__(
        self, order: Order, horizon: Horizon, *share: Any, pool: StreamedPool, num_fetchers: int, in_flight: int
    ) -> None:
        super().__init__(order, horizon, *share)
        assert isinstance(order.windows, Windows), "an order in windows"
        self.windows, self.pool = order.windows, pool
        self.num_fetchers, self.in_flight = num_fetchers, in_flight

    def __iter__(self) -> Iterator[Slice]:
        cache = self.pool.cache
        recent: deque[Span] = deque(maxlen=self.in_flight + 1)
        before: tuple[Span, Span] | None = None
        (epoch,) = self.order.epochs_of(np.array([self.horizon.samples_read - 1])).tolist()
        last = (epoch + 1) * self.windows.num_windows - 1
        fetchers = ThreadPoolExecutor(self.num_fetchers, "fetch-shard")
        try:
            for step in range(self.start_step, self.horizon.steps):
                taken = self.slice(step)
                now = self.windows.span(taken.epochs, taken.indices)
                recent.append(now)
                in_flight = min(first for first, _ in recent), now[1]
                if (now, in_flight) != before:
                    self._arrive(fetchers, now, in_flight, last)
                    before = now, in_flight
                yield taken
        finally:
            fetchers.shutdown(cancel_futures=True)
            cache.leave()

    def _arrive(self, fetchers: ThreadPoolExecutor, now: Span, in_flight: Span, last: int) -> None:
        """Wait for the shards of a batch; keep those of batches in flight, begin to fetch the next.

        Raises:
            PoolError: A shard cannot be fetched, or those of this batch alone have no room.
        """
        cache, members, ahead = self.pool.cache, self.windows.members, min(now[1] + 1, last)
        needed, kept = members(*now), members(*in_flight)
        coming = members(ahead, ahead) - kept
        if cache.least_bytes[sorted(needed | kept | coming)].sum() > cache.most_bytes:
            coming = set()  # it must not take the room of what is needed now
        try:
            cache.want(needed | kept | coming)
            for arrived in [fetchers.submit(cache.fetch, shard, 0.0) for shard in sorted(needed)]:
                arrived.result()
        except NoRoom:
            # A worker that still needs one of the others fetches it again: slow, but right.
            cache.want(needed)
            for shard in sorted(needed):
                self.pool.fetched(shard)
        for shard in sorted(coming):  # what fails now is tried again, and reported, when it is needed
            fetchers.submit(cache.fetch, shard, 0.0)
