"""Vectors in the layouts of other tools: DataComp's `.npz`, clip-retrieval's folders.

Files are mapped and not loaded: a part of the pool costs the bytes of its own rows.
"""

import re
import struct
import zipfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from dbp.data.columns import Columns
from dbp.data.pool import Pool
from dbp.encoders.base import Encoder
from dbp.encoders.precomputed import Reads, content_digest, open_vectors
from dbp.engine.progress import log
from dbp.engine.stage import runtime
from dbp.errors import ConfigError, WorldError, nearest
from dbp.formats.uid_pairs import Names, hashes_64
from dbp.pools.datacomp import metadata_files

Side = Literal["image", "text"]


@dataclass(frozen=True)
class Npz(Reads, Encoder):
    """The features that lie beside DataComp's metadata, aligned row by row; for `pool=datacomp`.

    Their identity is the checksum that a zip archive keeps of each array, so nothing is read for a key.

    Args:
        label: The network that made them, for manifests.
        image_array: Name of the array of image vectors in each `.npz`.
        text_array: Name of the array of caption vectors.
        metadata: The folder of `.parquet` and `.npz` files: that of the pool.
    """

    label: str
    image_array: str
    text_array: str
    metadata: str | None = runtime(None)

    def identity(self) -> dict[str, Any]:
        if not self.metadata:
            return {}
        files = metadata_files(self.metadata)
        names = (self.image_array, self.text_array)
        return {"arrays": [list(_checksums(_npz(file), *_version(file), names)) for file in files]}

    def read_part(
        self, side: Side, pool: Pool, shard: int, rows: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, "m d"]:
        """The vectors of rows, from the file of each row's part of the metadata.

        Raises:
            ConfigError: The folder is not named.
            WorldError: A file is missing or damaged, or does not belong to the pool's rows.
        """
        files, starts = metadata_files(self.metadata), pool.index.starts
        name = self.image_array if side == "image" else self.text_array
        if len(files) < len(starts) - 1:
            raise WorldError(
                f"encoder {self.label}: {self.metadata} holds {len(files):,} Parquet files, and the pool "
                f"has {len(starts) - 1:,} parts. These features belong to pool=datacomp of that folder."
            )
        number = np.searchsorted(starts, rows, side="right") - 1
        found: list[np.ndarray] = []
        for part in np.unique(number).tolist():
            own = rows[number == part]
            vectors = _member(_npz(files[part]), name)
            at = own - int(starts[part])
            _check_rows(files[part], len(vectors), at, pool, own)
            found.append(np.asarray(vectors[at]))
        return np.concatenate(found) if found else np.zeros((0, 1), np.float16)


def _npz(file: Path) -> Path:
    return file.with_suffix(".npz")


def _version(file: Path) -> tuple[int, int]:
    """What changes when the archive beside a Parquet file does."""
    try:
        stat = _npz(file).stat()
    except OSError as error:
        raise WorldError(
            f"{_npz(file)} is missing: the features of {file.name} lie in an .npz of the same name. "
            "Fetch it, or choose an encoder that computes."
        ) from error
    return stat.st_size, stat.st_mtime_ns


@cache
def _checksums(npz: Path, size: int, changed: int, names: tuple[str, ...]) -> tuple[int, ...]:
    """CRC-32 and bytes of the named arrays, from the archive's directory; without those it lacks."""
    with _archive(npz) as archive:
        there = {item.filename: item for item in archive.infolist()}
    infos = (there.get(f"{name}.npy") for name in names)
    return tuple(n for info in infos if info for n in (info.CRC, info.file_size))


def _archive(npz: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(npz)
    except (OSError, zipfile.BadZipFile) as error:
        raise WorldError(f"{npz} is no whole .npz archive ({error}). Fetch it again.") from error


def _member(npz: Path, name: str) -> np.ndarray:
    """One array of an archive: mapped where it is stored as it is, else unpacked in memory."""
    with _archive(npz) as archive:
        there = {item.filename.removesuffix(".npy"): item for item in archive.infolist()}
        if name not in there:
            raise WorldError(f"{npz} holds no array {name!r}. {nearest(name, there)}")
        info = there[name]
        try:
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
                    version
                ]
                shape, is_fortran, kind = read(member)
                header = member.tell()
            if len(shape) != 2 or kind.kind != "f" or is_fortran:
                raise WorldError(f"{npz}: {name} has shape {shape} of {kind}; one float vector a row is needed.")
            if info.compress_type != zipfile.ZIP_STORED:
                return np.load(npz, allow_pickle=False)[name]
            with open(npz, "rb") as handle:
                handle.seek(info.header_offset)
                fixed = handle.read(30)
            lengths = struct.unpack("<HH", fixed[26:30])  # of the member's name and extra field
            start = info.header_offset + 30 + sum(lengths) + header
            return np.memmap(npz, kind, "r", start, shape)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, OSError) as error:
            raise WorldError(f"{npz}: {name} cannot be read ({error}). Fetch it again.") from error


def _check_rows(file: Path, num_vectors: int, at: np.ndarray, pool: Pool, rows: np.ndarray) -> None:
    """Vectors belong to rows by position alone, so counts and uids must agree."""
    uids = pq.read_table(file, columns=["uid"])["uid"]
    if len(uids) != num_vectors:
        raise WorldError(
            f"{_npz(file)} holds {num_vectors:,} vectors and {file.name} {len(uids):,} rows; they must "
            "align row by row. Fetch both again."
        )
    theirs = uids.cast(pa.string()).take(pa.array(at)) if len(at) and at[-1] < len(uids) else None
    if theirs is None or not theirs.equals(pool.index.at("uid", rows)):
        raise WorldError(
            f"{file} does not hold the uids of the pool's rows in their order, so the vectors beside it "
            "belong to other samples. Give the folder that the pool was indexed from."
        )


