"""Super-batches in the loader: the chosen pairs alone, or all candidates with the vectors of a reference."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from training.feed.data import Pairs
from training.feed.order import Slice
from training.online.base import Choose
from training.online.reference import Reference


@dataclass(eq=False)
class ChosenPairs(Dataset):
    """This rank's share of what is chosen from each super-batch; nothing else is read or decoded.

    Args:
        choose: From a whole super-batch to the places of the batch.
    """

    pairs: Pairs
    choose: Choose
    rank: int
    world: int

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return self.pairs.size

    def __getitem__(self, offered: Slice) -> dict[str, Any]:
        """The pairs, with the candidates of this rank's share and the seconds that the choice took."""
        start = time.perf_counter()
        places = self.choose(offered)
        share = len(places) // self.world
        mine = offered.at(places[self.rank * share : (self.rank + 1) * share])
        seconds = time.perf_counter() - start
        price = {
            "candidates": len(offered.indices) // self.world,
            "samples_decoded": share,
            "choice_seconds": seconds,
        }
        return self.pairs[mine] | price


@dataclass(eq=False)
class CandidatePairs(Dataset):
    """This rank's share of each super-batch, with the vectors that the reference has of it."""

    pairs: Pairs
    reference: Reference

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return self.pairs.size

    def __getitem__(self, offered: Slice) -> dict[str, Any]:
        """The pairs, the rows that were asked for, and unit vectors of the reference where it has them."""
        found = self.pairs[offered]
        images, texts, is_scored = self.reference.of(found["rows"].numpy())
        asked = np.asarray(self.pairs.subset.rows[offered.indices], np.int64)
        more = {"asked": asked, "reference_images": images, "reference_texts": texts, "is_scored": is_scored}
        return found | {name: torch.from_numpy(values) for name, values in more.items()}
