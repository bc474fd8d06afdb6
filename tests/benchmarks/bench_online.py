"""What choosing by tags costs the loader: pairs a second as the stream comes, and of CABS, in turn, on one machine.

    python tests/benchmarks/bench_online.py --pairs 1920 --batch 128 --rounds 5 --workers 0

Makes JPEGs of 512 x 384 at quality 85 in tars, with a dozen tags each of a thousand, by Zipf's law; reads batches
of 224 px, plain and by CABS at a filter ratio of 0.8, and counts the images that are decoded. The goal is 0.95 of
the plain rate. A rate is taken from the end of the first batch to the end of the last, without workers in seconds
of the processor, which others on the machine do not change; ratios round by round. Then the choice alone, at the
published size: 4,096 of 20,480 candidates.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip

from dbp.data.entries import Entries
from dbp.data.keep_list import everything
from dbp.data.matches import MatchedRows, Matches
from dbp.engine.store import Store
from dbp.pools.index import Index
from training.account.horizon import Horizon
from training.feed.augmentation import RandomResizedCrop
from training.feed.data import Pairs, make_loader
from training.feed.order import Batches, Order
from training.feed.subset import Subset
from training.online.cabs import Cabs
from training.online.diversity import diverse
from training.online.feed import ChosenPairs
from training.resume.workers import loading

GOAL, TAGS = 0.95, 1000


def tags_of(num_rows: int, seed: int = 0) -> Matches:
    """A dozen tags for each row in the mean, the most frequent for a seventh of all."""
    rng = np.random.default_rng(seed)
    drawn = np.minimum(rng.zipf(1.3, (num_rows, 12)), TAGS) - 1
    held = [np.unique(own) for own in drawn]
    ends = np.cumsum([0, *map(len, held)], dtype=np.int64)
    numbers = np.concatenate(held).astype(np.uint32)
    counts = np.bincount(numbers, minlength=TAGS).astype(np.int64)
    return Matches(counts, Entries([str(n) for n in range(TAGS)]), [MatchedRows(0, ends, numbers)])


def make_pool(folder: Path, num_pairs: int) -> None:
    """The tars of bench_training.py."""
    path = Path(__file__).with_name("bench_training.py")
    spec = importlib.util.spec_from_file_location("bench_training", path)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    sys.modules["bench_training"] = bench
    spec.loader.exec_module(bench)
    bench.make_tars(folder, num_pairs, 4, 1.0)


def rate(fed: Any, batches: Batches, workers: int) -> tuple[float, int]:
    """Pairs a second, and pairs that were decoded in all."""
    decoded, ends = 0, []
    clock = time.perf_counter if workers else time.process_time
    with loading(f"--workers={workers}"):
        for batch in make_loader(fed, batches, workers):
            decoded += batch.get("samples_decoded", len(batch["rows"]))
            ends.append(clock())
    return batches.share * (len(ends) - 1) / (ends[-1] - ends[0]), decoded


def choice_seconds(size: int, count: int) -> float:
    """Seconds of one choice, with the tags at hand."""
    (block,) = tags_of(size).parts
    assert isinstance(block, MatchedRows)
    given = block.ends, block.numbers.astype(np.int64), np.arange(size, dtype=np.uint64)
    times = []
    for _ in range(3):
        start = time.process_time()
        diverse(*given, count, 10)
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Print the rates, their ratio, and what was decoded."""
    parser = argparse.ArgumentParser()
    for name, value in (("pairs", 1920), ("batch", 128), ("rounds", 5), ("workers", 0), ("steps", 6)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        make_pool(folder, asked.pairs)
        store = Store(folder / "store")
        shards = [str(tar) for tar in sorted((folder / "all").glob("*.tar"))]
        pool = store.get(Index(uid="key", caption="txt", max_pixels=10**8, shards=shards).bind(folder=None))
        subset = Subset.of(pool, everything(pool.digest, pool.is_valid))
        tokenizer = open_clip.SimpleTokenizer(context_length=77)
        pairs = Pairs(subset, RandomResizedCrop(0.9, 1.0), 224, tokenizer, 0)
        how = Cabs(
            super_batch=None, filter_ratio=0.8, form="diversity", concepts="clusters", most_per_concept=10
        )  # entries are given in their place
        choose, _ = how.chooser(subset, 0, asked.batch, {"matches": tags_of(pool.num_rows)})
        order, found = Order(subset.keys, 0), []
        for _ in range(asked.rounds):
            plain = rate(pairs, Batches(order, Horizon(len(pairs), asked.batch, asked.steps)), asked.workers)
            horizon = Horizon(len(pairs), asked.batch, asked.steps, candidates=how.candidates(asked.batch))
            chosen = rate(ChosenPairs(pairs, choose, 0, 1), Batches(order, horizon, whole=True), asked.workers)
            found.append((plain[0], chosen[0], chosen[0] / plain[0], plain[1], chosen[1]))
            print(f"plain {plain[0]:,.0f} pairs/s, CABS {chosen[0]:,.0f}, ratio {found[-1][2]:.3f}", flush=True)
        ratio = float(np.median([one[2] for one in found]))
        offered = asked.steps * how.candidates(asked.batch)
        print(f"decoded: {found[0][3]:,} and {found[0][4]:,} of {offered:,} candidates")
        print(f"median ratio {ratio:.3f}, goal {GOAL}")
        print(f"the choice of 4,096 among 20,480: {1e3 * choice_seconds(20_480, 4096):.0f} ms")
        print(json.dumps({"ratio": ratio, "rounds": found}))


if __name__ == "__main__":
    main()
