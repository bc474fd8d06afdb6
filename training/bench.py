"""Where does a step's time go: to feeding or to the model?

    dbp bench loader [key=value ...]      pairs a second from the pool, and what a pair costs by parts
    dbp bench train  [key=value ...]      step time with a batch at hand, then with the loader

The settings are those of `dbp train`, with two more: `steps=N`, batches that are measured (20), and
`json=FILE`, the numbers for other programs. What is measured is the code that trains: the same pairs,
loader and step, on one device. A pool that is not indexed, or curated, yet is so first.
"""

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dbp.config import require
from dbp.errors import ConfigError, nearest

VERBS = ("loader", "train")
PARTS = ("read", "decode", "resize", "tokenise")
OWN = ("steps", "json")
MOST_WAIT = 0.05  # share of a step; above it feeding is the bottleneck
FEW = 256  # pairs that the parts are measured on


def main(keys: list[str], folders: list[str], print_only: bool) -> int:
    """Run `dbp bench`."""
    from dbp.config import compose
    from dbp.verbs.command_line import overrides

    if not keys or keys[0] not in VERBS:
        said = "".join(key for key in keys[:1] if "=" not in key)
        raise ConfigError(f"{f'dbp bench {said}'.strip()}: {nearest(said, VERBS)}")
    what, rest = keys[0], keys[1:]
    own = dict(key.split("=", 1) for key in rest if key.partition("=")[0] in OWN and "=" in key)
    steps = own.get("steps", "20")
    require(steps.isdecimal() and int(steps) >= 2, "steps", steps, "a whole number, 2 or more")
    config = compose("train", overrides([k for k in rest if k.split("=")[0] not in own]), folders)
    if print_only:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(config))
        return 0
    found = run(config, what, int(steps))
    print(found.text())
    if "json" in own:
        Path(own["json"]).write_text(json.dumps({"bench": what, **asdict(found)}, indent=1) + "\n")
    return 0


@dataclass(frozen=True)
class LoaderTimes:
    """What the loader gives, and where a pair's time goes in one process.

    Args:
        num_workers: Of the loader; 0 is the training process itself.
        parts: Milliseconds a pair, by what is done.
        bytes_per_pair: Read from the shards, those between near neighbours included.
    """

    pairs_per_second: float
    num_workers: int
    batch_size: int
    decode: str
    parts: dict[str, float]
    bytes_per_pair: float

    def text(self) -> str:
        """The table that a person reads, and what would lift the rate."""
        total = sum(self.parts.values())
        lines = [f"{'part':<10} {'ms a pair':>10} {'share':>7}"]
        lines += [f"{p:<10} {ms:>10.3f} {ms / total:>6.0%}" for p, ms in self.parts.items()]
        lines += [
            f"{'together':<10} {total:>10.3f}  {1000 / total:,.0f} pairs/s in one process",
            f"read: {self.bytes_per_pair / 1024:,.1f} KiB a pair",
            f"loader: {self.pairs_per_second:,.0f} pairs/s with {self.num_workers} workers, batches "
            f"of {self.batch_size:,}, decode={self.decode}",
            f"most time goes to: {max(self.parts, key=lambda part: self.parts[part])}. {self.remedy()}",
        ]
        return "\n".join(lines)

    def remedy(self) -> str:
        """What would lift the rate, the cheapest first."""
        total = sum(self.parts.values())
        ways = []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        if self.num_workers < (cores or 1):
            ways.append(f"train.num_workers={cores}, one for each core")
        if self.parts["read"] > total / 3:
            ways.append("shards on a nearer disk")
        if self.parts["decode"] + self.parts["resize"] > total / 3:
            if self.decode == "reference":
                ways.append("train.augmentation.decode=fast (another recipe, for all arms alike)")
            ways.append("pictures stored at a smaller side")
        return "To lift it: " + ("; ".join(ways) or "more cores") + "."


