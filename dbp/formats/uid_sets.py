"""Set algebra of lists of 128-bit uids, sorted, in memory that does not grow with them; of other names by hash."""

import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, UInt8

from dbp.engine.disk import replacing
from dbp.engine.store import Store
from dbp.errors import ConfigError, WorldError
from dbp.formats.contains import repeats_in
from dbp.formats.exchange import kind_of, read_texts, read_uid_file, weights_beside, writing_uids
from dbp.formats.shared_names import shared_names
from dbp.formats.uid_pairs import (
    UID_DTYPE,
    Texts,
    bytes_to_pairs,
    digests,
    hex_bytes,
    match_pairs,
    order_pairs,
    pairs_to_texts,
    sort_pairs,
)
from dbp.lineage import open_keep_list, open_pool_of

OPERATIONS = ("union", "intersection", "difference")
CHUNK = 1 << 20  # uids of the longest list that are looked at together


def merged(lists: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, Int[np.ndarray, "u k"]]]:
    """Walk through sorted lists side by side: the uids that any holds, and how often each list does.

    Memory does not grow with the lists: a chunk holds about a million uids of the longest.
    """
    longest = max(lists, key=len)
    cuts = [longest[at].item() for at in range(CHUNK, len(longest), CHUNK)]
    starts = [0] * len(lists)
    for cut in [*cuts, None]:
        ends = [_before(pairs, cut) for pairs in lists]
        spans = zip(lists, starts, ends, strict=True)
        parts = [np.asarray(pairs[start:end]) for pairs, start, end in spans]
        starts = ends
        every = np.concatenate(parts)
        order = order_pairs(every)
        source = np.repeat(np.arange(len(lists)), [len(part) for part in parts])[order]
        every = every[order]
        is_new = np.ones(len(every), bool)
        is_new[1:] = every[1:] != every[:-1]
        group = np.cumsum(is_new) - 1
        uids = every[is_new]
        counts = np.bincount(group * len(lists) + source, minlength=len(uids) * len(lists))
        yield uids, counts.reshape(-1, len(lists))


def _before(pairs: np.ndarray, cut: tuple[int, int] | None) -> int:
    """How many sorted pairs stand before a cut."""
    if cut is None:
        return len(pairs)
    return bisect.bisect_left(range(len(pairs)), cut, key=lambda at: pairs[at].item())


def combined(lists: Sequence[np.ndarray], operation: str, keep_repeats: bool) -> Iterator[np.ndarray]:
    """The sorted uids of a union, intersection or difference, chunk by chunk."""
    for uids, counts in merged(lists):
        counts = counts if keep_repeats else np.minimum(counts, 1)
        if operation == "union":
            times = counts.max(axis=1)
        elif operation == "intersection":
            times = counts.min(axis=1)
        else:
            times = np.maximum(counts[:, 0] - counts[:, 1:].sum(axis=1), 0)
        yield np.repeat(uids, times)


@dataclass(frozen=True)
class Listed:
    """A list of samples: its name, its uids as sorted pairs, and its texts where it came as text."""

    label: str
    pairs: np.ndarray
    texts: Texts | None

    @property
    def num_repeats(self) -> int:
        """Uids that stand there already."""
        return repeats_in(Path(self.label), self.pairs["f0"], self.pairs["f1"])


def open_lists(store: Store, names: Sequence[str], counted: bool) -> tuple[list[Listed], bool]:
    """Open lists, and say whether all their names are 128-bit uids.

    Where some are other names, all are compared by a 128-bit hash of the name.

    Args:
        store: Holds the keep lists.
        names: Files, and keep lists as `keep:KEY`.
        counted: Whether it matters how often a list names a sample; else the weights of keep lists are not read.
    """
    found = [_open(store, name, counted) for name in names]
    spelt = [None if one.texts is None else hex_bytes(one.texts) for one in found]
    is_hex = all(spelling is None or spelling[1].all() for spelling in spelt)
    lists = []
    for one, spelling in zip(found, spelt, strict=True):
        if not is_hex:
            texts = pairs_to_texts(one.pairs) if one.texts is None else one.texts
            one = Listed(one.label, sort_pairs(bytes_to_pairs(_hashed(texts))), texts)
        elif spelling is not None:
            one = Listed(one.label, sort_pairs(bytes_to_pairs(spelling[0])), one.texts)
        lists.append(one)
    return lists, is_hex


