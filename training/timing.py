"""Where a step's time goes: the parts of feeding one by one, the loader alone, the step alone and fed."""

import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from dbp.data.images import Undecodable
from training.feed.data import Pairs, read_pairs
from training.feed.decoding import decode, resize
from training.feed.order import Order, Slice, draws
from training.run import Prepared
from training.step.fit import make_trainer, quiet

PARTS = ("read", "decode", "resize", "tokenise")
FEW = 256  # pairs that the parts are measured on


def part_times(pairs: Pairs, order: Order) -> tuple[dict[str, float], float]:
    """Milliseconds a pair of each part, and bytes read a pair, on a few pairs in this process.

    `collate` is what a batch takes beyond the parts: drawing, moving, putting together. Shards that
    the system has cached are read in the time of calls and copies.
    """
    recipe, subset = pairs.augmentation, pairs.subset
    taken = Slice(0, *order.at(np.arange(min(FEW, len(subset)), dtype=np.int64)))
    numbers = draws(pairs.seed, taken.epochs, taken.named(subset.keys), recipe.num_draws)

    def decoded(content: bytes, drawn: np.ndarray) -> Any:
        try:
            pool, cut = subset.pool, partial(recipe.cut, size=pairs.size, draws=drawn)
            return decode(content, pool.max_pixels, recipe.decode, cut, pool.background)
        except Undecodable:
            return None  # training puts another pair here

    pairs[taken]  # what is loaded at first use is loaded now, and the cache filled
    clock = time.perf_counter
    marks = [clock()]
    read = read_pairs(subset.pool, subset.rows[taken.indices])
    marks.append(clock())
    whole = [decoded(*pair) for pair in zip(read.pictures, numbers, strict=True)]
    marks.append(clock())
    _ = [resize(image) for image in whole if image]
    marks.append(clock())
    pairs.tokenizer(read.captions)
    marks.append(clock())
    pairs[taken]
    each = 1e3 * np.diff([*marks, clock()]) / len(taken.indices)
    parts: dict[str, float] = {part: float(ms) for part, ms in zip(PARTS, each[:4], strict=True)}
    if pairs.cache:  # after the first epoch nothing else is left
        parts = dict.fromkeys(PARTS, 0.0)
    parts["collate"] = max(0.0, float(each[4]) - sum(parts.values()))
    return parts, 0.0 if pairs.cache else read.num_bytes / len(taken.indices)


def loader_rate(run: Prepared, pairs: Pairs) -> float:
    """Pairs a second that the loader gives when nothing else is done."""
    loader = iter(run.loader(pairs))
    # The first batch of each worker includes its start.
    for _ in range(min(max(run.speed.num_workers, 1), run.horizon.steps - 1)):
        next(loader)
    start = time.perf_counter()
    return sum(1 for _ in loader) * run.horizon.batch_size / (time.perf_counter() - start)


def step_times(run: Prepared, pairs: Pairs) -> tuple[float, float]:
    """Seconds of a step on one batch again and again, then of one on what the loader gives."""
    run.module.trims = False  # one batch's captions are shorter than another's: not what feeding costs
    first = Slice(0, *run.order.at(np.arange(run.horizon.read, dtype=np.int64)))
    # A bare list would be taken apart by Lightning.
    resident: Any = DataLoader([run.fed(pairs)[first]] * run.horizon.steps, batch_size=None)  # type: ignore[arg-type]
    return _step_seconds(run, resident), _step_seconds(run, run.loader(pairs))


def _step_seconds(run: Prepared, loader: Iterable[Any]) -> float:
    """Seconds a step, in the mean of all but the first quarter, which warms up."""
    steps = run.horizon.steps
    warm = max(1, steps // 4)
    times: list[float] = []

    class Clock(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step in (warm, steps):  # in between a GPU is not made to wait
                if run.device.startswith("cuda"):
                    torch.cuda.synchronize()
                times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder, quiet():
        make_trainer(Path(folder), steps, run.device, run.precision, [Clock()]).fit(run.module, loader)
    return (times[1] - times[0]) / (steps - warm)
