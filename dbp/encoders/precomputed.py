"""Vectors that another tool made, in the pool's order: a `.npy` of n rows, or a raw memory map."""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from dbp.data.pool import Pool
from dbp.encoders.base import Encoder, Tower
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, WorldError

REMEMBERED = 1 << 24  # bytes from which a file's digest is kept for the next process
SETTLED = 2.0  # seconds without a change before it is


class Reads:
    """What encoders share whose vectors are read and not computed."""

    reads: ClassVar[bool] = True

    def load(self) -> Tower:
        """There is no network."""
        raise AssertionError("vectors that another tool made are read, not encoded")


def content_digest(path: Path | str, setting: str) -> str:
    """SHA-256 of a file of vectors, read once and remembered while size and time stay.

    13 GB take ten seconds or more, and every command asks. What is known of a large file is kept in
    `$XDG_CACHE_HOME/dbp/digests` (`~/.cache` where that is not set); that folder may be removed at
    any time.

    Raises:
        ConfigError: There is no such file; it names the setting.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size < REMEMBERED:
        return file_digest(path, setting)
    stat = path.stat()
    known = f"{path.resolve()}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dbp" / "digests"
    record = home / hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()
    try:
        if len(found := record.read_text()) == 64:
            return found
    except (OSError, UnicodeDecodeError):
        pass
    digest = file_digest(path, setting)
    # A file that was written just now can change again without a change of its time.
    if time.time() - stat.st_mtime > SETTLED:
        try:
            home.mkdir(parents=True, exist_ok=True)
            beside = record.with_name(f".{record.name}-{os.getpid()}")
            beside.write_text(digest)
            beside.rename(record)
        except OSError:  # nowhere to remember: the file is read again next time
            pass
    return digest


def open_vectors(path: Path | str, num_rows: int | None = None) -> Float[np.ndarray, "n d"]:
    """Map a `.npy` of one float vector a row.

    Args:
        path: The file.
        num_rows: How many rows the pool has, where each must have its vector; null for any number.

    Raises:
        WorldError: It is no such file, or has another number of rows.
    """
    try:
        vectors = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise WorldError(
            f"{path} is no .npy array ({error}). A raw memory map is read by encoder=memmap, DataComp's "
            ".npz by encoder=datacomp_l14; pickles are never read. Else save it with numpy.save."
        ) from error
    is_matrix = vectors.ndim == 2 and vectors.shape[1] > 0 and vectors.dtype.kind == "f"
    if not is_matrix or num_rows not in (None, len(vectors)):
        needed = "one float vector a row is needed"
        if num_rows is not None:
            needed = f"the pool has {num_rows:,} rows, and one float vector for each is needed, in its order"
        raise WorldError(f"{path} has shape {vectors.shape} of {vectors.dtype}; {needed}.")
    return vectors


@dataclass(frozen=True)
class Precomputed(Reads, Encoder):
    """Vectors read from files instead of computed.

    Args:
        label: A name for the network that made them, for manifests.
        images: `.npy` of shape (n, d), one row for each row of the pool.
        texts: The same for captions.
    """

    label: str
    images: str | None = runtime(None)
    texts: str | None = runtime(None)
    batch_size: int = runtime(8192)
    num_workers: int = runtime(0)

    def identity(self) -> dict[str, Any]:
        return {
            name: content_digest(path, f"encoder {name}")
            for name, path in (("images", self.images), ("texts", self.texts))
            if path
        }

    def read_part(
        self, side: Literal["image", "text"], pool: Pool, shard: int, rows: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, "m d"]:
        """The vectors of rows.

        Raises:
            ConfigError: No file was given for this side.
            WorldError: The file does not hold one float row for each row of the pool.
        """
        path = self.images if side == "image" else self.texts
        if path is None:
            raise ConfigError(
                f"precomputed encoder {self.label!r} has no {side} vectors: set "
                f"{'images' if side == 'image' else 'texts'}=FILE.npy of the encoder that needs them: "
                "encoder.dedup (dedup=none needs none), encoder.cluster or encoder.score"
            )
        return open_vectors(path, pool.num_rows)[rows]


@dataclass(frozen=True)
class MemoryMap(Reads, Encoder):
    """A raw map without a header, as SemDeDup keeps embeddings: one row for each row of the pool.

    Args:
        label: The network that made them, for manifests.
        width: Numbers of a vector.
        dtype: `float32`, as SemDeDup writes it, or `float16`.
        rows: Vectors in the map; null for as many as the pool has rows.
        images: The map of image vectors.
        texts: The map of caption vectors.
    """

    label: str
    width: int | None
    dtype: Literal["float32", "float16"]
    rows: int | None = None
    images: str | None = runtime(None)
    texts: str | None = runtime(None)

    def identity(self) -> dict[str, Any]:
        return {
            name: content_digest(path, f"encoder {name}")
            for name, path in (("images", self.images), ("texts", self.texts))
            if path
        }

    def read_part(
        self, side: Literal["image", "text"], pool: Pool, shard: int, rows: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, "m d"]:
        """The vectors of rows.

        Raises:
            ConfigError: The map or its width is not named, or its size does not fit its shape.
            WorldError: The map has another number of rows than the pool.
        """
        path = self.images if side == "image" else self.texts
        if path is None or self.width is None:
            what = "width" if path else "images" if side == "image" else "texts"
            raise ConfigError(f"encoder {self.label}: {what} is not set, and a raw map needs it.")
        num_rows = pool.num_rows if self.rows is None else self.rows
        check_map(path, num_rows, self.width, self.dtype)
        if num_rows != pool.num_rows:
            raise WorldError(
                f"{path} holds {num_rows:,} vectors and the pool {pool.num_rows:,} rows; one for each is "
                "needed, in the pool's order."
            )
        return np.memmap(path, self.dtype, "r", shape=(num_rows, self.width))[rows]


def check_map(path: Path | str, rows: int, width: int, dtype: str) -> None:
    """Refuse a raw map whose bytes are not those of its shape.

    Raises:
        ConfigError: It has a header, or another size; it says which shape or type would fit.
    """
    with open(path, "rb") as handle:
        start = handle.read(6)
    if start == b"\x93NUMPY":
        raise ConfigError(
            f"{path} is a .npy file, not a raw map: read as one, every vector would be shifted by its "
            "header. Use encoder=precomputed."
        )
    size, bytes_each = Path(path).stat().st_size, np.dtype(dtype).itemsize
    expected = rows * width * bytes_each
    if size == expected:
        return
    other = {2: "float32", 4: "float16"}[bytes_each]
    hint = f"Correct rows ({size / width / bytes_each:,.6g} at this width) or width."
    if size == rows * width * np.dtype(other).itemsize:
        hint = f"That is the size of {other}: set dtype={other}."
    raise ConfigError(
        f"{path} has {size:,} bytes, and {rows:,} x {width:,} numbers of {dtype} are {expected:,}. {hint}"
    )