def _open(store: Store, name: str, counted: bool) -> Listed:
    nothing = np.zeros(0, UID_DTYPE)
    if name.startswith("keep:"):
        entry, keep = open_keep_list(store, name.removeprefix("keep:"))
        pool = open_pool_of(store, entry)
        shared_names(pool, keep.mask).refuse(name)
        repeats = keep.repeats if counted else None
        rows = keep.rows if repeats is None else np.repeat(keep.rows, repeats)
        return Listed(name, nothing, pool.index.at("uid", rows))
    weights = weights_beside(name) if counted else None
    if weights is not None and (weights != 1).any():
        raise ConfigError(
            f"{name} has a column weight, such as {weights[weights != 1][0]:g}, which would be lost. Set "
            f"repeats=once to take each name once, or import the list (dbp import keep {name} select.repeats=keep) "
            "and name its key as keep:KEY."
        )
    if kind_of(name) in ("text", "parquet"):
        return Listed(name, nothing, read_texts(name))
    return Listed(name, read_uid_file(name, allow_repeats=True), None)


def _hashed(texts: Texts) -> UInt8[np.ndarray, "n 16"]:
    return np.frombuffer(digests(texts, 16), np.uint8).reshape(-1, 16)


def write_combined(
    store: Store, names: Sequence[str], operation: str, repeats: str, out: Path
) -> tuple[int, list[Listed]]:
    """Write a union, intersection or difference of lists; return the uids written, and the lists.

    Args:
        repeats: What a repeated uid means: `error`, `once`, or `keep` to count each.

    Raises:
        WorldError: A list repeats uids, and `repeats` is `error`.
        ConfigError: A list holds other names than uids, which `out` or `repeats` cannot have.
    """
    lists, is_hex = open_lists(store, names, counted=repeats != "once")
    for found in lists:
        if repeats == "error" and (count := found.num_repeats):
            raise WorldError(
                f"{found.label} repeats {count:,} uids, which means repeated samples in DataComp. Say "
                "repeats=keep to honour that, or repeats=once to take each once."
            )
    chunks = combined([found.pairs for found in lists], operation, repeats == "keep")
    if not is_hex:
        return _write_names(out, lists, chunks, repeats), lists
    total = 0
    with writing_uids(out) if out.suffix == ".npy" else _writing(out) as append:
        for chunk in chunks:
            append(chunk if out.suffix == ".npy" else pairs_to_texts(chunk))
            total += len(chunk)
    return total, lists


def _write_names(out: Path, lists: list[Listed], chunks: Iterator[np.ndarray], repeats: str) -> int:
    """Write names that are no 128-bit uids, in the order in which the lists first name them."""
    if out.suffix == ".npy" or repeats == "keep":
        what = f"out={str(out)!r}" if out.suffix == ".npy" else "repeats=keep"
        raise ConfigError(
            f"{what} is for uids of 32 hexadecimal digits, and a list holds other names. Write .txt or "
            ".parquet, with repeats=once."
        )
    kept = np.concatenate(list(chunks))
    high, low = np.ascontiguousarray(kept["f0"]), np.ascontiguousarray(kept["f1"])
    is_written = np.zeros(len(kept), bool)
    with _writing(out) as append:
        for found in lists:
            assert found.texts is not None, "lists of names have texts"
            for start in range(0, len(found.texts), CHUNK):
                block = found.texts.slice(start, CHUNK)
                place = match_pairs(high, low, _hashed(block))
                _, first = np.unique(place, return_index=True)
                new = np.sort(first[place[first] >= 0])
                new = new[~is_written[place[new]]]
                is_written[place[new]] = True
                append(block.take(pa.array(new)))
    return len(kept)


@contextmanager
def _writing(out: Path) -> Iterator[Callable[[Texts], None]]:
    """Write texts block by block, one a line or as the column `uid`; the file is there when it is whole."""
    schema = pa.schema([("uid", pa.large_string())])
    with replacing(out) as handle:
        if out.suffix == ".txt":
            yield lambda texts: handle.writelines(f"{text}\n".encode() for text in texts.to_pylist())
        else:
            with pq.ParquetWriter(handle, schema, compression="zstd") as writer:
                yield lambda texts: writer.write_table(pa.table([texts.cast(pa.large_string())], schema=schema))


def overlap(store: Store, names: Sequence[str]) -> tuple[Int[np.ndarray, "k k"], list[str]]:
    """How many samples each two lists share; on the diagonal how many each has, repeats counted once."""
    if all(name.startswith("keep:") for name in names):
        keeps = [open_keep_list(store, name.removeprefix("keep:"))[1] for name in names]
        if len({keep.pool_digest for keep in keeps}) == 1:  # rows say it, and repeated uids do no harm
            masks = [keep.mask for keep in keeps]
            shared = [[int(np.count_nonzero(a & b)) for b in masks] for a in masks]
            return np.array(shared), []
    lists, _ = open_lists(store, names, counted=False)
    shared = np.zeros((len(lists), len(lists)), np.int64)
    for _, counts in merged([found.pairs for found in lists]):
        is_there = (counts > 0).astype(np.int64)
        shared += is_there.T @ is_there
    repeated = [f"{found.label} repeats {n:,}" for found in lists if (n := found.num_repeats)]
    return shared, repeated
