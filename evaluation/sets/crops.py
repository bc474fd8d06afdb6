"""Cropped pictures kept on disk: the exact bytes that went into the model, read instead of decoded.

They depend on the picture and on the crop's size and interpolation, never on a checkpoint: an evaluation
of the next checkpoint reads a flat file. 150 kB a picture at 224 px, 110 GB for DataComp's 40 sets.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dbp.engine.disk import replacing


class Crops:
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
            self._open[start] = self._map(start)
        if (found := self._open[start]) is None:
            return None
        pixels, digests = found
        return torch.from_numpy(pixels[place - start].copy()), digests[place - start].tobytes()

    def save(self, start: int, pixels: np.ndarray, digests: Sequence[bytes]) -> None:
        """Keep the chunk that begins at a place; `pixels` is `UInt8[n 3 s s]`."""
        # The digests last: a chunk is there when they are.
        digest_array = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)
        for name, array in (("pixels", pixels), ("digests", digest_array)):
            with replacing(self._path(start, name)) as file:
                np.save(file, array)

    def _map(self, start: int) -> tuple[np.ndarray, np.ndarray] | None:
        if not self.holds(start):
            return None
        return np.load(self._path(start, "pixels"), mmap_mode="r"), np.load(self._path(start, "digests"))

    def _path(self, start: int, what: str) -> Path:
        return self.folder / f"{start:08d}-{self.chunk_size}.{what}.npy"
