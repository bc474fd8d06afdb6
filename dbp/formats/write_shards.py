"""Write the kept samples as webdataset tars of equal size.

    dbp export keep=KEY format=webdataset out=FOLDER [shard_size=10000] [seed=0] [shuffle=true]

Samples are copied as byte ranges with their original members: nothing is decoded, renamed or packed
anew. It costs one read and one write of what is kept, and pays from the second epoch on; a loader that
filters (`dbp/formats/contains.py`) reads the whole pool in every epoch.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt64

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.vectors import in_blocks
from dbp.engine.paths import is_remote
from dbp.engine.progress import progress
from dbp.errors import ConfigError, PoolError, WorldError
from dbp.exact.order import keyed_hash
from dbp.formats.range_copy import CONTENT, END_OF_TAR, LONGEST_KEY, Extents, TarPlan, can_name, locate, write_tar
from dbp.formats.shard_folder import alone_in, claim, finish, need_space, tar_name
from dbp.formats.shard_order import arrange
from dbp.formats.uid_pairs import UID_DTYPE, Texts, hashes_64, uids_to_pairs

REPEATED = "samples whose key repeats in their shard"
BLOCK = 1 << 16  # names at once
Done = TypeVar("Done")


@dataclass(frozen=True)
class Located:
    """The kept samples, tar by tar, and where their bytes lie."""

    rows: Int[np.ndarray, " m"]
    shard: Int[np.ndarray, " m"]
    uid_hashes: UInt64[np.ndarray, " m"]
    key_hashes: UInt64[np.ndarray, " m"]
    first_range: Int[np.ndarray, " m1"]  # of each sample, and the number of ranges
    starts: Int[np.ndarray, " r"]
    lengths: Int[np.ndarray, " r"]
    content: np.ndarray  # of each sample, as `dbp.formats.range_copy.CONTENT` says
    uids: np.ndarray | None  # DataComp's pairs, where all uids are 32 hexadecimal digits


def write_shards(
    pool: Pool,
    keep: KeepList,
    out: Path,
    shard_size: int = 10_000,
    seed: int = 0,
    shuffle: bool = True,
    workers: int = 1,
    verify: bool = True,
) -> dict[str, Any]:
    """Write the kept samples into `out` as `00000000.tar` and on, sizes differing by one at most.

    Beside the tars: `sizes.json` (samples of each, as open_clip reads it), `{:08d}_stats.json` and, where
    all uids are 32 hexadecimal digits, `sample_ids.npy`, both as DataComp writes them. A tar is written
    beside, checked, synced and renamed; run again, what is finished is not written again. Two samples
    with one key are never neighbours in a tar, since webdataset would take them for one; they keep
    their names. A row that the keep list takes several times is written as often, each copy at a place of its
    own and under a name of its own (`UID-0`, `UID-1`, …, as DataComp's resharder does). Memory: about 170 bytes
    per kept row and 4 per row of the pool; where rows repeat, 60 more per draw and 115 per row that does (measured
    with 6 million draws).

    Args:
        shard_size: The most samples in one tar.
        seed: Orders samples by a keyed hash of their uids, over the whole output.
        shuffle: False goes tar by tar, in each in the order of rows.
        workers: Processes; the tars are the same for any number.
        verify: Hash images and captions while they are copied and compare with the index (their other members
            have no hash); read the headers of each tar again: every sample of the plan once, in its place. False
            lets the kernel copy, unseen.

    Raises:
        ConfigError: A setting is out of range, the keep list is empty or of another pool, `out` holds
            something else, or one key fills more than half of a tar.
        PoolError: A source shard is remote, missing or not as it was indexed; finished tars are kept.
        WorldError: The disk is too small, or another process writes into `out`.
    """
    require(shard_size > 0, "shard_size", shard_size, "above 0")
    require(workers > 0, "workers", workers, "above 0")
    require(keep.num_kept > 0, "keep", keep.digest[:12], "a list that keeps a row")
    if keep.pool_digest != pool.digest:
        raise ConfigError(
            f"the keep list is of pool {keep.pool_digest[:12]}, and this one is {pool.digest[:12]}. "
            "Give the pool that it was made from."
        )
    if not pool.shards:
        raise ConfigError(
            "format=webdataset: this pool is metadata alone, without tars to copy from. Export "
            "format=datacomp, and filter downloaded tars while loading (docs/loaders.md)."
        )
    repeats = keep.repeats
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={str(out)!r} is a file. Give a folder for the shards.")
    samples = _locate_all(pool, keep, workers)
    entries = _entries(
        pool, samples, repeats if repeats is None else repeats[np.searchsorted(keep.rows, samples.rows)]
    )
    by = entries.copy
    if shuffle:  # the first copy stands where it would stand without repeats
        by = keyed_hash(samples.uid_hashes[entries.sample] + entries.copy.astype(np.uint64), seed)
    order, edges = arrange(by, entries.key_hashes, shard_size)
    assert np.array_equal(np.sort(order), np.arange(len(order))), "each entry once"
    about = {
        "keep": keep.digest,
        "pool": pool.digest,
        "samples": len(order),
        "shard_size": shard_size,
        "shuffle": shuffle,
        "seed": seed if shuffle else None,
        "bytes in the source shards": _digest(samples.starts, samples.lengths),
    }
    out.mkdir(exist_ok=True)
    with alone_in(out):
        claim(out, about)
        counts = _write_all(pool, samples, entries, out, order, edges, workers, verify)
        finish(out, np.diff(edges), None if samples.uids is None else samples.uids[entries.sample[order]])
    return counts


@dataclass(frozen=True)
class Entries:
    """What is written: each sample as often as the list takes it."""

    sample: Int[np.ndarray, " e"]
    copy: Int[np.ndarray, " e"]  # 0 for the first
    key_hashes: UInt64[np.ndarray, " e"]
    again: Int[np.ndarray, " a"]  # samples that are taken more than once, ascending
    stems: Texts  # of these: what stands before the number in the keys of their copies

    def names(self, some: Int[np.ndarray, " s"]) -> dict[int, str]:
        """By their places, the new keys of those of some entries whose sample is taken more than once."""
        sample = self.sample[some]
        places = np.searchsorted(self.again, sample)
        at = (
            np.flatnonzero(self.again[np.minimum(places, len(self.again) - 1)] == sample) if len(self.again) else []
        )
        stems = self.stems.take(pa.array(places[at])).to_pylist()
        copies = self.copy[some[at]].tolist()
        return {int(place): f"{stem}-{n}" for place, stem, n in zip(at, stems, copies, strict=True)}


def _entries(pool: Pool, samples: Located, times: Int[np.ndarray, " m"] | None) -> Entries:
    num = len(samples.rows)
    if times is None:
        return Entries(
            np.arange(num), np.zeros(num, np.int32), samples.key_hashes, np.zeros(0, int), pa.array([""])
        )
    sample = np.repeat(np.arange(num), times)
    copy = np.arange(len(sample), dtype=np.int64)
    copy -= np.repeat(np.cumsum(times) - times, times)
    again, stems = np.flatnonzero(times > 1), list[pa.Array]()
    for _, own in in_blocks(again, BLOCK):  # as Arrow texts, a third of Python's
        uids, keys = pool.uids(samples.rows[own]), pool.column("key", samples.rows[own]).tolist()
        either = [
            uid if can_name(uid) else key if len(key.encode()) <= LONGEST_KEY else f"row-{row}"
            for uid, key, row in zip(uids, keys, samples.rows[own].tolist(), strict=True)
        ]
        stems.append(pa.array(either, pa.large_string()))
    whole = pa.concat_arrays(stems) if stems else pa.array([], pa.large_string())
    entries = Entries(sample, copy.astype(np.int32), samples.key_hashes[sample], again, whole)
    for start in range(0, len(sample), BLOCK):
        found = entries.names(np.arange(start, min(start + BLOCK, len(sample))))
        entries.key_hashes[start + np.fromiter(found, np.int64)] = hashes_64(
            pa.array(found.values(), pa.large_string())
        )
    return entries


def _locate_all(pool: Pool, keep: KeepList, workers: int) -> Located:
    shard_of = pool.column("shard")[keep.rows]  # not ascending where metadata is joined with tars
    order = np.argsort(shard_of, kind="stable")
    rows = keep.rows[order]
    bounds = np.searchsorted(shard_of[order], np.arange(len(pool.shards) + 1))
    used = np.flatnonzero(np.diff(bounds))
    paths = [pool.shards[shard] for shard in used]
    if missing := [path for path in paths if not is_remote(path) and not Path(path).is_file()]:
        raise PoolError(
            f"{len(missing):,} of {len(paths):,} shards that hold kept samples are missing, the first being "
            f"{missing[0]}. Restore them, or correct pool.shards."
        )
    hashes, content = np.empty(len(rows), np.uint64), np.zeros(len(rows), CONTENT)
    # Where texts come from metadata, the caption's hash is theirs and not the tar's.
    kinds = {"image": "content_hash"} | ({} if pool.has_texts else {"caption": "caption_hash"})
    uids: np.ndarray | None = np.empty(len(rows), UID_DTYPE)

    def shards() -> Iterator[tuple[str, np.ndarray, np.ndarray, list[str]]]:
        nonlocal uids
        for shard in used:
            mine = slice(bounds[shard], bounds[shard + 1])
            here = rows[mine]
            hashes[mine] = pool.column("uid_hash", here)
            for kind, digest in kinds.items():
                content[f"{kind}_offset"][mine] = pool.column(f"{kind}_offset", here)
                content[f"{kind}_bytes"][mine] = pool.column(f"{kind}_bytes", here)
                content[f"{kind}_hash"][mine] = pool.hash_words(digest, here)[:, 0]
            try:
                if uids is not None:
                    uids[mine] = uids_to_pairs(pool.uids(here))
            except ConfigError:
                uids = None
            # A sample is found by its picture, or by its caption where it has none.
            what = np.where(pool.column("image_offset", here) > 0, 0, 1)
            offset, size = (
                np.choose(what, [pool.column(f"{part}_{of}", here) for part in ("image", "caption")])
                for of in ("offset", "bytes")
            )
            yield pool.shards[shard], offset, size, pool.column("key", here).tolist()

    found: list[Extents] = []
    with progress("find", len(used), "shards") as bar:
        for extents in _each(locate, shards(), workers):
            found.append(extents)
            bar.advance()
    num_ranges = np.concatenate([extents.num_ranges for extents in found])
    return Located(
        rows,
        shard_of[order],
        hashes,
        np.concatenate([extents.key_hashes for extents in found]),
        np.r_[0, np.cumsum(num_ranges)],
        np.concatenate([extents.starts for extents in found]),
        np.concatenate([extents.lengths for extents in found]),
        content,
        uids,
    )


def _write_all(
    pool: Pool,
    samples: Located,
    entries: Entries,
    out: Path,
    order: np.ndarray,
    edges: np.ndarray,
    workers: int,
    verify: bool,
) -> dict[str, Any]:
    num_shards = len(edges) - 1
    counts = {"samples": len(order), "shards": num_shards, "bytes": 0, "shards found finished": 0}
    counts[REPEATED] = 0

    def plans() -> Iterator[tuple[TarPlan]]:
        for number in range(num_shards):
            written = order[edges[number] : edges[number + 1]]
            mine = entries.sample[written]
            num = samples.first_range[mine + 1] - samples.first_range[mine]
            first = np.cumsum(num) - num
            ranges = np.repeat(samples.first_range[mine] - first, num) + np.arange(num.sum())
            used, shard = np.unique(np.repeat(samples.shard[mine], num), return_inverse=True)
            keys = entries.key_hashes[written]
            counts[REPEATED] += len(keys) - len(np.unique(keys))
            sources = [pool.shards[int(source)] for source in used]
            starts, lengths = samples.starts[ranges], samples.lengths[ranges]
            plan = (out / tar_name(number), sources, shard, starts, lengths, first, keys, entries.names(written))
            yield (TarPlan(*plan, samples.content[mine], pool.caption_field),)

    sizes = np.add.reduceat(samples.lengths, samples.first_range[:-1])
    sizes = np.add.reduceat(sizes[entries.sample[order]], edges[:-1]) + len(END_OF_TAR)
    need_space(out, sizes)
    counts["bytes"] = int(sizes.sum())
    with progress("write", num_shards, "shards") as bar:
        for is_new in _each(partial(write_tar, verify=verify), plans(), workers):
            counts["shards found finished"] += not is_new
            bar.advance()
    return counts


def _each(work: Callable[..., Done], tasks: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Done]:
    """What `work` makes of each task, in their order; only a few tasks are out at once."""
    if workers == 1:
        yield from starmap(work, tasks)
        return
    waiting: deque[Future[Done]] = deque()
    with ProcessPoolExecutor(workers, get_context("spawn")) as executor:
        try:
            for task in tasks:
                waiting.append(executor.submit(work, *task))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorldError(
                f"one of {workers} worker processes was killed, perhaps for memory. Lower workers and "
                "run again; finished shards are kept."
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _digest(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array, "<i8").data)
    return found.hexdigest()[:24]
