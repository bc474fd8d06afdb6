"""The processes that train one model together, one for each device.

They are started from outside, by `torchrun` or `srun`; nothing here starts a process.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped


@dataclass(frozen=True)
class Ranks:
    """This process among all of them.

    Collectives go over the CPU (gloo) and never make a GPU wait; each rank must call them in the
    same order. On a single rank they give back what they were given.

    Args:
        rank: Of this process, from 0.
        size: How many there are.
        local_rank: Of this process among those of its machine: the GPU that it takes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def sum(self, numbers: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
        """Sums over ranks, number by number; integers wrap at 64 bits."""
        if self.size == 1:
            return numbers
        import torch
        from torch.distributed import all_reduce

        kind = np.int64 if np.issubdtype(numbers.dtype, np.integer) else np.float64
        total = torch.from_numpy(np.array(numbers).astype(kind))
        all_reduce(total)
        return total.numpy().astype(numbers.dtype)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on each of them; plain values only."""
        if self.size == 1:
            return [value]
        from torch.distributed import all_gather_object

        values: list[Any] = [None] * self.size
        all_gather_object(values, value)
        return values
