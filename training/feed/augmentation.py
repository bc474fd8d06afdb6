"""How a picture is brought to training size and changed, with its own random numbers.

Two steps: `fit` turns one picture into a square of the training size; `move` changes a whole batch
of squares. Where `fit` draws nothing, its result can be cached. The numbers come from
`training.feed.order.draws`, never from a generator with state, so that a sample of an epoch is changed
in the same way in each arm, by each worker, after each resume.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import Float64, UInt8

from dbp.config import require
from dbp.data.images import DROP

if TYPE_CHECKING:  # numba is heavy, and plans need none of it
    from training.feed.decoding import Axis

ATTEMPTS = 10  # at a crop that lies within the picture


@dataclass(frozen=True)
class Augmentation(ABC):
    """A recipe from pictures to what the model sees, before normalisation.

    Args:
        decode: `reference`, open_clip's pixels bit by bit; `fast`, another recipe: JPEGs decoded
            small where that is enough, area resize. Table in `training/feed/decoding.py`. It changes
            pixels, so arms that are compared must share it; it is part of the key.
    """

    num_draws: ClassVar[int]
    is_fit_random: ClassVar[bool]

    decode: Literal["reference", "fast"] = field(default="reference", kw_only=True)

    @abstractmethod
    def cut(self, width: int, height: int, size: int, draws: Float64[np.ndarray, " d"]) -> "tuple[Axis, Axis]":
        """Which part of a picture of so many pixels becomes the square, across and down."""

    def fit(
        self, content: bytes, size: int, draws: Float64[np.ndarray, " d"], max_pixels: int, background: str = DROP
    ) -> UInt8[np.ndarray, "3 s s"]:
        """A picture, from the bytes of its file, at training size.

        Raises:
            Undecodable: The pixels cannot be read.
        """
        from training.feed.decoding import decode, resize

        cut = partial(self.cut, size=size, draws=draws)
        return resize(decode(content, max_pixels, self.decode, cut, background))

    def move(
        self, pictures: UInt8[np.ndarray, "b 3 s s"], draws: Float64[np.ndarray, "b d"]
    ) -> UInt8[np.ndarray, "b 3 s s"]:
        """The batch, changed; by default as it is."""
        return pictures


@dataclass(frozen=True)
class RandomResizedCrop(Augmentation):
    """Cut out a random part of random shape and resize it, bicubic, to the training size.

    Source: open_clip's training transform (torchvision's RandomResizedCrop, aspect ratio in
    [3/4, 4/3], scale 0.9 to 1.0). Departure: random numbers are keyed by sample and epoch.
    """

    num_draws: ClassVar[int] = 2 * ATTEMPTS + 2
    is_fit_random: ClassVar[bool] = True

    scale_low: float  # smallest share of the picture's area
    scale_high: float  # largest

    def __post_init__(self) -> None:
        require(0 < self.scale_low <= 1, "scale_low", self.scale_low, "above 0 and at most 1")
        low, high = self.scale_low, self.scale_high
        require(low <= high <= 1, "scale_high", high, f"from scale_low={low} to 1")

    def cut(self, width: int, height: int, size: int, draws: Float64[np.ndarray, " d"]) -> "tuple[Axis, Axis]":
        from training.feed.decoding import Axis

        left, top, w, h = self.box(width, height, draws)
        return Axis(left, w, size, 0, size), Axis(top, h, size, 0, size)

    def box(self, width: int, height: int, draws: Float64[np.ndarray, " d"]) -> tuple[int, int, int, int]:
        """Left, top, width and height of the part to cut out, in pixels."""
        low, high = math.log(3 / 4), math.log(4 / 3)
        for attempt in range(ATTEMPTS):
            share = self.scale_low + draws[2 * attempt] * (self.scale_high - self.scale_low)
            ratio = math.exp(low + draws[2 * attempt + 1] * (high - low))
            area = width * height * share
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(draws[-2] * (width - w + 1)), int(draws[-1] * (height - h + 1)), w, h
        # The picture is narrower or wider than any ratio allowed: its middle, as torchvision does.
        w, h = min(width, round(height * (4 / 3))), min(height, round(width / (3 / 4)))
        return (width - w) // 2, (height - h) // 2, w, h


@dataclass(frozen=True)
class Shift(Augmentation):
    """Resize the shorter side, cut out the middle, and move it; the edges are continued."""

    num_draws: ClassVar[int] = 2
    is_fit_random: ClassVar[bool] = False

    pixels: int  # largest shift to each side, in pixels of the training size; 0 for none

    def __post_init__(self) -> None:
        require(self.pixels >= 0, "pixels", self.pixels, "0 or more")

    def cut(self, width: int, height: int, size: int, draws: Float64[np.ndarray, " d"]) -> "tuple[Axis, Axis]":
        from training.feed.decoding import Axis

        def axis(length: int) -> Axis:
            # Rounded as torchvision's resize and center_crop do: down, and half to even.
            resized = size * length // min(width, height)
            return Axis(0, length, resized, round((resized - size) / 2), size)

        return axis(width), axis(height)

    def move(
        self, pictures: UInt8[np.ndarray, "b 3 s s"], draws: Float64[np.ndarray, "b d"]
    ) -> UInt8[np.ndarray, "b 3 s s"]:
        if self.pixels == 0:
            return pictures
        size = pictures.shape[-1]
        shifts = (draws * (2 * self.pixels + 1)).astype(np.int64).T - self.pixels  # down, right
        y, x = np.clip(np.arange(size) - shifts[:, :, None], 0, size - 1)
        batch = np.arange(len(pictures))[:, None, None]
        # Indices beside the slice come first in the result: b, y, x, channel.
        moved = pictures[batch, :, y[:, :, None], x[:, None, :]]
        return np.ascontiguousarray(moved.transpose(0, 3, 1, 2))
