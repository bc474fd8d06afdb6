"""A plan of 1,000 arms over a store of 10,000 artifacts: seconds until it stands, and of one task.

    python tests/benchmarks/bench_plan.py --artifacts 10000 --shards 1000

The grid is DBP at 10 keep fractions, 10 temperatures and 9 seeds, and SSP and uniform at those that they
read: 2,700 points, 1,080 arms. The pool's shards are empty files, and the store holds manifests alone, in
its own layout: of a third of the arms, and of nothing of this sweep up to the number. Goal: 20 s for the
plan and the state of each arm. A task of an array that opens its own point must not pay for the others.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dbp.config import build, compose
from dbp.curate import open_store
from dbp.engine.stage import Node
from dbp.engine.store import Store
from dbp.verbs.command_line import overrides
from slurm.cluster.jobs import Sweep
from slurm.cluster.launcher import Launcher
from slurm.cluster.manifest import Job, Manifest, read_points, write_round
from slurm.cluster.watching import Queue, Queued, states
from slurm.composer import Composer, stages
from slurm.encoder import Asked
from slurm.plan import Plan
from slurm.settings import Grid, SweepSettings
from slurm.sweep import divide
from slurm.task import open_points

GOAL = 20.0
VIT = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
AXES = [
    "sweep.budget.keep_fraction=[0.05,0.1,0.15,0.2,0.25,0.3,0.35,0.4,0.45,0.5]",
    "sweep.select.temperature=[0.01,0.02,0.05,0.1,0.2,0.3,0.5,0.7,1.0,2.0]",
    "sweep.seed=[0,1,2,3,4,5,6,7,8]",
    "sweep.select=[dbp,ssp,uniform]",
]


def write_inputs(home: Path, num_shards: int) -> None:
    """A pool of empty shards, weights of noise, and a folder for evaluation sets."""
    for name in ("pool", "sets"):
        (home / name).mkdir()
    for number in range(num_shards):
        (home / "pool" / f"{number:05d}.tar").touch()
    (home / "weights.pt").write_bytes(b"0" * (1 << 24))
    (home / "vit.json").write_text(json.dumps(VIT))


def words(home: Path) -> list[str]:
    """The sweep, as a person says it."""
    uses = ("dedup", "cluster", "score")
    return [
        "pool=webdataset", f"pool.shards={home}/pool/*.tar", "encoder=local_clip",
        *(f"encoder.{use}.checkpoint={home}/weights.pt" for use in uses),
        *(f"encoder.{use}.config={home}/vit.json" for use in uses),
        "model.name=null", f"model.config={home}/vit.json", "train=glyphs", "suite=glyphs",
        f"root={home}/sets", f"paths.store={home}/store", f"paths.runs={home}/runs",
        "launcher=slurm_cpu", *AXES,
    ]  # fmt: skip


def open_sweep(home: Path) -> Sweep:
    """What `dbp sweep` has before it plans."""
    arguments = words(home)
    base, axes = divide(arguments)
    config = compose("sweep", overrides(base))
    settings = build(config.sweep, SweepSettings, "sweep")
    launcher = build(config.launcher, Launcher, "launcher")
    grid = Grid.of(settings, axes, base, "dbp")
    store = open_store(config, say=lambda line: None)
    composer = Composer(overrides(base), [])
    return Sweep(Asked(composer, settings, grid, store), launcher, home / "out", arguments, [])


def write_manifest(folder: Path, key: str, files: int = 1) -> None:
    """The one file by which the store knows an artifact."""
    folder.mkdir(parents=True)
    said = {
        "key": key, "stage": folder.parent.name, "version": 1, "inputs": {}, "digest": key, "counts": {},
        "seconds": 1.0, "cpu_seconds": 1.0, "files": {f"part-{n:05d}/rows.parquet": n for n in range(files)},
        "versions": {"python": "3.11", "torch": "2.9"}, "commit": "0" * 40,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(said, indent=1))


def fill(store: Store, nodes: Iterable[Node], num_artifacts: int, num_shards: int) -> None:
    """Give the store these nodes' artifacts, and others up to a number."""
    with store.steady():
        for node in nodes:
            folder, key = store.folder(node), store.key(node)
            assert folder is not None
            assert key is not None
            if not folder.exists():
                write_manifest(folder, key, num_shards if node.stage.name == "index" else 1)
    homes = [store.root / "select", store.runs / "train", store.runs / "evaluate"]
    for number in range(num_artifacts - sum(1 for _ in store.root.parent.rglob("manifest.json"))):
        key = hashlib.sha256(str(number).encode()).hexdigest()[:24]
        write_manifest(homes[number % 3] / key, key)


