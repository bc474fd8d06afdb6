"""Set algebra of lists of samples.

    dbp uids union|intersection|difference A B … out=FILE    the samples of any; of all; of A and no other
    dbp uids overlap A B …                                   how many samples each two share, and their Jaccard

A list is a DataComp uid file (.npy, or raw), a text of one name a line, a Parquet file with a column
`uid`, or `keep:KEY`, a keep list of the store. `out` is a uid file (.npy), a text (.txt) or Parquet
(.parquet). `repeats=error|once|keep` says what a repeated uid means: `keep` counts each, as DataComp does
(union: the larger count, intersection: the smaller, difference: what is left); overlap counts samples once.
`paths.store=FOLDER` and `paths.runs=FOLDER` say which store.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from dbp.config import require
from dbp.engine.store import Store
from dbp.errors import ConfigError, WorldError, nearest
from dbp.formats.exchange import kind_of, read_texts, read_uid_file, writing_uids
from dbp.formats.uid_pairs import Texts, bytes_to_pairs, digests, hex_bytes, match_pairs, pairs_to_texts, sort_pairs
from dbp.formats.uid_sets import CHUNK, combined, merged
from dbp.lineage import open_keep_list, open_pool_of
from dbp.verbs.show import read_arguments

OPERATIONS = ("union", "intersection", "difference")
FORMATS = (".npy", ".txt", ".parquet")


@dataclass(frozen=True)
class Listed:
    """A list of samples: its name, its uids as sorted pairs, and its texts where it came as text."""

    label: str
    pairs: np.ndarray
    texts: Texts | None

    @property
    def num_repeats(self) -> int:
        """Uids that stand there already."""
        total = 0
        for start in range(0, len(self.pairs), CHUNK):
            block = np.asarray(self.pairs[start : start + CHUNK + 1])
            total += int(np.count_nonzero(block[1:] == block[:-1]))
        return total


def main(verb: str, arguments: list[str]) -> None:
    """Run `dbp uids`."""
    known = ("out", "repeats", "paths.store", "paths.runs")
    settings, words = read_arguments(arguments, known)
    allowed = (*OPERATIONS, "overlap")
    if not words or words[0] not in allowed:
        raise ConfigError(f"dbp uids {words[0] if words else ''}: {nearest((words or [''])[0], allowed)}")
    operation, *names = words
    require(len(names) >= 2, "lists", names, "at least two; see dbp uids --help")
    repeats = settings.get("repeats", "error")
    require(repeats in ("error", "once", "keep"), "repeats", repeats, "error, once or keep")
    store = Store(settings.get("paths.store", "./store"), settings.get("paths.runs", "./runs"))
    if operation == "overlap":
        print(overlap_table(names, *overlap(store, names)))
        return
    if "out" not in settings:
        raise ConfigError(f"dbp uids {operation} needs out=FILE ({', '.join(FORMATS)})")
    out = Path(settings["out"])
    require(out.suffix in FORMATS, "out", str(out), f"a file that ends with {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise ConfigError(f"out={str(out)!r}: the folder {out.parent} does not exist. Make it first.")
    lists, is_hex = open_lists(store, names)
    for found in lists:
        if repeats == "error" and (count := found.num_repeats):
            raise WorldError(
                f"{found.label} repeats {count:,} uids, which means repeated samples in DataComp. Say "
                "repeats=keep to honour that, or repeats=once to take each once."
            )
    chunks = combined([found.pairs for found in lists], operation, repeats == "keep")
    written = _write_uids(out, chunks) if is_hex else _write_names(out, lists, chunks, repeats)
    sizes = ", ".join(f"{found.label} {len(found.pairs):,}" for found in lists)
    print(f"wrote {written:,} uids to {out}: {operation} of {sizes}")


def open_lists(store: Store, names: Sequence[str]) -> tuple[list[Listed], bool]:
    """Open lists, and say whether all their names are 128-bit uids.

    Where some are other names, all are compared by a 128-bit hash of the name.
    """
    found = [(name, _open(store, name)) for name in names]
    sources = [(name, texts, pairs, hex_bytes(texts) if texts is not None else None)
               for name, (pairs, texts) in found]  # fmt: skip
    is_hex = all(spelt is None or spelt[1].all() for *_, spelt in sources)
    lists = []
    for name, texts, pairs, spelt in sources:
        if is_hex:
            lists.append(Listed(name, sort_pairs(bytes_to_pairs(spelt[0])) if spelt else pairs, texts))
        else:
            spelled = pairs_to_texts(pairs) if texts is None else texts
            lists.append(Listed(name, sort_pairs(_hashed(spelled)), spelled))
    return lists, is_hex


def _open(store: Store, name: str) -> tuple[np.ndarray, Texts | None]:
    nothing = np.zeros(0, "u8")
    if name.startswith("keep:"):
        entry, keep = open_keep_list(store, name.removeprefix("keep:"))
        return nothing, open_pool_of(store, entry).index.at("uid", keep.rows)
    if kind_of(name) in ("text", "parquet"):
        return nothing, read_texts(name)
    return read_uid_file(name, allow_repeats=True), None


def _hashed(texts: Texts) -> np.ndarray:
    return bytes_to_pairs(np.frombuffer(digests(texts, 16), np.uint8).reshape(-1, 16))


def _write_uids(out: Path, chunks: Iterator[np.ndarray]) -> int:
    total = 0
    if out.suffix == ".npy":
        with writing_uids(out) as append:
            for chunk in chunks:
                append(chunk)
                total += len(chunk)
        return total
    with _writing_texts(out) as append_texts:
        for chunk in chunks:
            append_texts(pairs_to_texts(chunk))
            total += len(chunk)
    return total


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
    with _writing_texts(out) as append:
        for found in lists:
            assert found.texts is not None, "lists of names have texts"
            for start in range(0, len(found.texts), CHUNK):
                block = found.texts.slice(start, CHUNK)
                spelt = np.frombuffer(digests(block, 16), np.uint8).reshape(-1, 16)
                place = match_pairs(high, low, spelt)
                _, first = np.unique(place, return_index=True)
                new = np.sort(first[place[first] >= 0])
                new = new[~is_written[place[new]]]
                is_written[place[new]] = True
                append(block.take(pa.array(new)))
    return len(kept)


@contextmanager
def _writing_texts(out: Path) -> Iterator[Callable[[Texts], None]]:
    """Write texts block by block, one a line or as the column `uid`, beside and renamed."""
    beside = out.with_name(f".{out.name}.tmp")
    schema = pa.schema([("uid", pa.large_string())])
    try:
        if out.suffix == ".txt":
            with open(beside, "w", encoding="utf-8") as handle:
                yield lambda texts: handle.writelines(f"{text}\n" for text in texts.to_pylist())
        else:
            with pq.ParquetWriter(beside, schema, compression="zstd") as writer:
                yield lambda texts: writer.write_table(
                    pa.table({"uid": texts.cast(pa.large_string())}, schema=schema)
                )
        beside.rename(out)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def overlap(store: Store, names: Sequence[str]) -> tuple[Int[np.ndarray, "k k"], list[str]]:
    """How many samples each two lists share; on the diagonal how many each has, repeats counted once."""
    if all(name.startswith("keep:") for name in names):
        keeps = [open_keep_list(store, name.removeprefix("keep:"))[1] for name in names]
        if len({keep.pool_digest for keep in keeps}) == 1:  # rows say it, and repeated uids do no harm
            masks = [keep.mask for keep in keeps]
            shared = [[int(np.count_nonzero(a & b)) for b in masks] for a in masks]
            return np.array(shared), []
    lists, _ = open_lists(store, names)
    shared = np.zeros((len(lists), len(lists)), np.int64)
    for _, counts in merged([found.pairs for found in lists]):
        is_there = (counts > 0).astype(np.int64)
        shared += is_there.T @ is_there
    repeated = [f"{found.label} repeats {n:,}" for found in lists if (n := found.num_repeats)]
    return shared, repeated


def overlap_table(names: Sequence[str], shared: Int[np.ndarray, "k k"], notes: list[str]) -> str:
    """The matrix as aligned text: shared samples, and the share of those that either has (Jaccard)."""
    sizes = np.diag(shared)
    union = np.maximum(sizes[:, None] + sizes[None, :] - shared, 1)
    width = max(len(name) for name in names)
    heads = [f"[{at + 1}]" for at in range(len(names))]
    lines = [" " * (width + 5) + "".join(f"{head:>24}" for head in heads)]
    for at, name in enumerate(names):
        cells = (f"{shared[at, b]:,} ({shared[at, b] / union[at, b]:.4f})" for b in range(len(names)))
        lines.append(f"{heads[at]:<4} {name:<{width}}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join([*lines, *notes, "samples in both (Jaccard: of those in either)"])
