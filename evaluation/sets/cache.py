"""What outlives a run on disk: the vectors that an evaluation has encoded, and the pictures that it has cropped.

With its vectors a rerun encodes only the rest: a new template, metric or bootstrap needs no GPU, and a killed
evaluation goes on in the middle of a task. 0.75 GB a checkpoint at width 256, 1.5 GB at 512, for DataComp's
732,000 pictures.

Crops are the exact bytes that went into the model. They depend on the picture and on the crop's size and
interpolation, never on a checkpoint: an evaluation of the next checkpoint reads a flat file instead of decoding.
150 kB a picture at 224 px, 110 GB for DataComp's 40 sets.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from dbp.data.pool import MOST_OPEN
from dbp.engine.disk import replacing
from evaluation.sets.tar_index import EvaluationDataError


class VectorCache:
    """The vectors of one checkpoint in one precision.

    Args:
        root: Holds a folder for each checkpoint.
        identity: All that the vectors depend on: the checkpoint, its config, its transform, the precision.
    """

    def __init__(self, root: Path, *identity: object) -> None:
        self.folder = root / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def file(self, name: str, start: int, stop: int) -> Path:
        """The file of places start..stop-1 of a set, whether it is there or not."""
        return self.folder / name / f"{start:08d}-{stop:08d}.npz"

    def load(self, name: str, start: int, stop: int) -> tuple[Float32[np.ndarray, "n d"], list[bytes]]:
        """Unit vectors of places start..stop-1 of a set, and sha256 of each picture's file.

        Raises:
            EvaluationDataError: The file is damaged.
        """
        arrays = _read(self.file(name, start, stop))
        return arrays["features"], [digest.tobytes() for digest in arrays["digests"]]

    def save(
        self, name: str, start: int, stop: int, features: Float32[np.ndarray, "n d"], digests: Sequence[bytes]
    ) -> None:
        """Keep what `load` gives."""
        with replacing(self.file(name, start, stop)) as file:
            np.savez(file, features=features, digests=_as_array(digests))

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


class CropCache:
    """The cropped pictures of one set under one transform, a pair of files for each chunk of them.

    Args:
        folder: Named by whoever makes this after all that the bytes depend on.
        chunk_size: Pictures of a chunk; it may differ from run to run, files say where they begin.
    """

    def __init__(self, folder: Path, chunk_size: int) -> None:
        self.folder, self.chunk_size = folder, chunk_size
        self._open: dict[int, tuple[np.ndarray, np.ndarray] | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a spawned worker maps files of its own

    def holds(self, start: int) -> bool:
        """Whether the chunk that begins at a place is kept."""
        return self._path(start, "digests").exists()

    def read(self, place: int) -> tuple[Any, bytes] | None:
        """A picture's bytes and its file's digest, if its chunk is kept."""
        import torch

        start = place - place % self.chunk_size
        if start not in self._open:
            while len(self._open) >= MOST_OPEN:  # a mapped file counts as an open one
                self._open.pop(next(iter(self._open)))
            pixels, digests = self._path(start, "pixels"), self._path(start, "digests")
            self._open[start] = (np.load(pixels, mmap_mode="r"), np.load(digests)) if self.holds(start) else None
        if (found := self._open[start]) is None:
            return None
        pixels, digests = found
        return torch.from_numpy(pixels[place - start].copy()), digests[place - start].tobytes()

    def save(self, start: int, pixels: np.ndarray, digests: Sequence[bytes]) -> None:
        """Keep the chunk that begins at a place; `pixels` is `UInt8[n 3 s s]`."""
        # The digests last: a chunk is there when they are.
        for name, array in (("pixels", pixels), ("digests", _as_array(digests))):
            with replacing(self._path(start, name)) as file:
                np.save(file, array)

    def _path(self, start: int, what: str) -> Path:
        return self.folder / f"{start:08d}-{self.chunk_size}.{what}.npy"


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise EvaluationDataError(
            f"{path} holds vectors of an earlier run and cannot be read ({error}). Remove it and run "
            "again: they are encoded again."
        ) from error


def _as_array(digests: Sequence[bytes]) -> UInt8[np.ndarray, "n 32"]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
