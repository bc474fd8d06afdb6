"""Is this sample on the keep list? For anybody's loader: one file, numpy alone, free to copy.

    keep = Keep.open("uids.npy")
    keep.contains("139e4a9b22a614771f06c700a8ebe150")
    webdataset.WebDataset(tars).select(keep.sample_filter("json:uid"))
    python -m dbp.formats.contains uids.npy KEY...             # yes or no for each; status 0 if all are kept

It opens what `dbp export` and DataComp's tools write:

| file | asked by | memory |
|---|---|---|
| DataComp's uids, `.npy` or raw | uid | 16 bytes a uid, mapped: the workers of a loader share it |
| `keep.npy` of our store | row | one bit a row of the pool, mapped |
| text, a key a line | key | 16 bytes a key in each process; `save` makes a mapped file of it |
| the trie of the published DBP code | key | as text, and some 150 bytes a key while it is read |

Keys that are not all uids are kept as 128-bit BLAKE2b hashes: a key that is not on a list of 84 million
passes for one that is with probability 3e-31. Uids and rows are exact.
"""

import argparse
import hashlib
import json
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

UIDS = np.dtype([("f0", "<u8"), ("f1", "<u8")])  # DataComp's: the high half of a uid, then the low half
HASHES = np.dtype([("hash0", "<u8"), ("hash1", "<u8")])  # the same of a key's hash, as `save` writes it
UID = re.compile(rb"[0-9a-fA-F]{32}")
PICKLE = re.compile(rb"\x80[\2-\5]|c[\w.]+\n\w+\n|\((lp|dp)\d*\n|[\]}]q\0")  # protocols 0 to 5
BITS = np.array([128, 64, 32, 16, 8, 4, 2, 1], np.uint8)
BLOCK = 1 << 20


class Keep:
    """A keep list that a loader asks. Make one with `Keep.open`; it pickles as its path."""

    opened: tuple[Path, bool, bool]

    @staticmethod
    def open(
        path: Path | str, allow_repeats: bool = False, allow_pickle_of_trie: bool = False
    ) -> "KeptKeys | KeptRows":
        """Open a file of any of these kinds; its content says which one it is.

        Args:
            allow_repeats: Accept keys that repeat, which in DataComp's lists repeats the sample: see
                `count` and `repeat`.
            allow_pickle_of_trie: Read a pickled `pygtrie.StringTrie`. Its two classes alone are
                admitted, and a stand-in without code takes their place; pygtrie is not needed.

        Raises:
            ValueError: The file is of no such kind, cut short, not sorted, repeats keys, or is a pickle.
        """
        path = Path(path)
        with open(path, "rb") as handle:
            head = handle.read(4096)
            size = handle.seek(0, 2)
            handle.seek(max(size - 1, 0))
            last = handle.read()
        if head.startswith(b"\x93NUMPY"):
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except ValueError as error:
                raise ValueError(f"{path} cannot be mapped: {error} Export it again.") from error
        elif last == b"." and PICKLE.match(head):
            if not allow_pickle_of_trie:
                raise ValueError(
                    f"{path} is a pickle, and reading one can run any code. If it is the trie of the "
                    "published DBP code, open it with allow_pickle_of_trie=True; better, export the "
                    "keep list as text or as uids."
                )
            array = _packed(path, _trie_keys(path))
        elif _is_text(head):
            array = _packed(path, lambda: _lines(path))
        elif size % 16:
            raise ValueError(
                f"{path} is neither text nor .npy, and its {size:,} bytes are no multiple of the 16 of a "
                "uid. It may be cut short: export it again."
            )
        else:
            array = np.memmap(path, UIDS, "r")
        opened = (path, allow_repeats, allow_pickle_of_trie)
        if array.ndim == 1 and array.dtype == np.uint8:
            return KeptRows(opened, array)
        if array.ndim == 1 and array.dtype in (UIDS, HASHES) and len(array):
            return KeptKeys(opened, array)
        raise ValueError(
            f"{path} holds {array.dtype} in shape {array.shape}. A keep list is one row, not empty, of "
            "(f0 <u8, f1 <u8) pairs, as in DataComp, or of bytes with one bit a row."
        )

    def count(self, key: Any) -> int:
        """How often a key is on the list; above 1 only with `allow_repeats`. Each kind of list has its own."""
        raise NotImplementedError

    def contains(self, key: Any) -> bool:
        """Whether a key is on the list."""
        return self.count(key) > 0

    def sample_filter(self, name: str = "__key__", also: Callable[[dict], bool] | None = None) -> "SampleFilter":
        """A function that says of a sample whether it is kept, for webdataset's `select`.

        Args:
            name: What holds the key: an entry of the sample, or `json:FIELD`.
            also: A further condition, asked first.
        """
        return SampleFilter(self, name, also)

    def repeat(self, samples: Iterable[dict], name: str = "__key__") -> Iterator[dict]:
        """Each sample as often as it is on the list, one after another; shuffle behind it."""
        for sample in samples:
            for _ in range(self.count(key_of(sample, name))):
                yield dict(sample)

    def __reduce__(self) -> tuple:
        return Keep.open, self.opened


