"""The pool: shards and their index, read at any row."""

import glob
import hashlib
import json
import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, UInt64
from PIL import Image

from dbp.data.caption_text import caption_from, json_field
from dbp.data.columns import Columns
from dbp.data.images import DROP, decode_rgb
from dbp.engine.paths import is_remote, relative_names
from dbp.errors import PoolError

# Shards that a process keeps open. Many systems let a process open 256 or 1,024 files in all, and a loader's
# workers share their pool with an evaluation's; opening one again costs microseconds beside reading a picture.
MOST_OPEN = 64
SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("uid_hash", pa.uint64()),
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("image_offset", pa.int64()),
        ("image_bytes", pa.int64()),
        ("caption_offset", pa.int64()),
        ("caption_bytes", pa.int64()),
        ("caption_length", pa.int32()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("orientation", pa.int8()),
        ("reason", pa.string()),
        ("content_hash", pa.binary(16)),
        ("caption_hash", pa.binary(16)),
    ]
)


What = Literal["image", "caption"]
HASHES: dict[What, str] = {"image": "content_hash", "caption": "caption_hash"}


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards that a stage of ours wrote."""

    folder: Path

    @property
    def pattern(self) -> str:
        """The wildcard that names the shards: in one folder, or in those of a stage's parts."""
        return f"{glob.escape(str(self.folder))}/*/*.tar"

    @property
    def shards(self) -> list[str]:
        return [str(path) for path in sorted(self.folder.glob("*/*.tar"))]

    @classmethod
    def load(cls, folder: Path) -> "ShardFolder":
        return cls(folder)


