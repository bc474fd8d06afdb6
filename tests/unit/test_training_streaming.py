"""Shards from a server: as exact as from a disk, within a bound, and broken transfers are named."""

import io
import logging
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dbp.data.keep_list import everything
from dbp.data.pool import Pool
from dbp.engine.stage import parameters
from dbp.engine.store import Store
from dbp.errors import ConfigError, PoolError
from dbp.pools.index import Index
from training.account.horizon import Horizon
from training.feed.augmentation import Shift
from training.feed.data import Pairs
from training.feed.mixture import MixedOrder
from training.feed.order import Batches, Order
from training.feed.shard_cache import NoRoom, ShardCache, _is_free, _locked, least_bytes, what_is_wrong
from training.feed.streaming import StreamedBatches, Streaming, Windows
from training.feed.subset import Subset

NUM_SHARDS, ROWS = 7, 12


def write_shard(path: Path, seed: int, first: int = 0) -> None:
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for row in range(first, first + ROWS):
            content = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(content, "png")
            for name, member in (("png", content.getvalue()), ("txt", f"text {row}".encode())):
                info = tarfile.TarInfo(f"{row:05d}.{name}")
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member))


class Server:
    """A web server of a folder that counts requests and breaks off as many as it is told."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *rest: Any) -> None:
                super().__init__(*rest, directory=str(folder))

            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                outer.asked[name] += 1
                if outer.broken[name] > 0:
                    outer.broken[name] -= 1
                    content = (folder / name).read_bytes()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[: len(content) // 2])
                else:
                    super().do_GET()

            def log_message(self, format: str, *rest: Any) -> None:  # noqa: A002
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bucket")
    for shard in range(NUM_SHARDS):
        write_shard(folder / f"{shard:05d}.tar", shard, shard * ROWS)
    found = Server(folder)
    yield found
    found.http.shutdown()


@pytest.fixture(scope="module")
def pools(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, Pool]:
    """The pool as the server has it, and the same shards on a disk."""
    home = tmp_path_factory.mktemp("pools")
    made = []
    for place in (server.address, None):
        folder = place or str(home / "local")
        if place is None:
            (home / "local").mkdir()
            for shard in range(NUM_SHARDS):
                write_shard(home / "local" / f"{shard:05d}.tar", shard, shard * ROWS)
        shards = [f"{folder}/{shard:05d}.tar" for shard in range(NUM_SHARDS)]
        index = Index(uid="key", caption="txt", max_pixels=10**8, shards=shards)
        made.append(Store(home / "store").get(index.bind(folder=None)))
    return made[0], made[1]


# Shard 3 holds no kept row; the others some each.
KEPT = np.array([row for row in range(NUM_SHARDS * ROWS) if row // ROWS != 3 and row % 5])


class Raw(Dataset):
    """Rows, files of pictures and captions of whole slices."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __getitem__(self, taken: Any) -> tuple[list[int], list[bytes], list[str]]:
        rows = KEPT[taken.indices]
        contents = [self.pool.image_bytes(row) for row in rows.tolist()]
        return rows.tolist(), contents, self.pool.captions(rows)


def shard_bytes(pool: Pool) -> int:
    return int(least_bytes(pool).max()) + 20 * 512  # a tar ends on a block of 20 records


def streamed(
    pool: Pool, folder: Path, shards: float = 4.5, window_shards: int = 2, **settings: Any
) -> tuple[Any, Windows]:
    gigabytes = shards * shard_bytes(pool) / 1e9
    streaming = Streaming(window_shards, gigabytes, str(folder), **settings)
    found = streaming.open(pool, KEPT)
    found.cache.pause = 0.01
    return found, streaming.windows(pool, KEPT, 0)


def num_bytes(cache: ShardCache) -> int:
    """Bytes of all shards in a cache and on their way; while they are counted none gets another name."""
    with _locked(cache.folder / ".lock"):
        return sum(size for _, size, _ in cache._files())


class Watcher:
    """The most bytes that ever lie in a folder."""

    def __init__(self, cache: ShardCache) -> None:
        self.cache, self.most, self.is_over = cache, 0, False
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        while not self.is_over:
            self.most = max(self.most, num_bytes(self.cache))
            time.sleep(0.001)

    def stop(self) -> int:
        self.is_over = True
        self.thread.join()
        return self.most


