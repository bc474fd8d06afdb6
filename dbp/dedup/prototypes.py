"""Prototypes of concepts, as vectors beside those of images, and the cosine of each image to each of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Int32

from dbp.config import require
from dbp.data.embeddings import Embeddings
from dbp.data.vectors import in_blocks
from dbp.device import pick_device
from dbp.encoders.base import Encoder
from dbp.engine.parts import Parted
from dbp.engine.paths import file_digest
from dbp.engine.stage import Stage, runtime
from dbp.engine.work import Part, Work
from dbp.errors import WorldError
from dbp.exact.products import BLOCK, widened
from dbp.formats.target_vectors import Targets

SETTING = "dedup.concepts"
MOST = 250  # concepts: each has a reason of its own in the decision table
UNITS = 2.0**30  # cosines are stored in whole units of 2^-30, so that sums of them depend on no order
Concepts = tuple[str, ...] | str


@dataclass(frozen=True)
class Prototypes:
    """One unit vector of each concept, on the grid of 2^-24."""

    names: list[str]
    vectors: Float32[np.ndarray, "c d"]

    @classmethod
    def load(cls, folder: Path) -> "Prototypes":
        return cls(json.loads((folder / "names.json").read_text()), np.load(folder / "vectors.npy"))


@dataclass(frozen=True)
class EncodePrototypes(Stage):
    """The mean of each concept's captions in an encoder's space, or vectors of a file.

    Args:
        encoder: Of the images that are compared; not read where `concepts` is a file of vectors.
        templates: A concept's captions: {c} stands for its name.
        concepts: Names, a text file with one a line, or a `.npy` of one vector a concept.
    """

    name: ClassVar[str] = "prototypes"
    makes: ClassVar[type] = Prototypes

    encoder: Encoder
    templates: tuple[str, ...]
    concepts: Concepts | None = runtime(None)

    def __post_init__(self) -> None:
        if not self.is_file_of_vectors:
            must = "one with a text tower, such as openclip_b32, or give dedup.concepts=FILE.npy"
            named = type(self.encoder).__name__
            require(self.encoder.has_text and not self.encoder.reads, "encoder", named, must)
            are_whole = bool(self.templates) and all("{c}" in text for text in self.templates)
            require(are_whole, "templates", list(self.templates), "texts with {c} in the place of the concept")

    @property
    def is_file_of_vectors(self) -> bool:
        return isinstance(self.concepts, str) and self.concepts.endswith(".npy")

    def unread(self) -> set[str]:
        return {"encoder", "templates"} if self.is_file_of_vectors else set()

    def identity(self) -> dict[str, Any]:
        return {"concepts": self._targets().identity() if self.is_file_of_vectors else self.names()}

    def _targets(self) -> Targets:
        return Targets(Path(str(self.concepts)), SETTING)

    def names(self) -> list[str]:
        """The concepts' names.

        Raises:
            ConfigError: None are given, there are fewer than two, too many, or two of one name.
            WorldError: The file is not text in UTF-8.
        """
        must = "names of concepts, a text file with one a line, or a .npy of their vectors"
        require(bool(self.concepts), SETTING, self.concepts, must)
        if self.is_file_of_vectors:
            found = [f"concept {number}" for number in range(self._targets().num_rows)]
        elif isinstance(self.concepts, str):
            file_digest(self.concepts, SETTING)
            try:
                lines = Path(self.concepts).read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise WorldError(
                    f"{SETTING}: {self.concepts} is not text in UTF-8: {error}. Convert it."
                ) from error
            found = [text for line in lines if (text := line.strip())]
        else:
            found = list(self.concepts or ())
        require(2 <= len(found) <= MOST, SETTING, self.concepts, f"2 to {MOST} concepts; it has {len(found):,}")
        twice = next((name for at, name in enumerate(found) if name in found[:at]), None)
        require(twice is None, SETTING, self.concepts, f"different names; {twice!r} occurs twice")
        return found

    def run(self, work: Work) -> dict[str, Any]:
        names = self.names()
        if self.is_file_of_vectors:
            vectors = np.concatenate(list(self._targets().chunks()))
        else:
            encode: Any = self.encoder.load().encode_texts
            each = [_unit(encode([text.replace("{c}", name) for text in self.templates])) for name in names]
            means = _unit(np.stack([own.mean(axis=0) for own in each]))
            vectors = (np.rint(means * 2.0**24) / 2.0**24).astype(np.float32)
        np.save(work.folder / "vectors.npy", vectors)
        (work.folder / "names.json").write_text(json.dumps(names))
        return {"concepts": len(names)}


def _unit(vectors: Any) -> np.ndarray:
    precise = np.asarray(vectors, np.float64)
    return precise / np.linalg.norm(precise, axis=-1, keepdims=True)


@dataclass(frozen=True)
class PrototypeCosines:
    """For each row of the pool its cosine to each prototype, in units of 2^-30; 0 where it has no vector."""

    names: list[str]
    cosines: Int32[np.ndarray, "n c"]

    @classmethod
    def load(cls, folder: Path) -> "PrototypeCosines":
        names = json.loads((folder / "names.json").read_text())
        return cls(names, np.load(folder / "cosines.npy", mmap_mode="r"))


@dataclass(frozen=True)
class CompareWithPrototypes(Parted):
    """The exact cosine of every image to every prototype: 2 n c d operations in float64, 4 n c bytes on disk."""

    name: ClassVar[str] = "cosines"
    needs: ClassVar[tuple[str, ...]] = ("pool", "image", "prototypes")
    makes: ClassVar[type] = PrototypeCosines

    device: str = runtime("auto")

    def parts(self, image: Embeddings, prototypes: Prototypes, **inputs: Any) -> list[Part]:
        """One for each part of the images' embeddings."""
        if image.width:
            width = prototypes.vectors.shape[1]
            must = f"vectors of {image.width:,} numbers, as encoder.dedup gives; they have {width:,}"
            require(width == image.width, SETTING, prototypes.names[:3], must)
        return [Part(f"part-{number:07d}", number) for number in range(len(image.parts))]

    def make(  # type: ignore[override]
        self, part: Part, folder: Path, image: Embeddings, prototypes: Prototypes, **inputs: Any
    ) -> dict[str, Any]:
        import torch

        rows, device = image.part_rows(part.number), pick_device(self.device)
        lengths = np.linalg.norm(prototypes.vectors.astype(np.float64), axis=1)
        columns = torch.from_numpy(prototypes.vectors).to(device, torch.float64).T
        found = np.empty((len(rows), len(prototypes.names)), np.int32)
        for start, own in in_blocks(rows, BLOCK):
            # Both factors lie on the grid of 2^-24, so this product has no rounding, whatever its order.
            products = (widened(image.gather(own)).to(device, torch.float64) @ columns).cpu().numpy()
            cosines = np.clip(products / np.outer(image.norms(own), lengths), -1, 1)
            found[start : start + len(own)] = np.rint(cosines * UNITS)
        np.save(folder / "rows.npy", rows)
        np.save(folder / "cosines.npy", found)
        return {"rows": len(rows)}

    def finish(  # type: ignore[override]
        self, work: Work, counts: Mapping[str, dict[str, Any]], pool: Any, prototypes: Prototypes, **inputs: Any
    ) -> dict[str, Any]:
        shape = (pool.num_rows, len(prototypes.names))
        every = np.lib.format.open_memmap(work.folder / "cosines.npy", "w+", np.int32, shape)
        for name in counts:
            every[np.load(work.shared / name / "rows.npy")] = np.load(work.shared / name / "cosines.npy")
        every.flush()
        (work.folder / "names.json").write_text(json.dumps(prototypes.names))
        return {"rows": sum(found["rows"] for found in counts.values()), "concepts": len(prototypes.names)}
