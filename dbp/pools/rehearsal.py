"""A synthetic pool of any size, to rehearse a curation before it is paid for.

Rows belong to concepts of very unequal size; a share of them are near duplicates of an earlier row of
their file. There are no images: the vectors are made when they are asked for, each file's by itself
from (seed, file), and the truth is known, so that what dedup finds can be scored.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int

from dbp.config import require
from dbp.data.pool import SCHEMA, Pool
from dbp.engine.parts import Parted
from dbp.engine.stage import Node
from dbp.engine.work import Part, Work
from dbp.formats.uid_pairs import hashes_64


@dataclass(frozen=True)
class RehearsalPool(Parted):
    """The rows of a synthetic pool: uids and sizes, no images.

    Args:
        rows: How many.
        rows_per_file: Rows that are made together.
        width: Numbers of a vector.
        concepts: Directions that rows scatter about; their sizes fall as 1 / (rank + 5).
        spread: Length of the scatter beside a concept's direction of length 1; cosines within a concept are
            about 1 / (1 + spread^2).
        duplicates: Share of rows that repeat an earlier row of their file.
        jitter: Length of the change that a duplicate has; its cosine to the original is about
            1 - jitter^2 / 2.
        seed: Of everything.
    """

    name: ClassVar[str] = "index"
    version: ClassVar[int] = 2  # 1: uid_hash was not the hash of the uid
    makes: ClassVar[type] = Pool
    content_named: ClassVar[bool] = True
    unit: ClassVar[str] = "files"
    keeps_parts: ClassVar[bool] = True

    rows: int
    rows_per_file: int
    width: int
    concepts: int
    spread: float
    duplicates: float
    jitter: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("rows", "rows_per_file", "width", "concepts"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(0 <= self.duplicates < 1, "duplicates", self.duplicates, "at least 0, below 1")
        require(self.spread > 0, "spread", self.spread, "above 0")
        require(0 <= self.jitter < 1, "jitter", self.jitter, "at least 0, below 1")

    def node(self) -> Node:
        """This pool as a config names it."""
        return self.bind()

    def parts(self) -> list[Part]:
        """One for each file."""
        return [Part(f"part-{n:07d}", n) for n in range(-(-self.rows // self.rows_per_file))]

    def span(self, file: int) -> range:
        """The rows of a file."""
        return range(file * self.rows_per_file, min((file + 1) * self.rows_per_file, self.rows))

    def make(self, part: Part, folder: Path, /) -> dict[str, Any]:  # type: ignore[override]
        span = self.span(part.number)
        rows = np.arange(span.start, span.stop, dtype=np.uint64)
        # Two rounds of an odd multiplier: distinct rows get distinct uids that look like no sequence.
        with np.errstate(over="ignore"):
            low = (rows + np.uint64(self.seed)) * np.uint64(0x9E3779B97F4A7C15)
            high = low ^ (low >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)
        words = np.stack([high, low], axis=1)
        digits = np.ascontiguousarray(words.astype(">u8")).tobytes().hex()
        uids = pa.array(np.frombuffer(digits.encode(), "S32").astype("U32"))
        n = len(rows)
        rng = np.random.default_rng([self.seed, part.number, 1])
        sizes = {name: rng.integers(100, 1500, n).astype(np.int32) for name in ("width", "height")}
        hashes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), n, [None, pa.py_buffer(words.tobytes())])
        texts = pa.array([""]).take(pa.array(np.zeros(n, int)))
        made: dict[str, Any] = {name: np.zeros(n, np.int8) for name in SCHEMA.names}
        made |= {"uid": uids, "key": uids, "uid_hash": hashes_64(uids), **sizes}
        made |= {"content_hash": hashes, "caption_hash": hashes, "reason": texts, "format": texts}
        made["shard"] = np.full(n, part.number, np.int32)
        pq.write_table(pa.table(made, schema=SCHEMA), folder / "index.parquet", compression="zstd")
        return {"rows": n}

    def finish(self, work: Work, counts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:  # type: ignore[override]
        content = hashlib.sha256(f"{self!r} {self.version}".encode()).hexdigest()
        return {"digest": content, "rows": self.rows, "files": len(counts)}

    def open(self, home: Path) -> Pool:  # type: ignore[override]
        return Pool.load(home, [], "txt", 1)

    # the truth

    def concept_of(self, file: int) -> Int[np.ndarray, " n"]:
        """The concept of each row of a file; a duplicate has its original's."""
        n = len(self.span(file))
        weights = 1.0 / (np.arange(self.concepts) + 5)
        drawn = np.random.default_rng([self.seed, file, 2]).random(n)
        concept = np.searchsorted(np.cumsum(weights) / weights.sum(), drawn)
        source = self.source_of(file)
        return np.minimum(concept, self.concepts - 1)[source]

    def source_of(self, file: int) -> Int[np.ndarray, " n"]:
        """For each row of a file the place of the row that it repeats; its own where it repeats none."""
        n = len(self.span(file))
        rng = np.random.default_rng([self.seed, file, 3])
        copies = rng.random(n) < self.duplicates
        copies[0] = False
        originals = np.flatnonzero(~copies)
        source = np.arange(n)
        earlier = np.searchsorted(originals, np.flatnonzero(copies))
        source[copies] = originals[(rng.random(len(earlier)) * earlier).astype(np.int64)]
        return source

    def vectors(self, file: int, side: str) -> Float32[np.ndarray, "n d"]:
        """The vectors of a file, of about unit length; captions scatter about their image."""
        n = len(self.span(file))
        directions = np.random.default_rng([self.seed, 4]).standard_normal((self.concepts, self.width), np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        rng = np.random.default_rng([self.seed, file, 5])
        root = np.float32(np.sqrt(self.width))
        found = rng.standard_normal((n, self.width), np.float32)
        found *= np.float32(self.spread) / root
        found += directions[self.concept_of(file)]
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        source = self.source_of(file)
        copies = np.flatnonzero(source != np.arange(n))
        change = rng.standard_normal((len(copies), self.width), np.float32)
        found[copies] = found[source[copies]] + change * (np.float32(self.jitter) / root)
        if side == "text":
            other = np.random.default_rng([self.seed, file, 6])
            found += other.standard_normal(found.shape, np.float32) * (np.float32(1.5) / root)
        return found