def epochs_of(pool: Any, windows: Windows, num_workers: int, **settings: Any) -> list[Any]:
    """The batches of two epochs and a half."""
    order, horizon = Order(pool.uid_hashes[KEPT], 0, windows), Horizon(len(KEPT), 4, 36)
    if settings:
        batches: Batches = StreamedBatches(order, horizon, pool=pool, num_fetchers=2, **settings)
    else:
        batches = Batches(order, horizon)
    loader = DataLoader(
        Raw(pool), batch_size=None, sampler=batches, num_workers=num_workers,
        prefetch_factor=1 if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
    )  # fmt: skip
    return list(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_streamed_run_has_the_batches_of_a_local_one_within_its_bound(
    server: Server, pools: tuple[Pool, Pool], tmp_path: Path, num_workers: int
) -> None:
    pool, windows = streamed(pools[0], tmp_path, 5.5)
    server.asked.clear()
    watcher = Watcher(pool.cache)
    try:
        found = epochs_of(pool, windows, num_workers, in_flight=num_workers)
    finally:
        most = watcher.stop()
    assert found == epochs_of(pools[1], windows, 0)
    rows = np.concatenate([batch[0] for batch in found])
    for epoch in range(2):
        seen = rows[epoch * len(KEPT) : (epoch + 1) * len(KEPT)]
        assert np.array_equal(np.sort(seen), KEPT)
    assert 0 < most <= pool.cache.most_bytes
    # Shard 3 never comes; the others at most once in each epoch that is begun.
    assert server.asked["00003.tar"] == 0
    assert len(server.asked) - ("00003.tar" in server.asked) == NUM_SHARDS - 1
    assert max(server.asked.values()) <= 3
    assert sum(server.asked.values()) > NUM_SHARDS
    assert not list(tmp_path.rglob("reader-*"))


def test_with_room_for_all_each_shard_comes_once_in_a_run_and_none_in_the_next(
    server: Server, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    pool, windows = streamed(pools[0], tmp_path, 20.0)
    server.asked.clear()
    epochs_of(pool, windows, 0, in_flight=0)
    assert sorted(server.asked.values()) == [1] * (NUM_SHARDS - 1)
    epochs_of(streamed(pools[0], tmp_path, 20.0)[0], windows, 0, in_flight=0)
    assert sum(server.asked.values()) == NUM_SHARDS - 1


def test_a_cache_too_small_for_what_is_in_flight_is_slow_and_still_right(
    server: Server, pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    pool, windows = streamed(pools[0], tmp_path, 5.2)
    server.asked.clear()
    watcher = Watcher(pool.cache)
    try:
        found = epochs_of(pool, windows, 1, in_flight=30)
    finally:
        most = watcher.stop()
    assert found == epochs_of(pools[1], windows, 0)
    assert most <= pool.cache.most_bytes


def test_a_process_forked_under_a_lock_does_not_keep_it(tmp_path: Path) -> None:
    # As a loader forks its workers while a thread of this process fetches.
    context = get_context("fork")
    with _locked(tmp_path / ".lock"):
        child = context.Process(target=time.sleep, args=(60,))
        child.start()
    try:
        with open(tmp_path / ".lock", "a") as handle:
            assert _is_free(handle)
    finally:
        child.kill()


def test_training_s_loader_reads_a_streamed_pool_as_a_local_one(pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    import open_clip

    pool, windows = streamed(pools[0], tmp_path)
    found = []
    for source in (pool, pools[1]):
        every = everything(source.digest, source.is_valid)
        keep = every.narrow("some", np.isin(every.rows, KEPT), "not chosen", "chosen")
        tokenizer = open_clip.SimpleTokenizer(context_length=8)
        pairs = Pairs(Subset.of(source, keep), Shift(1), 16, tokenizer, 0)
        order = Order(pairs.subset.keys, 0, windows)
        found.append([pairs[taken] for taken in Batches(order, Horizon(len(KEPT), 8, 3))])
    for one, same in zip(*found, strict=True):
        assert all(torch.equal(one[name], same[name]) for name in same)


def test_a_run_that_starts_at_a_step_reads_what_was_left(pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    pool, windows = streamed(pools[0], tmp_path)
    horizon = Horizon(len(KEPT), 8, 12)
    order = partial(Order, pool.uid_hashes[KEPT], 0, windows)
    whole = [
        [taken.indices.tolist() for taken in StreamedBatches(
            order(), horizon, start, pool=pool, num_fetchers=2, in_flight=0)]
        for start in (0, 7)
    ]  # fmt: skip
    assert whole[1] == whole[0][7:]


def test_every_epoch_deals_all_shards_into_windows_and_finishes_one_before_the_next(
    pools: tuple[Pool, Pool],
) -> None:
    pool = pools[1]
    windows = Streaming(3, 1.0).windows(pool, KEPT, 5)
    order = Order(pool.uid_hashes[KEPT], 5, windows)
    dealt = []
    for epoch in range(4):
        of_shards = windows.of_shards(epoch)
        assert np.bincount(of_shards).tolist() == [3, 3, 1]
        placed = windows(epoch)[order.epoch(epoch)]
        assert (np.diff(placed) >= 0).all()
        assert np.array_equal(np.sort(order.epoch(epoch)), np.arange(len(KEPT)))
        dealt.append(tuple(of_shards.tolist()))
        inside = order.epoch(epoch)[placed == 0]  # in the keyed order of all samples
        plain = Order(pool.uid_hashes[KEPT], 5).epoch(epoch)
        assert np.array_equal(inside, plain[np.isin(plain, inside)])
    assert len(set(dealt)) == 4
    numbers = [windows.members(number, number) for number in range(3, 6)]  # those of epoch 1
    assert sorted(shard for window in numbers for shard in window) == [0, 1, 2, 4, 5, 6]


def test_arms_meet_shared_samples_in_the_same_relative_order(pools: tuple[Pool, Pool]) -> None:
    pool, rng = pools[1], np.random.default_rng(0)
    one, other = (np.sort(rng.choice(84, 40, replace=False)) for _ in range(2))
    shared = np.intersect1d(one, other)
    for epoch in (0, 3):
        found = []
        for rows in (one, other):
            windows = Streaming(2, 1.0).windows(pool, rows, 1)
            seen = rows[Order(pool.uid_hashes[rows], 1, windows).epoch(epoch)]
            found.append(seen[np.isin(seen, shared)].tolist())
        assert found[0] == found[1]


def test_a_mixture_streams_in_the_same_windows(pools: tuple[Pool, Pool]) -> None:
    pool = pools[1]
    windows = Streaming(2, 1.0).windows(pool, KEPT, 0)
    keys = pool.uid_hashes[KEPT]
    ones = MixedOrder(keys, 0, np.ones(len(KEPT), np.float32), windows)
    assert np.array_equal(ones.epoch(1), Order(keys, 0, windows).epoch(1))
    twice = MixedOrder(keys, 0, np.full(len(KEPT), 2.0, np.float32), windows).epoch(1)
    assert (np.diff(windows(1)[twice]) >= 0).all()


def test_only_the_windows_enter_the_key() -> None:
    assert parameters(Streaming(8, 100.0, "/a", 2, 9)) == parameters(Streaming(8, 50.0))
    assert parameters(Streaming(8, 100.0)) != parameters(Streaming(9, 100.0))


def test_what_is_exact_and_what_is_less_mixed_is_said_at_the_start(
    pools: tuple[Pool, Pool], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dbp"):
        streamed(pools[0], tmp_path)
    assert "streaming 6 shards, 4 at a time: order, resume and samples are exact" in caplog.text
    assert "samples mix within 2 shards only" in caplog.text


def test_a_cache_that_cannot_hold_two_windows_is_refused(pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot hold two windows of streaming\.window_s"):
        streamed(pools[0], tmp_path, shards=2.0)
    with pytest.raises(ConfigError, match="window_shards=0: it must be 1 or more"):
        Streaming(0, 1.0)


def test_a_broken_transfer_is_tried_again(
    server: Server, pools: tuple[Pool, Pool], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool, _ = streamed(pools[0], tmp_path, tries=3)
    server.broken["00001.tar"] = 2
    assert pool.image_bytes(ROWS) == pools[1].image_bytes(ROWS)
    assert caplog.text.count("00001.tar: ") == 2
    assert "trying again" in caplog.text
    assert not list(tmp_path.rglob(".*.part"))


def test_a_transfer_that_stays_broken_is_named(server: Server, pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    pool, windows = streamed(pools[0], tmp_path, tries=2)
    server.broken["00001.tar"] = 100
    try:
        with pytest.raises(PoolError, match=r"00001\.tar cannot be fetched in 2 tries: .*Restore"):
            pool.caption(ROWS + 1)
        batches = StreamedBatches(
            Order(pool.uid_hashes[KEPT], 0, windows), Horizon(len(KEPT), 8, 12),
            pool=pool, num_fetchers=2, in_flight=0,
        )  # fmt: skip
        with pytest.raises(PoolError, match=r"00001\.tar cannot be fetched"):
            list(batches)
    finally:
        server.broken.clear()


def test_a_shard_that_was_written_anew_or_cut_is_named(pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    pool = replace(pools[1], shards=list(pools[1].shards))
    other = tmp_path / "other.tar"
    write_shard(other, 99, 2 * ROWS)
    assert what_is_wrong(pool, 2, Path(pools[1].shards[2])) is None
    for source, message in (
        (f"pipe:cat {other}", "is not the one that was indexed"),
        (f"pipe:head -c 9000 {pools[1].shards[2]}", "it ends after 9,000 bytes, and the index has"),
        (f"{tmp_path}/gone.tar", "No such file"),
        ("pipe:exit 3", "exit 3"),
    ):
        pool.shards[2] = source
        found, _ = streamed(pool, tmp_path / "cache", tries=1)
        with pytest.raises(PoolError, match=message):
            found.image_bytes(2 * ROWS)
    pool.shards[2] = f"pipe:cat {pools[1].shards[2]}"
    assert streamed(pool, tmp_path / "cache")[0].caption(2 * ROWS) == f"text {2 * ROWS}"


@pytest.fixture
def cache(pools: tuple[Pool, Pool], tmp_path: Path) -> ShardCache:
    """Room for two shards and a half."""
    sizes = least_bytes(pools[1])
    return ShardCache(tmp_path, pools[1].shards, sizes, int(2.5 * shard_bytes(pools[1])), 2, 0.01)


def lying(cache: ShardCache) -> list[int]:
    return sorted(int(path.stem) for path in cache.folder.glob("*.tar"))


def test_the_oldest_shard_goes_that_nobody_wants(cache: ShardCache) -> None:
    cache.want([0])
    for number in (0, 1, 2, 4):
        cache.fetch(number)
        time.sleep(0.01)
    assert lying(cache) == [0, 4]
    cache.want([4, 5])
    cache.fetch(5)
    assert lying(cache) == [4, 5]
    with pytest.raises(NoRoom):
        cache.fetch(6)
    assert lying(cache) == [4, 5]
    cache.leave()
    cache.fetch(6)
    assert lying(cache) == [5, 6]


def want_and_wait(cache: ShardCache, told: Any, leave: Any) -> None:
    cache.want([0, 1])
    for number in (0, 1):
        cache.fetch(number)
    (cache.folder / ".00000002.part").write_bytes(bytes(int(cache.least_bytes[2])))
    told.set()
    leave.wait(30)


def test_processes_share_the_folder_and_a_dead_one_wants_nothing(cache: ShardCache) -> None:
    context: Any = get_context("fork")
    told, leave = context.Event(), context.Event()
    other = context.Process(target=want_and_wait, args=(cache, told, leave))
    other.start()
    assert told.wait(30)
    with pytest.raises(NoRoom):
        cache.fetch(4, patience=0.0)
    other.kill()
    other.join()
    cache.want([4, 5])
    for number in (4, 5):  # what it wanted goes, and what it was fetching
        cache.fetch(number, patience=0.0)
    assert lying(cache) == [4, 5]
    assert len(list(cache.folder.glob("reader-*"))) == 1


def test_a_shard_that_many_ask_for_comes_once(server: Server, pools: tuple[Pool, Pool], tmp_path: Path) -> None:
    pool, _ = streamed(pools[0], tmp_path)
    server.asked.clear()
    threads = [threading.Thread(target=pool.cache.fetch, args=(5,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked["00005.tar"] == 1


def test_a_shard_larger_than_the_index_knows_still_keeps_within_the_bound(
    pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    long = tmp_path / "long.tar"
    long.write_bytes(Path(pools[1].shards[0]).read_bytes() + bytes(3 * shard_bytes(pools[1])))
    sizes = least_bytes(pools[1])
    shards = [str(long), f"pipe:cat {long}"]
    cache = ShardCache(tmp_path / "c", shards, sizes, int(2.5 * shard_bytes(pools[1])), 2, 0.01)
    for number in (0, 1):
        with pytest.raises(NoRoom):
            cache.fetch(number)
    assert num_bytes(cache) == 0


def test_reading_rows_of_other_windows_fetches_and_leaves_no_file_open(
    pools: tuple[Pool, Pool], tmp_path: Path
) -> None:
    pool, _ = streamed(pools[0], tmp_path)
    rows = np.arange(NUM_SHARDS * ROWS)[:: ROWS - 1]
    assert pool.captions(rows) == [f"text {row}" for row in rows]
    assert len([number for number in pool._handles if number >= 0]) == 1
    assert num_bytes(pool.cache) <= pool.cache.most_bytes
