"""What names a sample at the border, and how many samples a rule leaves under one name."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Int, UInt64

from dbp.data.images import DROP, background_key
from dbp.data.pool import hash_64
from dbp.engine.paths import relative_names
from dbp.engine.progress import log

# The rules that need no json, each with what it hashes, the plainest first.
RULES = {
    "key": "the key in the tar",
    "hash": "the shard's file name and the key",
    "path": "the shard's path below the folder that all shards have in common, and the key",
    "content": "the key, the image's bytes and the caption",
}
MOST_TRIED = 100_000  # samples with a shared name that the rules are tried on, about
PLACE = ("key", "shard", "content_hash", "caption_hash")


def uid_by(rule: str, key: str, path: str, content_hash: bytes, caption_hash: bytes) -> str:
    """The uid of a sample by one of `RULES`: its key, or 32 hexadecimal digits, as DataComp's tools take them.

    Args:
        path: Of its shard, below the folder that all shards of the pool have in common.
    """
    if rule == "key":
        return key
    if rule == "content":
        made = key.encode() + b"\0" + content_hash + caption_hash
    else:
        made = f"{path if rule == 'path' else Path(path).name}\0{key}".encode()
    return hashlib.sha256(made).hexdigest()[:32]


@dataclass(frozen=True)
class Joined:
    """The parts of an index seen together."""

    digest: str
    uids: UInt64[np.ndarray, " u"]  # the distinct hashes of uids, ascending
    repeated: UInt64[np.ndarray, " r"]  # those that several samples have, ascending
    times: Int[np.ndarray, " r"]  # how many have each of them
    files: Sequence[Path]

    def counts(self, rows: int, **others: int) -> dict[str, Any]:
        """What an index counts: `repeated uids` are samples whose uid came before."""
        return {"digest": self.digest, "rows": rows, **others, "repeated uids": rows - len(self.uids)}


def joined(folder: Path, parts: Mapping[str, Mapping[str, Any]], background: str = DROP) -> Joined:
    """The parts of an index that lie in a folder; the pool's digest is made of those of its parts."""
    content = hashlib.sha256(background_key(background).encode())
    for found in parts.values():
        content.update(bytes.fromhex(found["digest"]))
    files = [folder / name / "index.parquet" for name in parts]
    hashes = [pq.read_table(file, columns=["uid_hash"])["uid_hash"].to_numpy() for file in files]
    uids, counts = np.unique(np.concatenate(hashes), return_counts=True)
    return Joined(content.hexdigest(), uids, uids[counts > 1], counts[counts > 1], files)


def warn_of_twins(index: Joined, present: str, shards: Sequence[str] | None = None) -> int:
    """Say how many samples have a uid that another sample has, and which rule would part them.

    Args:
        present: The rule as it is set (`pool.uid=key`).
        shards: Of a pool whose rule may be changed.

    Returns:
        The samples whose uid does not name them alone.
    """
    if not len(index.repeated):
        return 0
    names = relative_names(list(shards)) if shards else []
    num_twins = int(index.times.sum())
    tried = index.repeated[:: -(-num_twins // MOST_TRIED)]
    hashes: dict[str, list[int]] = {rule: [] for rule in RULES}
    first = ""
    for file in index.files:
        if first and (not names or len(hashes["key"]) >= MOST_TRIED):
            break
        is_tried = among(pq.read_table(file, columns=["uid_hash"])["uid_hash"].to_numpy(), tried)
        if not is_tried.any():
            continue
        twins = pq.read_table(file, columns=["uid", *PLACE]).filter(is_tried)
        first = first or twins["uid"][0].as_py()
        if not names:
            continue
        for key, shard, *contents in zip(*(twins[name].to_pylist() for name in PLACE), strict=True):
            for rule, own in hashes.items():
                own.append(hash_64(uid_by(rule, key, names[shard], *contents).encode()))
    left = {rule: num_shared(own) for rule, own in hashes.items()} if names else {}
    num_tried = len(hashes["key"])
    few = f" (Tried on {num_tried:,} of them.)" if 0 < num_tried < num_twins else ""
    log.warning(
        "%s samples share their uid with another one (%s uids, such as %r; %s): lists of names cannot tell them "
        "apart. %s%s",
        f"{num_twins:,}", f"{len(index.repeated):,}", first, present, way_out(left), few,
    )  # fmt: skip
    return num_twins


def among(values: UInt64[np.ndarray, " n"], known: UInt64[np.ndarray, " k"]) -> Bool[np.ndarray, " n"]:
    """Which values are among some that are sorted: these are not sorted anew for each shard, as `np.isin` does."""
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values


def num_shared(hashes: Iterable[int]) -> int:
    """How many have a hash that another one has."""
    counts = np.unique(np.fromiter(hashes, np.uint64), return_counts=True)[1]
    return int(counts[counts > 1].sum())


def best_rule(left: Mapping[str, int]) -> str:
    """The plainest rule that leaves the fewest samples under a shared name."""
    return min(left, key=lambda name: left[name])


def way_out(left: Mapping[str, int]) -> str:
    """The rule that parts samples, and how many each of the others leaves."""
    if not left:
        return "Name rows instead: export format=parquet, or dbp why row:N."
    best = best_rule(left)
    others = ", ".join(f"{name} leaves {count:,}" for name, count in left.items() if name != best)
    said = "parts them all" if not left[best] else f"leaves {left[best]:,} (the same sample twice)"
    return f"pool.uid={best} {said}; {others}."