def timed(what: str, began: float) -> float:
    seconds = time.perf_counter() - began
    print(f"{what:<64} {seconds:8.2f} s")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifacts", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=1_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_inputs(home, asked.shards)
        prepare(home, asked.artifacts, asked.shards)
        measure(home)


def prepare(home: Path, num_artifacts: int, num_shards: int) -> None:
    """The store as it is when a third of the sweep is done."""
    sweep = open_sweep(home)
    point = stages(sweep.asked.composer.config({"select": "uniform", "budget.keep_fraction": 0.1}))
    fill(sweep.store, [point["index"]], 0, num_shards)  # without it no other key is known
    plan, _ = sweep.plan()
    assert plan is not None
    done = [node for point in plan.points[::3] for node in point.last.lineage()]
    fill(sweep.store, done, num_artifacts, num_shards)


def measure(home: Path) -> None:
    """Plan anew, as a second command does, and open what a task opens."""
    sweep, began = open_sweep(home), time.perf_counter()
    plan, _ = sweep.plan()
    assert plan is not None
    total = timed(f"plan of {len(plan.points):,} arms", began)
    with sweep.store.steady():
        keys = [str(sweep.store.key(point.last)) for point in plan.points]
    digest = hashlib.sha256("".join(sorted(keys)).encode()).hexdigest()[:12]
    began = time.perf_counter()
    with sweep.store.steady():
        found = list(states(plan, sweep.store, sweep.folder, *in_queue(keys)))
    total += timed(f"states: {dict(Counter(state.word for state in found))}", began)
    print(f"{'together':<64} {total:8.2f} s   goal {GOAL:.0f} s: {'met' if total < GOAL else 'MISSED'}")
    open_tasks(home, plan, keys)
    print(f"digest of the keys, with the paths of this run: {digest}")


def in_queue(keys: list[str]) -> tuple[Manifest, Queue]:
    """An array of all arms of which every second task waits."""
    job = Job("7", "arm", 0, [[key] for key in keys])
    waits = {("7", n): Queued("PENDING", "Resources", "1:00") for n in range(0, len(keys), 2)}
    return Manifest("", [], [], [job]), Queue(waits)


def open_tasks(home: Path, plan: Plan, keys: list[str]) -> None:
    """What the tasks of a submission open."""
    from omegaconf import OmegaConf

    began = time.perf_counter()
    configs: list[Any] = [OmegaConf.to_container(p.config, resolve=True) for p in plan.points]
    numbers = list(range(len(keys)))
    roles = {"shared": [numbers], "arm": [[number] for number in numbers]}
    file = write_round(home / "out" / "slurm", 0, configs, keys, roles)
    timed(f"submission written: {len(keys):,} configs", began)
    for role, task in (("arm", len(keys) - 1), ("shared", 0)):
        began = time.perf_counter()
        points = read_points(file, role, task)
        store, _, nodes = open_points(points)
        with store.steady():
            there = sum(store.entry(point["evaluate"]) is not None for point in nodes.values())
        timed(f"a task of role {role}: {len(points):,} points, {there:,} done", began)


if __name__ == "__main__":
    main()