@dataclass(frozen=True)
class TrainTimes:
    """A step with a batch at hand, and with the loader.

    Args:
        resident_seconds: Of a step whose batch is there already.
        fed_seconds: Of a step that takes its batch from the loader.
        flops_per_pair: Forward and backward; none where they cannot be counted.
    """

    resident_seconds: float
    fed_seconds: float
    batch_size: int
    flops_per_pair: int | None
    device: str
    precision: str
    loader: LoaderTimes

    @property
    def wait_share(self) -> float:
        """The part of a fed step that feeding costs."""
        return max(0.0, 1 - self.resident_seconds / self.fed_seconds)

    def text(self) -> str:
        """The table that a person reads, the bottleneck, and what would lift it."""
        lines = [self.loader.text(), "", f"{'step':<10} {'ms':>9} {'pairs/s':>9} {'TFLOP/s':>9}"]
        for name, seconds in (("resident", self.resident_seconds), ("fed", self.fed_seconds)):
            rate = self.batch_size / seconds
            flops = f"{self.flops_per_pair * rate / 1e12:9.3f}" if self.flops_per_pair else ""
            lines.append(f"{name:<10} {seconds * 1e3:>9.1f} {rate:>9,.0f} {flops:>9}")
        lines.append(f"{self.device}, {self.precision}: {self.wait_share:.0%} of a fed step goes to feeding")
        if self.wait_share > MOST_WAIT:
            lines.append(f"bottleneck: the loader. {self.loader.remedy()}")
        else:
            lines.append(
                "bottleneck: the model. To lift it: a larger train.batch_size (another recipe), "
                "train.precision=bf16, train.compile=true, less train.recompute, more devices."
            )
        return "\n".join(lines)


def run(config: Any, what: str, steps: int = 20) -> LoaderTimes | TrainTimes:
    """Measure what a composed config would train: its `loader`, or how it would `train`.

    Raises:
        ConfigError: A setting is wrong, or fewer pairs are kept than a batch holds.
    """
    from dbp.curate import open_store, read, recipe
    from dbp.planning.plan import check_budget, require_upstream
    from training.feed.subset import Subset
    from training.train import stage_of

    stage, nodes = stage_of(config), recipe(read(config))
    store = open_store(config)
    if config.upstream == "require":
        require_upstream(store, nodes["select"])
    check_budget(store, nodes)
    subset = Subset(store.get(nodes["index"]), store.get(nodes["select"]))
    return measure(stage, subset, what, steps)


def measure(stage: Any, subset: Any, what: str, steps: int) -> LoaderTimes | TrainTimes:
    """Measure a training stage on a subset; the arguments of `run`, built."""
    from training.resume.ranks import Ranks
    from training.run import prepare

    stage = replace(stage, samples_seen=steps * stage.batch_size, epochs=None)
    prepared = prepare(stage, subset, Ranks())
    with tempfile.TemporaryDirectory() as folder:
        pairs = prepared.feed.pairs(prepared.loaded, Path(folder), Ranks())
        times = loader_times(prepared, pairs)
        return times if what == "loader" else train_times(prepared, pairs, times)


def loader_times(prepared: Any, pairs: Any) -> LoaderTimes:
    """The parts of the loader's work one by one in this process, then the loader alone."""
    from training.feed.data import make_loader

    feed, stage = prepared.feed, prepared.feed.stage
    parts, num_bytes = part_times(pairs, feed.order)
    pin, horizon = prepared.device != "cpu", feed.horizon
    loader = iter(make_loader(pairs, feed.batches(0, 0, 1), stage.num_workers, pin, stage.prefetch))
    # The first batch of each worker includes its start.
    for _ in range(min(max(stage.num_workers, 1), horizon.steps - 1)):
        next(loader)
    start = time.perf_counter()
    rate = sum(1 for _ in loader) * horizon.batch_size / (time.perf_counter() - start)
    recipe, workers = stage.augmentation.decode, stage.num_workers
    return LoaderTimes(rate, workers, horizon.batch_size, recipe, parts, num_bytes)


