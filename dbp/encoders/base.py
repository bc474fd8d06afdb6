"""What an encoder is: a frozen network with an image side, a text side, or both."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Float32, Int

from dbp.data.pool import Pool


@dataclass
class Tower:
    """A loaded encoder: what turns decoded samples into vectors."""

    preprocess: Callable[[Any], Any]  # a PIL picture -> Float[Tensor, "c h w"]
    encode_images: Callable[[Any], Float32[np.ndarray, "b d"]] | None
    encode_texts: Callable[[list[str]], Float32[np.ndarray, "b d"]] | None
    tokens: Callable[[Any, int], Any] | None = None  # pictures, layer -> Float[Tensor, "b t d"]
    sees: dict[str, Any] | None = None  # of a picture: its `size` in pixels, `mean` and `std`


@dataclass(frozen=True)
class Encoder(ABC):
    """A network's name and weights; subclasses say how it is loaded, or where its vectors are read."""

    reads: ClassVar[bool] = False  # whether vectors are read with `read_part`, not computed
    has_text: ClassVar[bool] = True  # whether it has a text tower
    lacks: ClassVar[str | None] = None  # why `read_part` may give NaN for a row, and that alone

    @abstractmethod
    def load(self) -> Tower:
        """Load the network, ready to encode."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides its vectors beside its fields: the digest of its weights."""

    def read_part(
        self, side: Literal["image", "text"], pool: Pool, shard: int, rows: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, "m d"]:
        """Vectors that another tool made, of rows that all lie in one shard of the pool."""
        raise TypeError(f"{type(self).__name__} computes its vectors")
