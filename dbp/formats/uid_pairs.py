"""Names at the border: 128-bit uids as pairs of numbers, and the search for names among others.

DataComp names a sample by 128 bits, written as 32 hexadecimal digits, and keeps a list of samples as pairs
of 64-bit numbers, sorted. Everything here works on whole arrays: 84 million uids are 1.3 GB as pairs, and
would be 7 GB as Python texts.
"""

import hashlib
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float64, Int, UInt8, UInt32, UInt64

from dbp.errors import ConfigError

UID_DTYPE = np.dtype([("f0", "<u8"), ("f1", "<u8")])
BLOCK = 1 << 20  # uids looked at together
Texts: TypeAlias = pa.Array | pa.ChunkedArray

_VALUE = np.full(256, 255, np.uint8)  # of a hexadecimal digit; 255 for what is none
for _digits in (b"0123456789abcdef", b"0123456789ABCDEF"):
    _VALUE[np.frombuffer(_digits, np.uint8)] = np.arange(16)
_DIGITS = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint8).reshape(256, 2)


def hex_bytes(texts: Texts) -> tuple[UInt8[np.ndarray, "n 16"], Bool[np.ndarray, " n"]]:
    """The 128 bits that 32 hexadecimal digits spell, first digit first, and which texts are that.

    Zeros where a text is missing, has another length, or holds another character.
    """
    found = np.zeros((len(texts), 16), np.uint8)
    is_hex = np.zeros(len(texts), bool)
    for start in range(0, len(texts), BLOCK):
        block = one_array(texts.slice(start, BLOCK))
        has_length = pc.fill_null(pc.call_function("binary_length", [block]), 0).to_numpy() == 32
        at = np.flatnonzero(has_length)
        if len(at) == 0:
            continue
        digits = characters(block if has_length.all() else block.filter(pa.array(has_length)))
        values = _VALUE[digits.reshape(-1, 32)]
        good = np.asarray((values < 16).all(axis=1))
        at = at[good] + start
        found[at] = (values[good, 0::2] << 4) | values[good, 1::2]
        is_hex[at] = True
    return found, is_hex


def one_array(texts: Texts) -> Any:
    """One contiguous array of long strings."""
    whole = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], whole.type)
    return whole.cast(pa.large_string())


def characters(texts: Any) -> UInt8[np.ndarray, " c"]:
    """The UTF-8 bytes of an array without missing texts, one after another."""
    ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(texts.buffers()[2], np.uint8)[ends[0] : ends[-1]]


def uids_to_pairs(uids: list[str] | Texts) -> np.ndarray:
    """Hexadecimal uids of 128 bits as DataComp's pairs, high half first.

    Raises:
        ConfigError: A uid is not 32 hexadecimal digits; it names the uid.
    """
    texts = pa.array(uids, pa.large_string()) if isinstance(uids, list) else uids
    found, is_hex = hex_bytes(texts)
    if not is_hex.all():
        wrong = texts[int(np.argmin(is_hex))].as_py()
        raise ConfigError(
            f"uid {wrong!r} is not 32 hexadecimal digits, which DataComp's uid files need. Index the "
            "pool with pool.uid=hash or pool.uid=json:uid, or export format=txt or parquet."
        )
    return bytes_to_pairs(found)


def bytes_to_pairs(found: UInt8[np.ndarray, "n 16"]) -> np.ndarray:
    """128 bits, first byte highest, as DataComp's pairs."""
    halves = np.ascontiguousarray(found).view(">u8")
    pairs = np.empty(len(found), UID_DTYPE)
    pairs["f0"], pairs["f1"] = halves[:, 0], halves[:, 1]
    return pairs


def pairs_to_texts(pairs: np.ndarray) -> pa.Array:
    """DataComp's pairs as texts of 32 hexadecimal digits, padded with zeros."""
    halves = np.stack([pairs["f0"], pairs["f1"]], axis=1).astype(">u8")
    digits = _DIGITS[halves.view(np.uint8).reshape(-1)]
    ends = np.arange(0, 32 * len(pairs) + 1, 32, dtype=np.int64)
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(digits.tobytes())]
    return pa.Array.from_buffers(pa.large_string(), len(pairs), buffers)


def pairs_to_uids(pairs: np.ndarray) -> list[str]:
    """DataComp's pairs as Python texts; for lists that fit."""
    return pairs_to_texts(pairs).to_pylist()


def order_pairs(pairs: np.ndarray) -> Int[np.ndarray, " n"]:
    """The order that sorts pairs by both halves.

    One sort by the high half orders uids that are evenly spread; the few runs whose low halves then
    stand wrong are mended. Sorting by both halves at once is five times slower or more.
    """
    order = np.argsort(pairs["f0"], kind="stable")
    high, low = pairs["f0"][order], pairs["f1"][order]
    wrong = (high[1:] == high[:-1]) & (low[1:] < low[:-1])
    if not wrong.any():
        return order
    starts = np.flatnonzero(np.r_[True, high[1:] != high[:-1]])
    mend = np.unique(np.searchsorted(starts, np.flatnonzero(wrong), side="right") - 1)
    if len(mend) > 10_000:  # uids that are not spread at all
        order = np.argsort(pairs["f1"], kind="stable")
        return order[np.argsort(pairs["f0"][order], kind="stable")]
    ends = np.r_[starts[1:], len(order)]
    for start, end in zip(starts[mend].tolist(), ends[mend].tolist(), strict=True):
        order[start:end] = order[start:end][np.argsort(low[start:end], kind="stable")]
    return order


