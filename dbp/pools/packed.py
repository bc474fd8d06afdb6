"""Pools in other layouts: Parquet with images, folders of image files, compressed tars.

Samples are copied once into plain webdataset tars in the store, byte for byte, and indexed there: so every stage
reads them at their place, at the rate of tars, and exports copy them. It costs one read and one copy of the pool,
which the plan counts; a part (a Parquet file, 10,000 images of a folder, a tar) that is finished survives a kill.
"""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow.parquet as pq

from dbp.data.pool import ShardFolder
from dbp.engine.parts import Parted
from dbp.engine.paths import expand_shards, is_remote, sizes_and_times
from dbp.engine.progress import log
from dbp.engine.stage import runtime
from dbp.engine.work import Part, Work
from dbp.errors import ConfigError, PoolError
from dbp.formats import image_folders, parquet_images
from dbp.formats.tars import write_members

SHARD_BYTES = 1 << 30  # of a tar, about
SHARD_SAMPLES = 10_000
Sample = tuple[str, dict[str, bytes]]  # a key, and members by extension


@dataclass(frozen=True)
class Pack(Parted):
    """Make a pool of another layout one of plain webdataset tars, with the samples in their order."""

    makes: ClassVar[type] = ShardFolder
    unit: ClassVar[str] = "files"
    keeps_parts: ClassVar[bool] = True

    def finish(self, work: Work, counts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        total = Counter[str]()
        for found in counts.values():
            total.update(found)
        total.update(self.left_out())
        for what in sorted(set(total) - {"samples", "shards", "bytes"}):
            if total[what]:
                log.warning("%s: %s %s", self.place, f"{total[what]:,}", what)
        return {name: count for name, count in total.items() if count}

    def left_out(self) -> Mapping[str, int]:
        """What belongs to no part, by kind."""
        return {}

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the pool lies, for messages."""

    @abstractmethod
    def size(self) -> tuple[int | None, float]:
        """Samples, where files say so at once, and bytes; for the plan."""


@dataclass(frozen=True)
class PackSamples(Pack):
    """A pool whose samples are read one by one."""

    @abstractmethod
    def samples(self, number: int, counts: Counter[str]) -> Iterator[Sample]:
        """The samples of a part; what is left out is counted."""

    def make(self, part: Part, folder: Path, /) -> dict[str, Any]:
        counts: Counter[str] = Counter()
        shards = shards_of(self.samples(part.number, counts), counts)
        for number, members in enumerate(shards):
            write_members(folder / f"{part.number:07d}-{number:05d}.tar", members)
        return {**counts, "shards": counts["shards"]}


def shards_of(samples: Iterator[Sample], counts: Counter[str]) -> Iterator[Iterator[tuple[str, bytes]]]:
    """The members of one tar after another; each is to be read to its end before the next."""
    following = next(samples, None)

    def members() -> Iterator[tuple[str, bytes]]:
        nonlocal following
        size = number = 0
        while following is not None and number < SHARD_SAMPLES and size < SHARD_BYTES:
            key, own = following
            for extension, content in own.items():
                yield f"{key}.{extension}", content
                size += len(content)
                counts["bytes"] += len(content)
            number += 1
            counts["samples"] += 1
            following = next(samples, None)

    while following is not None:
        counts["shards"] += 1
        yield members()


@dataclass(frozen=True)
class PackParquet(PackSamples):
    """Parquet files with a column of images; all other columns become each sample's json.

    Args:
        image: The column; null for the only one that holds bytes.
        files: Paths, brace ranges, wildcards; their names, sizes and times enter the key.
    """

    name: ClassVar[str] = "pack_parquet"

    image: str | None = None
    files: str | list[str] = runtime("")

    @property
    def place(self) -> str:
        return f"pool.files={self.files!r}"

    def paths(self) -> list[str]:
        return expand_shards(self.files, "pool.files", "the Parquet files", "parquet")

    def source(self) -> dict[str, Any]:
        files = self.paths()
        parquet_images.image_column(files[0], self.image)  # what cannot be read is said before any work
        return {"files": hashlib.sha256(json.dumps(sizes_and_times(files)).encode()).hexdigest()}

    def parts(self) -> list[Part]:
        return [Part(f"part-{n:07d}", n, float(os.path.getsize(file))) for n, file in enumerate(self.paths())]

    def samples(self, number: int, counts: Counter[str]) -> Iterator[Sample]:
        file = self.paths()[number]
        image = parquet_images.image_column(file, self.image)
        for key, members in parquet_images.read_samples(Path(file), image, counts):
            yield f"{number:05d}-{key}", members

    def size(self) -> tuple[int | None, float]:
        files = self.paths()
        return sum(pq.read_metadata(f).num_rows for f in files), float(sum(map(os.path.getsize, files)))


@dataclass(frozen=True)
class PackFolder(PackSamples):
    """A folder of image files, as `dbp.formats.image_folders` reads it.

    Args:
        folder: Names, sizes and times of its files enter the key.
    """

    name: ClassVar[str] = "pack_folder"

    folder: str = runtime("")

    @property
    def place(self) -> str:
        return f"pool.folder={self.folder!r}"

    @property
    def root(self) -> Path:
        return Path(self.folder).expanduser().absolute()

    @cached_property
    def units(self) -> list[image_folders.Unit]:
        """The parts; a folder is listed once, and not again for each of them."""
        return image_folders.units(self.root)

    def source(self) -> dict[str, Any]:
        _ = self.units  # what cannot be read is said before any work
        digest = hashlib.sha256()
        for file in image_folders.files_of(self.root):
            digest.update(json.dumps(file).encode())
        return {"files": digest.hexdigest()}

    def parts(self) -> list[Part]:
        return [Part(f"part-{n:07d}", n, float(unit.last - unit.first)) for n, unit in enumerate(self.units)]

    def samples(self, number: int, counts: Counter[str]) -> Iterator[Sample]:
        return image_folders.read_samples(self.units[number], counts)

    def left_out(self) -> Mapping[str, int]:
        return image_folders.left_out(self.root)

    def size(self) -> tuple[int | None, float]:
        rows = sum(unit.last - unit.first for unit in self.units)
        return rows, float(sum(size for _, size, _ in image_folders.files_of(self.root)))


OPENERS: dict[str, Callable[..., Any]] = {
    ".tar.gz": gzip.open, ".tgz": gzip.open, ".tar.bz2": bz2.open, ".tar.xz": lzma.open,
}  # fmt: skip


@dataclass(frozen=True)
class Unpack(Pack):
    """Compressed tars as they are inside, each under its own name.

    Args:
        broken_shards: As `dbp.pools.index.Index` takes it: of a file that is cut, what comes before the cut.
        shards: The compressed tars; their names, sizes and times enter the key.
    """

    name: ClassVar[str] = "unpack"
    unit: ClassVar[str] = "shards"

    broken_shards: Literal["error", "keep_readable"] = "error"
    shards: str | list[str] = runtime("")

    @property
    def place(self) -> str:
        return f"pool.shards={self.shards!r}"

    def paths(self) -> list[str]:
        found = expand_shards(self.shards)
        if plain := next((path for path in found if not is_compressed(path)), None):
            raise ConfigError(
                f"pool.shards names compressed tars and others, such as {plain}. Name them apart, as two pools, or "
                "decompress the compressed ones."
            )
        return found

    def source(self) -> dict[str, Any]:
        return {"shards": hashlib.sha256(json.dumps(sizes_and_times(self.paths())).encode()).hexdigest()}

    def parts(self) -> list[Part]:
        return [Part(f"part-{n:07d}", n, float(os.path.getsize(path))) for n, path in enumerate(self.paths())]

    def make(self, part: Part, folder: Path, /) -> dict[str, Any]:
        path, size = self.paths()[part.number], 0
        ending = next(ending for ending in OPENERS if path.lower().endswith(ending))
        opened = OPENERS[ending]
        with open(folder / f"{Path(path).name[: -len(ending)]}.tar", "wb") as plain:
            try:
                with opened(path, "rb") as packed:
                    while block := packed.read(1 << 20):
                        size += plain.write(block)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                said = f"shard {path} cannot be decompressed behind byte {size:,}: {error or 'it is cut'}"
                if self.broken_shards == "error":
                    raise PoolError(
                        f"{said}. Fetch it again, or set pool.broken_shards=keep_readable to use what comes before."
                    ) from error
                log.warning("%s", said)
        return {"shards": 1, "bytes": size}

    def size(self) -> tuple[int | None, float]:
        return None, float(sum(map(os.path.getsize, self.paths())))


def is_compressed(shard: str) -> bool:
    """Whether a path or pattern names compressed tars that are not streamed."""
    return not is_remote(shard) and shard.lower().endswith(tuple(OPENERS))