@dataclass(frozen=True)
class Laion(Reads, Encoder):
    """A folder of `img_emb/*.npy`, `text_emb/*.npy` and `metadata/*.parquet`, as clip-retrieval writes it.

    The files of one number hold the same samples in one order. They are joined to the pool by name, and
    rows of the pool that have no vector there are listed. Memory: 16 bytes for each vector there is.

    Args:
        label: The network that made them, for manifests.
        join: What of the pool the metadata names: `key` or `uid`; or `position`, if the i-th vector
            belongs to the i-th row.
        column: The column of the metadata that holds that name; of webdataset pools, clip-retrieval
            keeps the key in `image_path`. A folder that `dbp export` wrote has none, and is joined by uid.
        folder: The folder.
    """

    lacks: ClassVar[str | None] = "no vector in the folder"

    label: str
    join: Literal["key", "uid", "position"]
    column: str
    folder: str | None = runtime(None)

    def identity(self) -> dict[str, Any]:
        if not self.folder:
            return {}
        files = [file for side in ("image", "text") for file in self._vectors(side).values()]
        if self.join != "position":
            files += self._metadata.values()
        return {"files": [content_digest(file, "encoder folder") for file in files]}

    def _numbered(self, kind: str) -> dict[int, Path]:
        """The files of one kind by the number in their name: img_emb_10 comes after img_emb_9."""
        if not self.folder or not Path(self.folder).is_dir():
            raise ConfigError(
                f"encoder {self.label}: folder={self.folder!r} is no folder. Name the one that holds "
                "img_emb and metadata."
            )
        found: dict[int, Path] = {}
        for file in sorted(Path(self.folder, kind).glob("[!.]*")):
            if digits := re.findall(r"\d+", file.stem):
                found[int(digits[-1])] = file
        return dict(sorted(found.items()))

    def _vectors(self, side: Side) -> dict[int, Path]:
        return self._numbered("img_emb" if side == "image" else "text_emb")

    @cached_property
    def _metadata(self) -> dict[int, Path]:
        return self._numbered("metadata")

    def read_part(
        self, side: Side, pool: Pool, shard: int, rows: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, "m d"]:
        """The vectors of rows; NaN for a row that has none.

        Raises:
            ConfigError: The folder or the metadata's column is not there.
            WorldError: The files of a number do not align.
        """
        files = list(self._vectors(side).values())
        if not files:
            raise ConfigError(f"encoder {self.label}: {self.folder} has no {side} vectors.")
        arrays = [open_vectors(file) for file in files]
        starts = np.cumsum([0, *map(len, arrays)])
        place = self._places(side, pool, rows, starts)
        found = np.full((len(rows), arrays[0].shape[1]), np.nan, arrays[0].dtype)
        number = np.searchsorted(starts, place, side="right") - 1
        for file in np.unique(number[place >= 0]).tolist():
            own = (number == file) & (place >= 0)
            # NaN is for rows without a vector; what else is not finite, stays so.
            there = arrays[file][place[own] - starts[file]]
            found[own] = np.where(np.isfinite(there), there, np.inf)
        return found

    def _places(self, side: Side, pool: Pool, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
        if self.join == "position":
            if starts[-1] != pool.num_rows:
                raise WorldError(
                    f"{self.folder} holds {starts[-1]:,} {side} vectors and the pool {pool.num_rows:,} "
                    "rows, so they cannot be joined by position. Set join=key or join=uid."
                )
            return rows
        names, ends = self._names
        if list(self._vectors(side)) != list(self._metadata) or not np.array_equal(ends, starts):
            raise WorldError(
                f"{self.folder}: {side} vectors and metadata do not align: {starts[-1]:,} vectors in "
                f"{len(starts) - 1:,} files, {ends[-1]:,} rows in {len(ends) - 1:,} files. Fetch the files "
                "that are missing or cut short."
            )
        join = "uid" if self._is_ours else self.join
        texts = pool.index.at(join, rows)
        hashes = pool.uid_hashes[rows] if join == "uid" else hashes_64(texts)
        found = names.find(hashes, texts)
        if len(rows) and (found < 0).all():
            log.warning(
                "none of %s rows from row %s (%s %r) has a vector in %s",
                *(f"{len(rows):,}", f"{rows[0]:,}", join, texts[0].as_py(), self.folder),
            )
        return found

    @cached_property
    def _is_ours(self) -> bool:
        """Whether `dbp export` wrote the metadata, and none of its columns is named."""
        names = Columns(list(self._metadata.values())).names
        return self.column not in names and {"row", "uid", "shard", "key"} <= set(names)

    @cached_property
    def _names(self) -> tuple[Names, np.ndarray]:
        """The names in the metadata, and where each file's begin."""
        files = list(self._metadata.values())
        columns, column = Columns(files), "uid" if self._is_ours else self.column
        if files and column not in columns.names:
            raise ConfigError(
                f"encoder {self.label}: column={column!r} is no column of {files[0]}. "
                f"{nearest(column, columns.names)}"
            )
        tables = (pq.read_table(file, columns=[column])[column] for file in files)
        hashes = [np.zeros(0, np.uint64), *(hashes_64(table) for table in tables)]
        return Names(np.concatenate(hashes), lambda places: columns.at(column, places)), columns.starts