@dataclass(frozen=True)
class Pool:
    """The whole candidate set: rows 0..n-1 in shard order.

    Laws: each sample of each shard is one row, in order; equal content has an equal digest wherever the shards lie;
    a row's bytes are read at its offsets and compared with their recorded length and hash. Columns of the index are
    read when they are asked for. A pool of metadata alone has a column `text` and no shards.
    """

    index: Columns
    shards: list[str]
    digest: str
    caption_field: str
    max_pixels: int
    background: str = DROP  # behind transparent pixels, wherever images are decoded
    _handles: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def load(cls, folder: Path, shards: list[str], caption: str, max_pixels: int, background: str = DROP) -> "Pool":
        """Open an index beside the shards it describes."""
        manifest = json.loads((folder / "manifest.json").read_text())
        index = Columns(sorted(folder.glob("part-*/index.parquet")))
        return cls(index, shards, manifest["digest"], caption, max_pixels, background)

    @property
    def num_rows(self) -> int:
        return self.index.num_rows

    @property
    def table(self) -> pa.Table:
        """The whole index in memory; for pools that fit."""
        return self.index.table()

    def column(self, name: str, rows: Int[np.ndarray, " m"] | None = None) -> np.ndarray:
        """One column of the index over all rows, or at some."""
        if rows is None:
            return self.index.whole(name)
        return self.index.at(name, rows).to_numpy(zero_copy_only=False)

    @cached_property
    def uid_hashes(self) -> UInt64[np.ndarray, " n"]:
        return self.column("uid_hash")

    @cached_property
    def is_valid(self) -> Bool[np.ndarray, " n"]:
        """Rows with an image of sound header and a caption."""
        codes, texts = self.index.codes("reason")
        return np.asarray(codes == texts.index("")) if "" in texts else np.zeros(len(codes), bool)

    def uids(self, rows: Int[np.ndarray, " m"] | None = None) -> list[str]:
        """The names of rows at the border; of all rows when none are given."""
        every = np.arange(self.num_rows) if rows is None else rows
        return self.index.at("uid", every).to_pylist()

    def hash_words(self, name: str, rows: Int[np.ndarray, " m"]) -> UInt64[np.ndarray, "m 2"]:
        """A 128-bit hash column at some rows, as two 64-bit numbers each."""
        return self.index.words(name, rows)

    @cached_property
    def has_texts(self) -> bool:
        """Whether captions lie in the index and not in the shards."""
        return "text" in self.index.names

    def row_of(self, uid: str) -> int:
        """The row that a uid names; where uids repeat, SHARD/KEY and row:N name it, too.

        Raises:
            PoolError: No row, or more than one, has this uid.
        """
        rows = np.flatnonzero(self.uid_hashes == hash_64(uid.encode()))
        rows = rows[np.array([found == uid for found in self.uids(rows)], bool)]
        if len(rows) == 0 and "/" in uid:
            rows = self._rows_at(uid)
        if len(rows) == 0 and uid.startswith("row:") and uid[4:].isdecimal():
            rows = np.array([int(uid[4:])])[: int(uid[4:]) < self.num_rows]
        if len(rows) == 1:
            return int(rows[0])
        if len(rows) == 0:
            raise PoolError(
                f"the pool has no sample {uid!r} among its {self.num_rows:,}. Give a uid "
                "as pool.uid makes it, or SHARD/KEY."
            )
        where = [
            f"{self._shard_name(int(r))}/{self.column('key', rows[i : i + 1])[0]} (row:{r})"
            for i, r in enumerate(rows[:5])
        ]
        raise PoolError(f"{len(rows)} samples are named {uid!r}: {', '.join(where)}. Give SHARD/KEY, or row:N.")

    def _rows_at(self, place: str) -> Int[np.ndarray, " m"]:
        """The rows that SHARD/KEY names; the shard by its file's name, or with its folders where names repeat."""
        found = [np.zeros(0, np.int64)]
        for number, (path, name) in enumerate(zip(self.shards, self.shard_names, strict=True)):
            stems = {Path(path).stem, name.removesuffix(".tar")}
            for key in [place[len(stem) + 1 :] for stem in stems if place.startswith(f"{stem}/")]:
                own = np.flatnonzero(self.column("shard") == number)
                found.append(own[self.column("key", own) == key])
        return np.unique(np.concatenate(found))

    @cached_property
    def shard_names(self) -> list[str]:
        """A name for each shard that no other has: its file's, or its path below the folder that all share."""
        names = [Path(path).name for path in self.shards]
        return names if len(set(names)) == len(names) else relative_names(self.shards)

    def _shard_name(self, row: int) -> str:
        shard = int(self.column("shard")[row])
        return self.shard_names[shard].removesuffix(".tar") if shard < len(self.shards) else str(shard)

    def image_bytes(self, row: int) -> bytes:
        """A row's picture as it lies in its shard."""
        content = self._read(row, "image")
        self.check("image", np.array([row]), [content])
        return content

    def image(self, row: int) -> Image.Image:
        """A row's picture, decoded to RGB.

        Raises:
            Undecodable: The pixels cannot be read.
        """
        return self.decode(self.image_bytes(row))

    def decode(self, content: bytes) -> Image.Image:
        """A picture's file as RGB, as every stage that works on this pool sees it.

        Raises:
            Undecodable: The pixels cannot be read.
        """
        return decode_rgb(content, self.max_pixels, self.background)

    def caption(self, row: int) -> str:
        """A row's caption, empty where it cannot be read; see `dbp.data.caption_text`."""
        return self.captions(np.array([row]))[0]

    def captions(self, rows: Int[np.ndarray, " m"], verify: bool = True) -> list[str]:
        """The captions of rows, in their order.

        Args:
            verify: Compare with the hashes of the index, which costs a look into each part of it that has a row.
        """
        if self.has_texts:
            return [text or "" for text in self.index.at("text", rows).to_pylist()]
        found = [self._read(int(row), "caption") for row in rows]
        texts = [caption_from(content, self.caption_field) or "" for content in found]
        if verify:
            self.check("caption", rows, texts)
        return texts

    def hashes(self, what: What, rows: Int[np.ndarray, " m"]) -> UInt64[np.ndarray, " m"]:
        """The first 64 bits of the hash of each row's image, or of its caption."""
        every = self.index.at(HASHES[what], rows).to_pylist()
        return np.array([int.from_bytes(digest[:8], "little") for digest in every], np.uint64)

    def check(
        self,
        what: What,
        rows: Int[np.ndarray, " m"],
        found: Sequence[bytes | str],
        hashes: UInt64[np.ndarray, " m"] | None = None,
    ) -> None:
        """Compare images or captions of rows, as they were read, with the index.

        Args:
            hashes: As the method of that name gives them, where they are at hand.

        Raises:
            PoolError: A shard holds other bytes than when it was indexed.
        """
        known = self.hashes(what, rows) if hashes is None else hashes
        bytes_of = (part if isinstance(part, bytes) else part.encode("utf-8", "replace") for part in found)
        now = np.array([int.from_bytes(digest_16(content)[:8], "little") for content in bytes_of], np.uint64)
        if len(wrong := np.flatnonzero(now != known)):
            row = int(rows[wrong[0]])
            raise PoolError(
                f"shard {self.shards[int(self.column('shard', rows[wrong[:1]])[0])]} holds another {what} of "
                f"{self.uids(np.array([row]))[0]!r} than when it was indexed: its bytes were overwritten since. "
                "Restore the shard, or run again to index it anew (touch the file if its time was set back, too)."
            )

    def _read(self, row: int, what: str) -> bytes:
        if not self.shards:
            raise PoolError(
                f"row {row} has no {what} here: this pool is metadata alone. Give the tars with pool.shards."
            )
        columns = self.columns
        shard, offset, length = (
            int(columns["shard"][row]),
            int(columns[f"{what}_offset"][row]),
            int(columns[f"{what}_bytes"][row]),
        )
        content = os.pread(self.handle(shard), length, offset)
        if len(content) != length:
            raise PoolError(
                f"shard {self.shards[shard]} ends before the {what} of {self.uids(np.array([row]))[0]!r}"
                ": it is shorter than when it was indexed. Restore the shard, or run again to index it anew."
            )
        return content

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Where the members of all rows lie: shard, offset and bytes of picture and caption."""
        names = ("shard", "image_offset", "image_bytes", "caption_offset", "caption_bytes")
        return {name: self.column(name) for name in names}

    def handle(self, shard: int) -> int:
        """An open file of a shard, for `os.pread`; this process' own."""
        process = os.getpid()  # a forked or spawned loader worker opens its own
        if self._handles.get(-1) != process:
            self._handles.clear()
            self._handles[-1] = process
            weakref.finalize(self, _close, self._handles)  # a dropped pool keeps no shard open
        if shard not in self._handles:
            if shard >= len(self.shards):
                raise PoolError(
                    f"shard number {shard} of the index is not among the {len(self.shards):,} that pool.shards "
                    "names. Restore the shards, or run again to index what is there."
                )
            path = self.shards[shard]
            if is_remote(path):
                raise PoolError(
                    f"shard {path} is streamed and cannot be read at an offset, which this stage needs. "
                    "Copy the shards to a file system and give their paths in pool.shards."
                )
            for number in [n for n in self._handles if n >= 0][: max(len(self._handles) - MOST_OPEN, 0)]:
                os.close(self._handles.pop(number))  # the one that was opened first
            self._handles[shard] = open_known(path)
        return self._handles[shard]

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        state["_handles"] = {}
        return state


def _close(handles: dict[int, int]) -> None:
    """Close the shards of a pool that is dropped, in the process that opened them."""
    if handles.pop(-1, None) == os.getpid():
        for handle in handles.values():
            os.close(handle)
    handles.clear()


def open_known(shard: str) -> int:
    """Open a shard that the index knows.

    Raises:
        PoolError: It is missing, or may not be read.
    """
    try:
        return os.open(shard, os.O_RDONLY)
    except OSError as error:
        raise PoolError(
            f"shard {shard} cannot be opened ({error.strerror}) although the index knows it. Restore the "
            "shard, or correct pool.shards."
        ) from error


def hash_64(content: bytes) -> int:
    """The first 8 bytes of a BLAKE2b digest, as an unsigned integer: what random keys start from."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def digest_16(content: bytes) -> bytes:
    """A 128-bit content hash."""
    return hashlib.blake2b(content, digest_size=16).digest()


def uid_from(content: bytes, field_: str) -> str | None:
    """A sample's name from `json:FIELD`: text, or a finite number; None where there is none."""
    value, _ = json_field(content, field_)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    is_name = isinstance(value, str | int) or math.isfinite(value)
    return str(value) if is_name else None
