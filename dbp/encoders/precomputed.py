"""Vectors that another tool made: a `.npy` of n rows in the pool's order, image and text apart."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dbp.encoders.base import Encoder, Tower, file_digest
from dbp.errors import ConfigError, WorldError
from dbp.stage import runtime


@dataclass(frozen=True)
class Precomputed(Encoder):
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
            name: file_digest(path, f"encoder {name}")
            for name, path in (("images", self.images), ("texts", self.texts))
            if path
        }

    def load(self) -> Tower:
        raise AssertionError("precomputed vectors are read, not encoded")

    def read(self, side: str, num_rows: int) -> np.ndarray:
        """The vectors of one side, memory-mapped.

        Raises:
            ConfigError: No file was given for this side.
            WorldError: The file does not hold one float row for each row of the pool.
        """
        path = self.images if side == "image" else self.texts
        if path is None:
            raise ConfigError(
                f"precomputed encoder {self.label!r} has no {side} vectors: set "
                f"{'images' if side == 'image' else 'texts'}=FILE.npy"
            )
        try:
            vectors = np.lib.format.open_memmap(path, mode="r")
        except (ValueError, EOFError, OSError) as error:
            raise WorldError(
                f"{path} is no .npy array ({error}). Raw memory maps, .npz archives and "
                "pickles are not read here; save it with numpy.save."
            ) from error
        shape, kind = vectors.shape, vectors.dtype.kind
        if len(shape) != 2 or shape[0] != num_rows or shape[1] == 0 or kind != "f":
            raise WorldError(
                f"{path} has shape {vectors.shape} of {vectors.dtype}; the pool has {num_rows:,} "
                "rows, and one float vector for each is needed, in its order"
            )
        return vectors
