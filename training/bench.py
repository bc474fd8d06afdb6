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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dbp.config import require
from dbp.errors import ConfigError, nearest

VERBS = ("loader", "train")
OWN = ("steps", "json")
MOST_WAIT = 0.05  # share of a step; above it feeding is the bottleneck


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
    """What the loader gives, and where a pair's time goes in one process."""

    pairs_per_second: float
    num_workers: int  # of the loader; 0 is the training process itself
    batch_size: int
    decode: str
    parts: dict[str, float]  # milliseconds a pair, by what is done
    bytes_per_pair: float  # read from the shards, those between near neighbours included

    def text(self) -> str:
        """The table that the user reads, and what would lift the rate."""
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
    """A step with a batch at hand, and with the loader."""

    resident_seconds: float  # of a step whose batch is there already
    fed_seconds: float  # of a step that takes its batch from the loader
    batch_size: int
    flops_per_pair: int | None  # forward and backward; none where they cannot be counted
    device: str
    precision: str
    loader: LoaderTimes

    @property
    def wait_share(self) -> float:
        """The part of a fed step that feeding costs."""
        return max(0.0, 1 - self.resident_seconds / self.fed_seconds)

    def text(self) -> str:
        """The table that the user reads, the bottleneck, and what would lift it."""
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
    from training.resume.ranks import Ranks
    from training.resume.workers import loading
    from training.run import prepare
    from training.timing import loader_rate, part_times, step_times
    from training.train import node_of

    nodes = recipe(read(config))
    node = node_of(config, nodes)
    stage: Any = node.stage
    store = open_store(config)
    if config.upstream == "require":
        require_upstream(store, nodes["select"])
    check_budget(store, nodes)
    made = {name: store.get(one) for name, one in node.inputs.items() if name != "refined"}
    subset = Subset.of(made.pop("pool"), made.pop("keep"), made.pop("column", None))
    stage = replace(stage, samples_seen=steps * stage.batch_size, epochs=None, budget="samples")
    prepared = prepare(stage, subset, Ranks(), made)
    with tempfile.TemporaryDirectory() as folder:
        pairs = prepared.pairs(Path(folder))
        parts, num_bytes = part_times(pairs, prepared.order)
        with loading(f"train.num_workers={stage.num_workers}"):
            rate, recipe_name = loader_rate(prepared, pairs), stage.augmentation.decode
        loader = LoaderTimes(rate, stage.num_workers, stage.batch_size, recipe_name, parts, num_bytes)
        if what == "loader":
            return loader
        with loading(f"train.num_workers={stage.num_workers}"):
            times, device = step_times(prepared, pairs), prepared.device
        return TrainTimes(*times, stage.batch_size, prepared.flops, device, prepared.precision, loader)