class KeptKeys(Keep):
    """Keys as sorted 128-bit numbers; a look-up is a binary search in their high halves."""

    def __init__(self, opened: tuple[Path, bool, bool], pairs: np.ndarray) -> None:
        self.opened = opened
        self.is_hashed = pairs.dtype == HASHES
        self.is_file = isinstance(pairs, np.memmap)
        self.pairs = np.asarray(pairs)  # the same map; slicing a memmap costs microseconds more
        self.high, self.low = (self.pairs[name] for name in pairs.dtype.fields or ())
        repeats = repeats_in(opened[0], self.high, self.low)
        if repeats and not opened[1]:
            raise ValueError(
                f"{opened[0]} repeats {repeats:,} of its {len(self):,} keys, which in DataComp's lists "
                "repeats the samples. Open it with allow_repeats=True to honour that."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def count(self, key: str) -> int:
        if (number := self._bytes(key)) is None:
            return 0
        high, low = (np.uint64(int.from_bytes(half, "big")) for half in (number[:8], number[8:]))
        start = int(self.high.searchsorted(high))
        if start == len(self.high) or self.high[start] != high:
            return 0
        lows = self.low[start : int(self.high.searchsorted(high, "right"))]
        return int(lows.searchsorted(low, "right") - lows.searchsorted(low))

    def contains_many(self, keys: list[str]) -> np.ndarray:
        """For each of many keys, whether it is on the list."""
        numbers = [self._bytes(key) for key in keys]
        pairs = np.frombuffer(b"".join(number or bytes(16) for number in numbers), ">u8")
        known = np.array([number is not None for number in numbers], bool)
        return known & self.contains_pairs(pairs.astype("<u8").view(UIDS))

    def contains_pairs(self, pairs: np.ndarray) -> np.ndarray:
        """The same for uids that are already (f0 <u8, f1 <u8) pairs."""
        # In ascending order the search stays in cached memory: four times as fast in a long list.
        order = np.argsort(pairs["f0"])
        high, low = pairs["f0"][order], pairs["f1"][order]
        at = np.minimum(self.high.searchsorted(high), len(self) - 1)
        same_high = self.high[at] == high
        found = same_high & (self.low[at] == low)
        for place in np.flatnonzero(same_high & ~found):  # perhaps a later key with the same high half
            end = int(self.high.searchsorted(high[place], "right"))
            found[place] = (self.low[at[place] : end] == low[place]).any()
        result = np.empty(len(pairs), bool)
        result[order] = found
        return result

    def save(self, path: Path | str) -> None:
        """Write the keys as an `.npy` that opens at once and that processes share."""
        beside = Path(path).with_name(f".{Path(path).name}.tmp")
        with open(beside, "wb") as handle:
            np.save(handle, self.pairs)
        beside.rename(path)

    def _bytes(self, key: str) -> bytes | None:
        raw = key.encode("utf-8", "surrogateescape")
        if self.is_hashed:
            return hashlib.blake2b(raw, digest_size=16).digest()
        if UID.fullmatch(raw):
            return bytes.fromhex(key)
        if self.is_file:
            raise ValueError(
                f"{key!r} is not 32 hexadecimal digits, and {self.opened[0]} holds uids. Where samples carry "
                "their uid in the json, filter by 'json:uid'."
            )
        return None


def repeats_in(path: Path, high: np.ndarray, low: np.ndarray) -> int:
    """How many keys of a list, as two halves, repeat the one before.

    Raises:
        ValueError: The list is not sorted.
    """
    repeats = 0
    for start in range(0, len(high), BLOCK):
        highs, lows = (half[start : start + BLOCK + 1] for half in (high, low))
        same = highs[1:] == highs[:-1]
        falls = (highs[1:] < highs[:-1]) | (same & (lows[1:] < lows[:-1]))
        if falls.any():
            raise ValueError(
                f"{path} is not sorted at entry {start + int(np.argmax(falls)) + 1:,}, and a binary "
                "search in it would keep wrong samples. Sort it by (f0, f1)."
            )
        repeats += int(np.count_nonzero(same & (lows[1:] == lows[:-1])))
    return repeats


class KeptRows(Keep):
    """One bit a row of the pool, the first row highest in its byte."""

    def __init__(self, opened: tuple[Path, bool, bool], bits: np.ndarray) -> None:
        self.opened = opened
        self.bits = np.asarray(bits)
        self.num_rows = 8 * len(bits)
        about = opened[0].with_name("keep.json")
        if opened[0].name == "keep.npy" and about.is_file():  # as in our store
            self.num_rows = int(json.loads(about.read_text())["rows"])
        if (self.num_rows + 7) // 8 != len(bits):
            raise ValueError(
                f"{opened[0]} has {len(bits):,} bytes, and {about.name} says {self.num_rows:,} rows, one bit "
                "each. One of them is cut short, or of another keep list."
            )

    def contains_row(self, row: int) -> bool:
        """Whether a row of the pool is kept."""
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row:,} is not among the {self.num_rows:,} of {self.opened[0]}")
        return bool(self.bits[row >> 3] & BITS[row & 7])

    def contains_rows(self, rows: np.ndarray) -> np.ndarray:
        """For each of many rows, whether it is kept.

        Raises:
            IndexError: A row is not of the pool.
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_rows):
            raise IndexError(
                f"rows {rows.min():,} to {rows.max():,} are not all among the {self.num_rows:,} of {self.opened[0]}"
            )
        return (self.bits[rows >> 3] & BITS[rows & 7]) != 0

    def count(self, key: Any) -> int:
        if isinstance(key, str):
            raise ValueError(
                f"{self.opened[0]} knows rows, and {key!r} is a key. Export the keep list as uids or text."
            )
        return int(self.contains_row(key))


class SampleFilter:
    """Whether a sample of webdataset is kept; a loader's worker gets the list's path and opens it."""

    def __init__(self, keep: Keep, name: str, also: Callable[[dict], bool] | None) -> None:
        self.keep, self.name, self.also = keep, name, also

    def __call__(self, sample: dict) -> bool:
        if self.also is not None and not self.also(sample):
            return False
        return self.keep.contains(key_of(sample, self.name))


def key_of(sample: dict, name: str) -> Any:
    """A sample's key: an entry of it, or, by `json:FIELD`, of its json (bytes, text or decoded)."""
    entry, _, field = name.partition(":")
    value = sample.get(entry)
    if field and value is not None:
        value = (value if isinstance(value, dict) else json.loads(value)).get(field)
    if value is None:
        raise ValueError(f"sample {sample.get('__key__')!r} has no {name}, only {sorted(sample)}")
    return value.decode() if isinstance(value, bytes) else value


