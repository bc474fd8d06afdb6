"""Vectors that outlive a run: what an evaluation has encoded, so that a rerun encodes the rest.

A new template, metric or bootstrap then needs no GPU, and a killed evaluation goes on in the middle of
a task. 0.75 GB a checkpoint at width 256, 1.5 GB at 512, for DataComp's 732,000 pictures.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dbp.engine.disk import replacing
from evaluation.sets.tar_index import EvaluationDataError


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of a chunk of pictures, and sha256 of each picture's file."""

    features: Float32[np.ndarray, "n d"]
    digests: list[bytes]


class Kept:
    """The vectors of one checkpoint in one precision.

    Args:
        folder: Named after the checkpoint, its config, its transform and the precision.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, root: Path, *identity: object) -> "Kept":
        """In a folder under `root` that is named by all that the vectors depend on."""
        return cls(root / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16])

    def holds(self, name: str, start: int, stop: int) -> bool:
        """Whether the vectors of places start..stop-1 of a set are kept."""
        return self._chunk(name, start, stop).exists()

    def load(self, name: str, start: int, stop: int) -> Vectors:
        """The vectors of places start..stop-1 of a set.

        Raises:
            EvaluationDataError: The file is damaged.
        """
        arrays = _read(self._chunk(name, start, stop))
        return Vectors(arrays["features"], [digest.tobytes() for digest in arrays["digests"]])

    def save(self, name: str, start: int, stop: int, vectors: Vectors) -> None:
        """Keep the vectors of places start..stop-1 of a set."""
        digests = np.frombuffer(b"".join(vectors.digests), np.uint8).reshape(stop - start, -1)
        with replacing(self._chunk(name, start, stop)) as file:
            np.savez(file, features=vectors.features, digests=digests)

    def load_texts(self) -> dict[str, Float32[np.ndarray, " d"]]:
        """The vectors of all texts that are kept.

        Raises:
            EvaluationDataError: The file is damaged.
        """
        path = self.folder / "texts.npz"
        if not path.exists():
            return {}
        arrays = _read(path)
        return dict(zip(json.loads(arrays["texts"].tobytes()), arrays["vectors"], strict=True))

    def save_texts(self, texts: Mapping[str, Float32[np.ndarray, " d"]]) -> None:
        """Keep these, in place of all kept before."""
        names = np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)
        with replacing(self.folder / "texts.npz") as file:
            np.savez(file, texts=names, vectors=np.stack(list(texts.values())))

    def _chunk(self, name: str, start: int, stop: int) -> Path:
        return self.folder / name / f"{start:08d}-{stop:08d}.npz"


def rows_name(rows: Sequence[int], num_rows: int) -> str:
    """Name a choice of rows: `all`, or a digest of them."""
    if len(rows) == num_rows:
        return "all"
    return hashlib.sha256(np.asarray(rows, np.int64).tobytes()).hexdigest()[:16]


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise EvaluationDataError(
            f"{path} holds vectors of an earlier run and cannot be read ({error}). Remove it and run "
            "again: they are encoded again."
        ) from error
