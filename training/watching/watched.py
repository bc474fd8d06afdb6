"""A run as those see it that measure its model on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbp.data.pool import Pool
from training.resume.ranks import Ranks

Measure = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Watched:
    """What an evaluator may use of the run that it watches, seen from one process."""

    model: Any  # open_clip's model, neither compiled nor wrapped; its weights change as training goes
    preprocess: Callable[[Any], Any]  # the model's own, for evaluation
    tokenizer: Callable[[list[str]], Any]  # the model's own
    device: str
    pool: Pool  # what the run trains on a part of
    held_out: float  # share of the pool's uids that no arm trains on
    folder: Path  # for what an evaluator prepares; it stays until the run is complete
    ranks: Ranks
