"""The encoder of a rehearsal: vectors come from the synthetic pool's own plan."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Int

from dbp.data.pool import Pool
from dbp.encoders.base import Encoder, Tower
from dbp.engine.stage import runtime
from dbp.pools.rehearsal import RehearsalPool


@dataclass(frozen=True)
class RehearsalVectors(Encoder):
    """Makes the vectors of a synthetic pool.

    Args:
        plan: The pool.
    """

    reads: ClassVar[bool] = True

    plan: RehearsalPool
    batch_size: int = runtime(8192)

    def identity(self) -> dict[str, Any]:
        return {}

    def load(self) -> Tower:
        raise AssertionError("synthetic vectors are made, not encoded")

    def read_part(
        self, side: Literal["image", "text"], pool: Pool, shard: int, rows: Int[np.ndarray, " m"]
    ) -> Float32[np.ndarray, "m d"]:
        return self.plan.vectors(shard, side)[rows - self.plan.span(shard).start]
