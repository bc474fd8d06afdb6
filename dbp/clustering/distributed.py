"""Lloyd iterations over every row, by one process or by several that share the rows.

Each process adds up its parts exactly, the sums are added up over the processes exactly, so the centroids
are the same, bit for bit, for any number of processes. The state is written after each step: a fresh
start goes on from there, which is more reliable than mending a group of processes in place.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float32

from dbp.clustering import lloyd
from dbp.data.vectors import Vectors, in_blocks
from dbp.exact.products import BLOCK

STATE = "lloyd.npz"


def fit_all(
    first: Float32[np.ndarray, "k d"],
    vectors: Vectors,
    mask: Bool[np.ndarray, " n"],
    num_iterations: int,
    shared: Path,
    **speed: Any,
) -> lloyd.Fit:
    """Iterate over all rows of a mask, streamed from disk once a step.

    Under torchrun, or srun with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, each process reads every
    WORLD_SIZE-th part.

    Args:
        shared: Where the state is kept between steps.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    reduce = _reducer(rank, world) if world > 1 else (lambda values: values)

    def blocks() -> Iterator[np.ndarray]:
        for part in range(rank, vectors.num_parts, world):
            for _, rows in in_blocks(vectors.part_rows(part, mask), BLOCK):
                yield vectors.gather(rows)

    def keep(state: lloyd.Fit) -> None:
        if rank == 0:
            shared.mkdir(parents=True, exist_ok=True)
            beside = shared / f".{STATE}"
            with open(beside, "wb") as handle:
                np.savez(
                    handle,
                    centroids=state.centroids,
                    objective=state.objective,
                    empty=state.empty,
                    is_still=state.is_still,
                )
            beside.rename(shared / STATE)

    begun = _begun(shared)
    if world > 1:
        import torch.distributed as dist

        # Every process goes on from the step that the first one read, wherever it stood itself.
        box = [begun]
        dist.broadcast_object_list(box, src=0)
        begun = box[0]
    return lloyd.iterate(first, blocks, num_iterations, begun=begun, reduce=reduce, keep=keep, **speed)


def _begun(shared: Path) -> lloyd.Fit | None:
    try:
        with np.load(shared / STATE) as found:
            return lloyd.Fit(
                found["centroids"], found["objective"].tolist(), found["empty"].tolist(), bool(found["is_still"])
            )
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _reducer(rank: int, world: int) -> lloyd.Reduce:
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=rank, world_size=world)

    def reduce(values: np.ndarray) -> np.ndarray:
        total = torch.from_numpy(np.ascontiguousarray(values))
        dist.all_reduce(total)
        return total.numpy()

    return reduce
