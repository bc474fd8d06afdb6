"""The control of equal reading: batches drawn at random from super-batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.feed.order import Slice
from training.feed.subset import Subset
from training.online.base import ByRow, Choose, first, luck


@dataclass(frozen=True, kw_only=True)
class AtRandom(ByRow):
    """Go through the pool as fast as a method that chooses, and choose nothing."""

    def chooser(
        self, subset: Subset, seed: int, batch_size: int, beside: Mapping[str, Any]
    ) -> tuple[Choose, dict[str, Any]]:
        keys = subset.keys

        def choose(offered: Slice) -> Any:
            return first(luck(seed, offered, keys), batch_size)

        return choose, {}
