"""Other tools' lists of samples, in and out: uid files, one name a line, columns of Parquet files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64

from dbp.engine.disk import replacing
from dbp.errors import WorldError, nearest
from dbp.formats.contains import repeats_in
from dbp.formats.uid_pairs import UID_DTYPE, Texts, sort_pairs, uids_to_pairs


def kind_of(path: Path | str) -> Literal["npy", "raw", "text", "parquet"]:
    """What a list of samples is, from its first bytes.

    Raises:
        WorldError: It is missing, a folder, empty, cut short, a pickle or an archive.
    """
    path = Path(path)
    try:
        with open(path, "rb") as handle:
            start = handle.read(4096)
            size = path.stat().st_size
            handle.seek(max(size - 1, 0))
            end = handle.read(1)
    except OSError as error:
        raise WorldError(
            f"{path} cannot be read: {error.strerror}. Name a uid file, a list of one name a line, or "
            "a parquet file."
        ) from error
    if start[:6] == b"\x93NUMPY":
        return "npy"
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:4] == b"PK\x03\x04":
        raise WorldError(f"{path} is an archive (.npz, or a file of torch), no list of samples.")
    # A raw uid file may begin like this by chance, once in four million, and is then not read.
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and end == b".":
        raise WorldError(
            f"{path} looks like a pickle, which is never read: opening one runs whatever code it names. "
            "Export the list again as a uid file, as one name a line, or as parquet."
        )
    if not start:
        raise WorldError(f"{path} is empty: a list of samples that keeps nothing is no list.")
    if not any(byte < 32 and byte not in b"\t\n\r" for byte in start):
        return "text"
    if size % 16:
        raise WorldError(
            f"{path} has {size:,} bytes, no multiple of 16; a uid file holds 16 bytes a uid. It is cut "
            "short, or of another kind. Export it again."
        )
    return "raw"


def read_texts(path: Path | str, column: str = "uid") -> pa.ChunkedArray:
    """The names in a list of one a line, or in a column of a parquet file, as they stand.

    Raises:
        WorldError: The text is not UTF-8, or the column is missing or holds no text.
    """
    path = Path(path)
    if kind_of(path) == "parquet":
        try:
            names = pq.read_schema(path).names
            if column not in names:
                raise WorldError(f"{path} has no column {column!r}. {nearest(column, names)}")
            found = pq.read_table(path, columns=[column])[column]
            return found.cast(pa.large_string())
        except pa.ArrowException as error:
            raise WorldError(f"{path} cannot be read as parquet: {error}") from error
    blocks: list[pa.Array] = []
    with open(path, "rb") as handle:
        while block := handle.read(1 << 26):
            block += handle.readline()
            try:
                text = block.decode("utf-8-sig" if not blocks else "utf-8")
            except UnicodeDecodeError as error:
                raise WorldError(f"{path} is no text in UTF-8: {error}") from error
            whole = pa.array([text], pa.large_string())
            lines = pc.call_function("split_pattern", [whole], pc.SplitPatternOptions("\n"))
            lines = pc.call_function("utf8_rtrim", [lines.flatten()], pc.TrimOptions("\r"))
            blocks.append(lines.filter(pc.call_function("not_equal", [lines, ""])))
    return pa.chunked_array(blocks, pa.large_string())


def weights_beside(path: Path | str) -> Float64[np.ndarray, " l"] | None:
    """The column `weight` of a Parquet list, as exports write it; none where there is no such column.

    Raises:
        WorldError: A weight is missing, or not a finite number from 0 up.
    """
    if kind_of(path) != "parquet":
        return None
    try:
        if "weight" not in pq.read_schema(path).names:
            return None
        column = pq.read_table(path, columns=["weight"])["weight"]
        found = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise WorldError(f"{path}: the column weight cannot be read as numbers: {error}") from error
    if len(broken := np.flatnonzero(~((found >= 0) & (found < np.inf)))):
        raise WorldError(
            f"{path}: the column weight holds {len(broken):,} values that are not finite numbers from 0 up, "
            f"such as {column[int(broken[0])].as_py()} in row {broken[0]:,}. Correct them, or write the list "
            "without the column."
        )
    return found


@contextmanager
def writing_uids(path: Path | str) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a DataComp uid file block by block: hand sorted pairs to what this gives."""
    total = 0

    def write_header(count: int) -> int:
        about = {"descr": UID_DTYPE.descr, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(handle, about)
        return handle.tell()

    def append(pairs: np.ndarray) -> None:
        nonlocal total
        handle.write(np.ascontiguousarray(pairs).tobytes())
        total += len(pairs)

    with replacing(Path(path)) as handle:
        start = write_header(0)
        yield append
        handle.seek(0)
        assert write_header(total) == start, "numpy leaves room for any count"


def write_uid_file(path: Path | str, uids: list[str] | Texts) -> int:
    """Write a DataComp uid file: `.npy`, `<u8,u8`, sorted. Repeated uids stay repeated; return their number."""
    pairs = sort_pairs(uids_to_pairs(uids))
    with writing_uids(path) as append:
        append(pairs)
    return len(pairs)


def read_uid_file(path: Path | str, allow_repeats: bool = False) -> np.ndarray:
    """Open a DataComp uid file, with or without the `.npy` header, as sorted pairs, memory-mapped.

    Raises:
        WorldError: The file has another type, is cut short, is not sorted, or repeats uids while
            `allow_repeats` is false.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind in ("text", "parquet"):
        raise WorldError(f"{path} is a {kind} file, no uid file: 16 bytes a uid, sorted.")
    if kind == "raw":
        pairs = np.memmap(path, UID_DTYPE, "r")
    else:
        try:
            pairs = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, EOFError, OSError) as error:
            raise WorldError(f"{path} is damaged or cut short ({error}). Export it again.") from error
        if pairs.dtype != UID_DTYPE or pairs.ndim != 1:
            raise WorldError(
                f"{path} holds {pairs.dtype} of shape {pairs.shape}, not DataComp's (f0 <u8, f1 <u8) pairs"
            )
    try:
        repeats = repeats_in(path, pairs["f0"], pairs["f1"])
    except ValueError as error:
        raise WorldError(str(error)) from error
    if repeats and not allow_repeats:
        raise WorldError(
            f"{path} repeats {repeats:,} uids, which means repeated samples in DataComp. Say "
            "repeats=once to take each once; dbp uids honours them with repeats=keep."
        )
    return pairs