def part_times(pairs: Any, order: Any) -> tuple[dict[str, float], float]:
    """Milliseconds a pair of each part, and bytes read a pair, on a few pairs in this process.

    `collate` is what a batch takes beyond the parts: drawing, moving, putting together. Shards that
    the system has cached are read in the time of calls and copies.
    """
    from training.feed.data import read_pairs
    from training.feed.decoding import resize
    from training.feed.order import Slice, draws

    recipe, subset = pairs.augmentation, pairs.subset
    taken = Slice(0, *order.at(np.arange(min(FEW, len(subset)), dtype=np.int64)))
    indices = taken.indices
    numbers = draws(pairs.seed, taken.epochs, taken.named(subset.keys), recipe.num_draws)
    pairs[taken]  # what is loaded at first use is loaded now, and the cache filled
    clock = time.perf_counter
    marks = [clock()]
    read = read_pairs(subset.pool, subset.rows[indices])
    marks.append(clock())
    decoded = [_decoded(pairs, *pair) for pair in zip(read.pictures, numbers, strict=True)]
    marks.append(clock())
    decoded = [resize(picture) for picture in decoded if picture]
    marks.append(clock())
    pairs.tokenizer(read.captions)
    marks.append(clock())
    pairs[taken]
    each = 1e3 * np.diff([*marks, clock()]) / len(indices)
    parts: dict[str, float] = {part: float(ms) for part, ms in zip(PARTS, each[:4], strict=True)}
    if pairs.cache:  # after the first epoch nothing else is left
        parts = dict.fromkeys(PARTS, 0.0)
    parts["collate"] = max(0.0, float(each[4]) - sum(parts.values()))
    return parts, 0.0 if pairs.cache else read.num_bytes / len(indices)


def _decoded(pairs: Any, content: bytes, numbers: Any) -> Any:
    from dbp.data.images import Undecodable
    from training.feed.decoding import decode

    recipe, most = pairs.augmentation, pairs.subset.pool.max_pixels
    try:
        return decode(content, most, recipe.decode, lambda w, h: recipe.cut(w, h, pairs.size, numbers))
    except Undecodable:
        return None  # training puts another pair here


def train_times(prepared: Any, pairs: Any, loader: LoaderTimes) -> TrainTimes:
    """Train on one batch again and again, then on what the loader gives."""
    from torch.utils.data import DataLoader

    from training.feed.data import make_loader

    feed, device, precision = prepared.feed, prepared.device, prepared.precision
    prepared.module.trims = False  # one batch's captions are shorter than another's: not what feeding costs
    stage, batches = feed.stage, feed.batches(0, 0, 1)
    feeds = [  # a bare list would be taken apart by Lightning
        DataLoader([pairs[batches.slice(0)]] * feed.horizon.steps, batch_size=None),  # type: ignore
        make_loader(pairs, batches, stage.num_workers, device != "cpu", stage.prefetch),
    ]
    resident, fed = (step_seconds(prepared.module, one, device, precision) for one in feeds)
    return TrainTimes(resident, fed, feed.horizon.batch_size, prepared.flops, device, precision, loader)


def step_seconds(module: Any, feed: Any, device: str, precision: str) -> float:
    """Seconds a step, in the mean of all but the first quarter, which warms up."""
    import torch
    from lightning.pytorch import Callback

    from training.step.fit import make_trainer, quiet

    steps = module.horizon.steps
    warm = max(1, steps // 4)
    times: list[float] = []

    class Clock(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step in (warm, steps):  # in between a GPU is not made to wait
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder, quiet():
        make_trainer(Path(folder), steps, device, precision, [Clock()]).fit(module, feed)
    return (times[1] - times[0]) / (steps - warm)
