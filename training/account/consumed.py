"""The proof in the log of what a run was fed: one hash chain, the same for all ways to run it.

Each step adds a link: a sum over the pairs of the step, of a word for each pair that names the sample
really used and its position in the stream. Sums do not care who adds: ranks and workers may share a
step in any way. Links are made per step, so neither rows of metrics nor checkpoints enter. Two logs
with an equal chain at a number of samples seen were fed the same pairs at the same places.
"""

import hashlib

import numpy as np
from jaxtyping import Int, UInt64

from training.account.horizon import Horizon
from training.feed.order import Order, mix

START = hashlib.sha256(b"").hexdigest()


def fed(keys: UInt64[np.ndarray, " b"], positions: Int[np.ndarray, " b"]) -> np.uint64:
    """One word for pairs at their positions; over shares of a step, words add up modulo 2^64.

    Args:
        keys: What names each sample that was used: a substitute's own key, where one stood in.
        positions: Of each pair in the stream: step * batch_size + place in the global batch.
    """
    words = mix(keys ^ mix(np.asarray(positions).astype(np.uint64)))
    return np.add.reduce(words, dtype=np.uint64)


def link(chain: str, samples_seen: int, word: np.uint64) -> str:
    """The chain after one more step.

    Args:
        chain: Before the step; `START` before the first.
        samples_seen: After the step.
        word: Of all pairs of the step, over all ranks.
    """
    return hashlib.sha256(f"{chain} {samples_seen} {word}".encode()).hexdigest()


def planned_chain(order: Order, horizon: Horizon, steps: int) -> str:
    """The chain after so many steps, if no sample has to be replaced: to check a log against."""
    chain, size = START, horizon.batch_size
    for step in range(steps):
        positions = np.arange(step * size, (step + 1) * size, dtype=np.int64)
        _, indices, *_ = order.at(positions)
        chain = link(chain, (step + 1) * size, fed(order.keys[indices], positions))
    return chain