def sort_pairs(pairs: np.ndarray) -> np.ndarray:
    """Pairs in ascending order of both halves."""
    return pairs[order_pairs(pairs)]


def match_pairs(
    high: UInt64[np.ndarray, " n"], low: UInt64[np.ndarray, " n"], wanted: UInt8[np.ndarray, "m 16"]
) -> Int[np.ndarray, " m"]:
    """The first place of 128-bit uids, in any order, among sorted pairs as two halves; -1 where they are not."""
    pairs = bytes_to_pairs(wanted)
    order = np.argsort(pairs["f0"])  # neighbours are looked up together, several times faster
    keys, lows = pairs["f0"][order], pairs["f1"][order]
    first, last = np.searchsorted(high, keys, "left"), np.searchsorted(high, keys, "right")
    end = last.copy()
    while len(at := np.flatnonzero(first < last)):  # a binary search among pairs with one high half
        middle = (first[at] + last[at]) // 2
        is_before = low[middle] < lows[at]
        first[at] = np.where(is_before, middle + 1, first[at])
        last[at] = np.where(is_before, last[at], middle)
    is_there = first < end
    is_there[is_there] = low[first[is_there]] == lows[is_there]
    found = np.empty(len(pairs), np.int64)
    found[order] = np.where(is_there, first, -1)
    return found


def texts_of(column: Texts) -> Any:
    """A column as texts; bytes that are not UTF-8 become replacement characters."""
    try:
        found = one_array(column)
        found.validate(full=True)
        return found
    except pa.ArrowInvalid:
        values = column.cast(pa.large_binary()).to_pylist()
        texts = [None if value is None else value.decode("utf-8", "replace") for value in values]
        return pa.array(texts, pa.large_string())


def digests(texts: Texts, size: int) -> bytes:
    """The BLAKE2b digests of texts, one after another: `hash_64` and `digest_16` for many.

    A missing text counts as an empty one. About 0.7 microseconds each.
    """
    whole = one_array(texts).fill_null("")
    offsets, content = whole.buffers()[1:]
    ends = np.frombuffer(offsets, np.int64)[whole.offset : whole.offset + len(whole) + 1].tolist()
    view = memoryview(content or b"")
    made = hashlib.blake2b
    return b"".join([made(view[a:b], digest_size=size).digest() for a, b in pairwise(ends)])


def hashes_64(texts: Texts) -> UInt64[np.ndarray, " n"]:
    """`hash_64` of many texts."""
    return np.frombuffer(digests(texts, 8), "<u8")


class Names:
    """Names to be found among others by a 64-bit hash; that the texts are equal is checked, too."""

    def __init__(self, hashes: UInt64[np.ndarray, " n"], texts_at: Callable[[np.ndarray], Texts]) -> None:
        """Take names by their hashes, and a function that gives the texts at some places."""
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]
        self._texts_at = texts_at

    @classmethod
    def of(cls, texts: Texts) -> "Names":
        """Names whose texts are in memory."""
        whole = one_array(texts)
        return cls(hashes_64(whole), lambda places: whole.take(pa.array(places)))

    @cached_property
    def num_repeats(self) -> int:
        """Names that stand there already, by their hash."""
        return int(np.count_nonzero(self._sorted[1:] == self._sorted[:-1]))

    @cached_property
    def counts(self) -> UInt32[np.ndarray, " n"]:
        """How often the name at each place stands there, by its hash."""
        edges = np.flatnonzero(np.r_[True, self._sorted[1:] != self._sorted[:-1], True])
        found = np.empty(len(self._sorted), np.uint32)
        found[self._order] = np.repeat(np.diff(edges), np.diff(edges))
        return found

    def sums(self, weights: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """The sum of the weights of the name at each place, by its hash."""
        starts = np.flatnonzero(np.r_[True, self._sorted[1:] != self._sorted[:-1]])
        totals = np.add.reduceat(weights[self._order], starts)
        found = np.empty(len(self._sorted))
        found[self._order] = np.repeat(totals, np.diff(np.r_[starts, len(self._sorted)]))
        return found

    def find(self, hashes: UInt64[np.ndarray, " m"], texts: Texts) -> Int[np.ndarray, " m"]:
        """For each text the first place where it stands among the names; -1 where it does not."""
        found = np.full(len(hashes), -1, np.int64)
        at = np.searchsorted(self._sorted, hashes, "left")
        end = np.searchsorted(self._sorted, hashes, "right")
        wanted = one_array(texts)
        while len(left := np.flatnonzero((at < end) & (found < 0))):
            place = self._order[at[left]]
            theirs = one_array(self._texts_at(place))
            same = pc.call_function("equal", [theirs, wanted.take(pa.array(left))])
            is_same = same.fill_null(False).to_numpy(zero_copy_only=False)
            found[left[is_same]] = place[is_same]
            at[left] += 1
        return found