def _packed(path: Path, keys: Callable[[], Iterator[bytes]]) -> np.ndarray:
    """Keys as sorted pairs in 16 bytes each: uids, if all are, else hashes."""
    num_keys, all_uids = 0, True
    for key in keys():
        num_keys += 1
        all_uids = all_uids and UID.fullmatch(key) is not None
    numbers = np.empty((num_keys, 16), np.uint8)
    source = keys()
    for start in range(0, num_keys, BLOCK):
        if all_uids:
            block = bytes.fromhex(b"".join(islice(source, BLOCK)).decode())
        else:
            hashes = (hashlib.blake2b(key, digest_size=16) for key in islice(source, BLOCK))
            block = b"".join(found.digest() for found in hashes)
        numbers[start : start + BLOCK] = np.frombuffer(block, np.uint8).reshape(-1, 16)
    # Big-endian bytes sort as the numbers do, in place and five times as fast as pairs.
    numbers.view("S16")[:, 0].sort()
    return numbers.view("<u8").byteswap(inplace=True).view(UIDS if all_uids else HASHES)[:, 0]


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as handle:
        for line in handle:
            if key := line.strip(b"\r\n").removeprefix(b"\xef\xbb\xbf"):
                yield key


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        if error.start < 4093:  # later, the end of the block cuts a character
            return False
    return not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", head)


class _StandIn:
    """Takes the place of a class of pygtrie: holds what the pickle says, and has no code to run."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _TrieUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) in (("pygtrie", "StringTrie"), ("pygtrie", "_Node")):
            return _StandIn
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a trie")


def _trie_keys(path: Path) -> Callable[[], Iterator[bytes]]:
    """The keys of a pickled StringTrie, as pygtrie 2.2 to 2.6 write it."""

    def walk() -> Iterator[bytes]:
        # A list for the whole tree: n, n steps down, the value there; or -n, to go n steps up.
        steps: list[str] = []
        commands = iter(trie.state["_root"].state)
        for command in commands:
            if command < 0:
                del steps[command:]
            else:
                steps += islice(commands, command)
                next(commands)
                yield trie.state["_separator"].join(steps).encode("utf-8", "surrogateescape")

    try:
        with open(path, "rb") as handle:
            trie = _TrieUnpickler(handle).load()
        for _ in walk():
            pass
    except Exception as error:
        raise ValueError(f"{path} is not the pickle of a pygtrie.StringTrie: {error}") from error
    return walk


def main(arguments: list[str]) -> int:
    """Print for each key, or row, whether it is kept; 0 if all are, 1 if not, 2 for an error."""
    parser = argparse.ArgumentParser("contains", description="Is a key on a keep list?")
    parser.add_argument("file", help="uids (.npy or raw), keep.npy, or text")
    parser.add_argument("keys", nargs="+", metavar="KEY", help="uids or keys; of keep.npy, rows")
    parser.add_argument("--allow-repeats", action="store_true")
    parser.add_argument("--allow-pickle-of-trie", action="store_true")
    given = parser.parse_args(arguments)
    try:
        keep = Keep.open(given.file, given.allow_repeats, given.allow_pickle_of_trie)
        kind = int if isinstance(keep, KeptRows) else str
        counts = [keep.count(kind(key)) for key in given.keys]  # type: ignore[arg-type]
    except (OSError, ValueError, IndexError) as error:
        print(error, file=sys.stderr)
        return 2
    for key, count in zip(given.keys, counts, strict=True):
        print(key, "yes" if count else "no", *([f"{count} times"] if count > 1 else []))
    return 0 if all(counts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
