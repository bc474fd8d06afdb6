"""Other tools' formats, in and out: uid files and key lists."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt64

from dbp.errors import ConfigError, WorldError

UID_DTYPE = np.dtype([("f0", "<u8"), ("f1", "<u8")])


def uids_to_pairs(uids: list[str]) -> np.ndarray:
    """Hexadecimal uids of 128 bits as DataComp's pairs, high half first.

    Raises:
        ConfigError: A uid is not 32 hexadecimal digits; it names the uid.
    """
    pairs = np.empty(len(uids), UID_DTYPE)
    for at, uid in enumerate(uids):
        try:
            if len(uid) != 32:
                raise ValueError
            pairs[at] = (int(uid[:16], 16), int(uid[16:], 16))
        except ValueError:
            raise ConfigError(
                f"uid {uid!r} is not 32 hexadecimal digits, which DataComp's uid files need. Index the "
                "pool with pool.uid=hash or pool.uid=json:uid, or export format=txt or parquet."
            ) from None
    return pairs


def pairs_to_uids(pairs: np.ndarray) -> list[str]:
    """DataComp's pairs as 32 hexadecimal digits, padded with zeros."""
    return [
        f"{int(high):016x}{int(low):016x}"
        for high, low in zip(pairs["f0"], pairs["f1"], strict=True)
    ]


def write_uid_file(path: Path | str, uids: list[str]) -> int:
    """Write a DataComp uid file: `.npy`, `<u8,u8`, sorted. Repeated uids stay repeated.

    Returns:
        The number of uids written.
    """
    pairs = uids_to_pairs(uids)
    pairs = pairs[np.lexsort((pairs["f1"], pairs["f0"]))]
    path = Path(path)
    beside = path.with_name(f".{path.name}.tmp")
    with open(beside, "wb") as handle:
        np.save(handle, pairs)
    beside.rename(path)
    return len(pairs)


def read_uid_file(path: Path | str, allow_repeats: bool = False) -> list[str]:
    """Read a DataComp uid file, with or without the `.npy` header.

    Raises:
        WorldError: The file has another type, is cut short, is not sorted, or repeats uids while
            `allow_repeats` is false.
    """
    path = Path(path)
    content = path.read_bytes()
    if content[:6] == b"\x93NUMPY":
        pairs = np.load(path, allow_pickle=False)
        if pairs.dtype != UID_DTYPE:
            raise WorldError(f"{path} holds {pairs.dtype}, not DataComp's (f0 <u8, f1 <u8) pairs")
    else:
        if len(content) % 16 or content[:1] == b"\x80":
            what = (
                "looks like a pickle, which is never read"
                if content[:1] == b"\x80"
                else f"has {len(content):,} bytes, no multiple of 16"
            )
            raise WorldError(f"{path} {what}; a uid file holds 16 bytes a uid. Export it again.")
        pairs = np.frombuffer(content, UID_DTYPE)
    high: UInt64[np.ndarray, " m"] = pairs["f0"]
    low: UInt64[np.ndarray, " m"] = pairs["f1"]
    ascending = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] >= low[:-1]))
    if not ascending.all():
        raise WorldError(
            f"{path} is not sorted (at entry {int(np.argmin(ascending)) + 1:,}); a binary "
            "search in it would keep wrong samples. Sort it by (f0, f1)."
        )
    repeats = int(((high[1:] == high[:-1]) & (low[1:] == low[:-1])).sum())
    if repeats and not allow_repeats:
        raise WorldError(
            f"{path} repeats {repeats:,} uids, which means repeated samples in DataComp. "
            "Say allow_repeats to honour that."
        )
    return pairs_to_uids(pairs)
